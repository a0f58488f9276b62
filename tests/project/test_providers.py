"""The page about providers: its manifests mean what it says, and its classes run as they stand."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import secrets
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from torch import nn

from mlstate import LocalStateStore, Manifest, StateKey, StateType, state_digest, with_state_type
from mlstate.errors import FetchError, IntegrityError, StateNotFoundError
from mlstate.fetch.names import translate_all
from mlstate.locations import Mirror
from tests.support.models import same, values

PAGE = (Path(__file__).parents[2] / "docs" / "providers.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


# The manifests


def mirror(key: str) -> Mirror:
    [entry] = [
        states[StateKey.parse(key)]
        for states in (Manifest.parse(b.encode(), "page").states for b in blocks("toml"))
        if StateKey.parse(key) in states
    ]
    assert entry.digest is None  # the page says so
    [found] = entry.mirrors
    assert isinstance(found, Mirror)
    return found


def test_every_manifest_is_one():
    assert [len(Manifest.parse(b.encode(), "page").states) for b in blocks("toml")] == [1, 2, 1, 1]


def test_the_densenet_is_the_one_that_is_shipped():
    key = "pytorch.densenet121.cls1000.imagenet"
    shipped = Manifest.read(Path(__file__).parents[2] / "manifests" / "torchvision.toml")
    assert (mirror(key),) == shipped.states[StateKey.parse(key)].mirrors


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_places365_selects_and_strips(architecture):
    found = mirror(f"pytorch.{architecture}.cls365.places365")
    folder = "http://places2.csail.mit.edu/models_places365"
    assert found == Mirror(
        (f"{folder}/{architecture}_places365.pth.tar",),
        format="torch",
        select="state_dict",
        strip_prefix="module.",
    )
    assert translate_all(found, ["module.conv1.weight", "module.fc.bias"]) == {
        "conv1.weight": "module.conv1.weight",
        "fc.bias": "module.fc.bias",
    }


def test_vinvl_goes_from_one_prefix_to_another():
    found = mirror("pytorch.vinvl-vg-x152c4.vinvl")
    assert found.format == "torch"
    assert translate_all(found, ["module.rpn.head.weight"]) == {
        "vinvl.rpn.head.weight": "module.rpn.head.weight"
    }


def test_distiluse_is_two_files_and_a_tokenizer():
    key = "pytorch.sbert-distiluse-base-multilingual.cased-v2"
    transformer, dense = mirror(key).parts
    revision = "hf://sentence-transformers/distiluse-base-multilingual-cased-v2@" + (
        "bfe45d0732ca50787611c0fe107ba278c7f3f889"
    )
    assert transformer == Mirror((f"{revision}/model.safetensors",))
    assert dense == Mirror((f"{revision}/2_Dense/model.safetensors",), add_prefix="dense.")
    assert [*translate_all(dense, ["linear.weight"])] == ["dense.linear.weight"]
    manifest = Manifest.parse(blocks("toml")[-1].encode(), "page")
    [(name, file)] = manifest.states[StateKey.parse(key)].files.items()
    assert name == "tokenizer.json"
    assert file.mirrors == (Mirror((f"{revision}/tokenizer.json",)),)


# The classes


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the Python blocks of the page define, run in order as they stand."""
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks("python")):
        exec(compile(block, f"docs/providers.md, block {number}", "exec"), names)
    return names


class Site:
    """A web server on a free port of this machine, with answers that a test writes."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.requests: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests.append(self.path)
                parts = urlsplit(self.path)
                answer = site.answers.get(parts.path, (404, "text/plain", b"no"))
                if callable(answer):
                    answer = answer(parse_qs(parts.query))
                status, kind, body = answer
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def file(self, path: str, content: bytes) -> None:
        self.answers[path] = (200, "application/octet-stream", content)


@pytest.fixture
def site(monkeypatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Site()
    thread = Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def saved(tmp_path: Path, content: object, *, zipped: bool = True) -> bytes:
    path = tmp_path / "made.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path.read_bytes()


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def small(seed: int, architecture: str) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(70, 70))
    return with_state_type(module, StateType("pytorch", architecture))


WARNING = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head>
<body>
<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">
<input type="submit" id="uc-download-link" class="goog-inline-block" value="Download anyway"/>
<input type="hidden" name="id" value="{id}"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="{uuid}">
</form></body></html>"""


@pytest.fixture
def drive(site, page, tmp_path):
    """Drive with MagFace's file: without the form's fields it gives the page with the form."""
    published = small(1, "magface").state_dict()
    checkpoint = {
        "epoch": 25,
        "arch": "iresnet100",
        "state_dict": {
            **prefixed("features.module.", published),
            "fc.weight": torch.ones(8, 8),
        },
    }
    content, uuid = saved(tmp_path, checkpoint), secrets.token_hex(8)

    def answer(query: dict[str, list[str]]) -> tuple[int, str, bytes]:
        if query["id"] != [page["MagFaceStore"].file_id]:
            return 404, "text/html", b"<html>no such file</html>"
        if query.get("confirm") == ["t"] and query.get("uuid") == [uuid]:
            return 200, "application/octet-stream", content
        text = WARNING.format(id=query["id"][0], uuid=uuid)
        return 200, "text/html; charset=utf-8", text.encode()

    site.answers["/download"] = answer
    return site


MAGFACE = StateKey.parse("pytorch.magface.magface")


def magface(page: dict[str, Any], site: Site) -> Any:
    class Local(page["MagFaceStore"]):
        drive = f"{site.url}/download"

    return Local()


def test_magface_comes_past_the_page_of_drive(page, drive):
    model = small(2, "magface")
    magface(page, drive).load(model, MAGFACE)
    assert same(values(model), values(small(1, "magface")))
    assert len(drive.requests) == 2


def test_drive_may_give_the_file_at_once(page, site, tmp_path):
    state = prefixed("features.module.", small(1, "magface").state_dict())
    site.file("/download", saved(tmp_path, {"state_dict": state}))
    model = small(2, "magface")
    magface(page, site).load(model, MAGFACE)
    assert same(values(model), values(small(1, "magface")))


@pytest.mark.parametrize("text", ["<html>Quota exceeded</html>", WARNING])
def test_a_page_instead_of_the_file_is_an_error(page, site, text):
    site.answers["/download"] = (200, "text/html", text.encode())
    model = small(2, "magface")
    with pytest.raises(FetchError, match="page instead of the file"):
        magface(page, site).load(model, MAGFACE)
    assert same(values(model), values(small(2, "magface")))
    assert len(site.requests) == 2


ARCFACE = StateKey.parse("pytorch.arcface.insightface")
SIGNATURE = "sig=verysecret"


def arcface(page: dict[str, Any], site: Site, size: int) -> Any:
    item = {"size": size, "@content.downloadUrl": f"{site.url}/file?{SIGNATURE}"}
    # The link of the page in base64 without its padding, as the API wants it.
    share = "u!aHR0cHM6Ly8xZHJ2Lm1zL3UvcyFBaE1xVlBENDRjRE9oa1BzT1UyU19IRnBZOWRD"
    site.answers[f"/v1.0/shares/{share}/driveItem"] = (
        200,
        "application/json",
        json.dumps(item).encode(),
    )

    class Local(page["ArcFaceStore"]):
        api = f"{site.url}/v1.0"

    return Local()


def test_arcface_comes_from_the_address_that_the_api_gives(page, site, tmp_path):
    content = saved(tmp_path, small(1, "arcface").state_dict(), zipped=False)
    site.file("/file", content)
    model = small(2, "arcface")
    arcface(page, site, len(content)).load(model, ARCFACE)
    assert same(values(model), values(small(1, "arcface")))
    assert [SIGNATURE in request for request in site.requests] == [False, True]


def test_an_address_that_is_signed_is_in_no_error(page, site):
    for answer in ((403, "text/plain", b"expired"), (200, "text/plain", b"short")):
        site.answers["/file"] = answer
        with pytest.raises(FetchError) as caught:
            arcface(page, site, 100).load(small(2, "arcface"), ARCFACE)
        assert SIGNATURE not in str(caught.value)
        assert caught.value.__cause__ is None
    with pytest.raises(FetchError, match="did not answer") as caught:
        page["get"](f"http://127.0.0.1:1/?{SIGNATURE}")
    assert SIGNATURE not in str(caught.value)


@pytest.fixture
def package(tmp_path, monkeypatch) -> str:
    """A package that is installed, with weights among its files, and that must not be imported."""
    name = f"facenet_{secrets.token_hex(4)}"
    data = tmp_path / "site" / name / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    for seed, net in enumerate(("pnet", "rnet", "onet")):
        content = saved(tmp_path, small(seed, "x").state_dict(), zipped=False)
        (data / f"{net}.pt").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    return name


class MTCNN(nn.Module):
    state_type = StateType("pytorch", "facenet-mtcnn")

    def __init__(self, seed: int) -> None:
        super().__init__()
        nets = {net: small(seed + n, "x") for n, net in enumerate(("pnet", "rnet", "onet"))}
        self.mtcnn = nn.ModuleDict(nets)


FACENET = StateKey.parse("pytorch.facenet-mtcnn.facenet")


def test_mtcnn_comes_out_of_its_package(page, package):
    class Local(page["MTCNNStore"]):
        pass

    Local.package = package
    model = MTCNN(7)
    Local().load(model, FACENET)
    assert same(values(model), values(MTCNN(0)))
    assert package not in sys.modules


def test_a_package_that_is_not_installed_is_an_error(page):
    class Local(page["MTCNNStore"]):
        package = "mlstate_no_such_package"

    with pytest.raises(FetchError, match="not installed"):
        Local().load(MTCNN(7), FACENET)


class Clip(nn.Module):
    """CLIP's shape: weights, and sizes among its buffers."""

    def __init__(self, seed: int, *, sizes: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.visual = nn.Conv2d(3, 4, 3)
        self.logit_scale = nn.Parameter(torch.randn(()))
        if sizes:
            for name in ("input_resolution", "context_length", "vocab_size"):
                self.register_buffer(name, torch.tensor(77))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.visual(image) * self.logit_scale


@pytest.fixture
def archive(tmp_path) -> bytes:
    path = tmp_path / "clip.pt"
    torch.jit.save(torch.jit.script(Clip(1)), path)
    return path.read_bytes()


CLIP = StateKey.parse("pytorch.clip-vit-b-32.openai")


def clip(page: dict[str, Any], site: Site, sha256: str) -> Any:
    class Local(page["CLIPStore"]):
        models = f"{site.url}/clip/models"
        archives = {CLIP: (sha256, "ViT-B-32.pt")}  # noqa: RUF012

    return Local()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_clip_comes_out_of_its_archive(page, site, archive):
    sha256 = hashlib.sha256(archive).hexdigest()
    site.file(f"/clip/models/{sha256}/ViT-B-32.pt", archive)
    model = with_state_type(Clip(2, sizes=False), CLIP.state_type)
    clip(page, site, sha256).load(model, CLIP)
    assert same(values(model), values(Clip(1, sizes=False)))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_an_archive_of_another_sum_is_not_opened(page, site, archive, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", None)
    site.file(f"/clip/models/{'0' * 64}/ViT-B-32.pt", archive)
    model = with_state_type(Clip(2, sizes=False), CLIP.state_type)
    with pytest.raises(IntegrityError) as caught:
        clip(page, site, "0" * 64).load(model, CLIP)
    assert caught.value.found == hashlib.sha256(archive).hexdigest()


def test_what_clip_publishes_is_under_the_sum_that_is_compared(page):
    store = page["CLIPStore"]()
    assert CLIP in store.get_state_keys(CLIP.state_type)
    assert all(re.fullmatch(r"[0-9a-f]{64}", sha256) for sha256, _ in store.archives.values())


@pytest.mark.parametrize("name", ["MagFaceStore", "ArcFaceStore", "MTCNNStore", "CLIPStore"])
def test_each_lists_what_it_has_and_refuses_the_rest(page, name):
    store = page[name]()
    key = store.available_state_keys[0]
    assert store.get_state_keys(key.state_type) == [key]
    model = with_state_type(nn.Linear(1, 1), key.state_type)
    with pytest.raises(StateNotFoundError):
        store.load(model, StateKey(key.state_type, "another"))


def test_what_they_bring_is_kept_and_verified(page, drive, tmp_path):
    kept = LocalStateStore(tmp_path / "weights")
    model = small(2, "magface")
    result = page["keep"](magface(page, drive), model, MAGFACE, kept)
    assert result.digest == state_digest(small(1, "magface").state_dict())
    assert kept.meta(MAGFACE) == {"from": "Local"}
    drive.answers.clear()
    del drive.requests[:]
    other = small(3, "magface")
    assert page["keep"](magface(page, drive), other, MAGFACE, kept).digest == result.digest
    assert same(values(other), values(small(1, "magface")))
    assert drive.requests == []
    objects = (tmp_path / "weights").glob("objects/*/*")
    [large] = [file for file in objects if file.stat().st_size > 16384]
    large.chmod(0o644)
    with large.open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff\xff\xff")
    with pytest.raises(IntegrityError):
        page["keep"](magface(page, drive), small(3, "magface"), MAGFACE, kept)
