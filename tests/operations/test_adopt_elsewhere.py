"""What `adopt` takes from the hub and the web: the same as from a folder on this machine."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from mlstate import (
    LocalStateStore,
    Manifest,
    ManifestStore,
    StateKey,
    adopt,
    file_digest,
    state_digest,
)
from mlstate.errors import FetchError, FormatError
from tests.operations.test_layouts import FOLDERS, contents, pipeline, write
from tests.servers.replies import Reply
from tests.support.models import net, same, values

KEY, OTHER = StateKey.parse("pytorch.net.a"), StateKey.parse("pytorch.net.b")
SAID = {"format": "pt", "by": "ä"}
RANGES = pytest.mark.parametrize("ranges", [True, False])
TARGETS = pytest.mark.parametrize("target", ["folder", "manifest"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path):
    return LocalStateStore(tmp_path / "store")


def into(tmp_path: Path, target: str):
    """Where to adopt, with the option for it; and what reads it."""
    if target == "folder":
        store = LocalStateStore(tmp_path / "into")
        return store, {}, lambda: store
    manifest = tmp_path / "m.toml"
    return manifest, {"mirror": True}, lambda: ManifestStore(manifest, cache=tmp_path / "other")


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def refused(*arguments: object, **options: object) -> FormatError:
    with pytest.raises(FormatError) as caught:
        adopt(*arguments, **options)  # type: ignore[arg-type]
    return caught.value


def single_component() -> dict[str, object]:
    files = pipeline()
    return {name: file for name, file in files.items() if name[:3] in ("mod", "une", "sch")}


HUB_FOLDERS = {**FOLDERS, "single component": single_component}


@pytest.fixture(params=sorted(HUB_FOLDERS))
def folder(request, tmp_path):
    return write(tmp_path / "source", {"README.md": "#", **HUB_FOLDERS[request.param]()})


def test_the_folder_of_a_single_component_has_one_prefix(tmp_path, store):
    source = write(tmp_path / "source", single_component())
    adopt(source, KEY, store)
    assert {name.count("unet/") for name in store.load_state_dict(KEY)} == {1}
    store.materialize(KEY, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)


@pytest.mark.parametrize("place", ["", "/models/one"], ids=["repository", "folder"])
@TARGETS
def test_a_folder_of_the_hub_is_as_one_on_this_machine(  # noqa: PLR0917
    folder, hub_only, tmp_path, store, target, place
):
    below = tmp_path / "repo" / place.lstrip("/")
    below.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(below)
    hub_only.add("org/model", tmp_path / "repo")
    here = adopt(below, KEY, store)
    taker, options, opened = into(tmp_path, target)
    report = adopt(f"hf://org/model@main{place}", KEY, taker, **options)
    assert (report.digest, report.files) == (here.digest, here.files)
    assert (report.taken, report.skipped) == (here.taken, here.skipped)
    assert opened().get(KEY).entry.layout == store.get(KEY).entry.layout
    opened().materialize(KEY, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(below)
    assert adopt(f"hf://org/model@main{place}", KEY, taker, **options).existed


def test_a_component_of_a_pipeline_of_the_hub_loads_alone(hub_only, tmp_path, store):
    source = write(tmp_path / "source", pipeline())
    hub_only.add("org/pipe", source)
    adopt("hf://org/pipe@main", KEY, store)
    store.materialize(KEY, tmp_path / "out", component="vae")
    assert contents(tmp_path / "out") == contents(source / "vae")
    assert "names in a pipeline" in str(refused("hf://org/pipe", OTHER, store, add_prefix="x."))
    assert adopt("hf://org/pipe@main/unet", OTHER, store).files == ("config.json",)


def test_several_files_of_weights_on_the_hub_are_refused_with_the_way_to_choose(hub_only, store):
    one, two = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    names = ("model.safetensors", "adapter_model.safetensors", "config.json")
    hub_only.add("org/model", dict(zip(names, (save(one), save(two), b"{}"), strict=True)))
    error = refused("hf://org/model", KEY, store)
    assert error.found == "adapter_model.safetensors, model.safetensors"
    assert error.remedy == "say which one is meant: weights='adapter_model.safetensors'"
    assert store.get_state_keys(KEY.state_type) == []
    report = adopt("hf://org/model", KEY, store, weights="adapter_model.safetensors")
    assert (report.digest, report.skipped) == (state_digest(two), ("model.safetensors",))
    assert "no such file" in str(refused("hf://org/model", OTHER, store, weights="x.safetensors"))


def test_a_mirror_that_names_a_repository_with_several_says_so(hub_only, tmp_path):
    state = {"w": torch.ones(2)}
    files = {"a.safetensors": save(state), "b.safetensors": save(state)}
    commit = hub_only.add("org/model", files)
    text = 'version = 1\n[states."pytorch.net.a"]\nblake3 = "{}"\nmirrors = ["{}"]\n'
    for address, works in (
        ("hf://org/model", False),
        (f"hf://org/model@{commit}/a.safetensors", True),
    ):
        (tmp_path / "m.toml").write_text(text.format(state_digest(state), address))
        opened = ManifestStore(tmp_path / "m.toml", cache=tmp_path / address[-5:].strip("/"))
        if works:
            assert same(opened.load_state_dict(KEY), state)
            continue
        with pytest.raises(FetchError) as caught:
            opened.fetch(KEY)
        assert "several files of weights; " in str(caught.value)
        assert "a.safetensors, b.safetensors" in str(caught.value)
        assert "give the path of the file after the revision" in str(caught.value)


@pytest.mark.parametrize("missing", ["model-00002-of-00002.safetensors", "model.safetensors.index"])
def test_a_part_of_a_model_on_the_hub_is_refused(hub_only, tmp_path, store, missing):
    source = write(tmp_path / "source", FOLDERS["shards"]())
    for path in source.iterdir():
        if path.name.startswith(missing):
            path.unlink()
    if missing.endswith("index"):
        (source / "model-00001-of-00002.safetensors").unlink()
    hub_only.add("org/model", source)
    error = refused("hf://org/model", KEY, store)
    lacking = missing if "0000" in missing else "model-00001-of-00002.safetensors"
    assert error.found == f"missing: {lacking}"
    assert store.get_state_keys(KEY.state_type) == []


@TARGETS
def test_shards_without_an_index_are_one_model_in_a_manifest_and_on_the_hub(
    hub_only, tmp_path, target
):
    source = write(tmp_path / "source", FOLDERS["shards"]())
    (source / "model.safetensors.index.json").unlink()
    hub_only.add("org/model", source)
    taker, options, opened = into(tmp_path, target)
    for key, place in ((KEY, "hf://org/model"), (OTHER, source)):
        report = adopt(place, key, taker, **options)
        assert report.digest == file_digest(source)
        assert report.skipped == ()
        assert set(opened().load_state_dict(key)) == {"a", "b", "c"}


@TARGETS
@pytest.mark.parametrize("place", ["hub", "hub index", "web"])
def test_shards_of_a_torch_checkpoint_are_one_model(
    hub_only, start_recording, tmp_path, target, place
):
    state = values(net(0))
    names = sorted(state)
    shards = {f"pytorch_model-0000{n}-of-00002.bin": names[n - 1 :: 2] for n in (1, 2)}
    index = {name: shard for shard, inside in shards.items() for name in inside}
    files = {shard: saved({n: state[n] for n in inside}) for shard, inside in shards.items()}
    files["pytorch_model.bin.index.json"] = json.dumps({"weight_map": index}).encode()
    hub_only.add("org/model", files)
    address = "hf://org/model@main"
    if place == "web":
        address = f"{start_recording(files).url}/pytorch_model.bin.index.json"
    elif place == "hub index":
        address += "/pytorch_model.bin.index.json"
    taker, options, opened = into(tmp_path, target)
    report = adopt(address, KEY, taker, **options)
    assert (report.digest, report.files) == (state_digest(state), ())
    assert same(opened().load_state_dict(KEY), state)


@RANGES
@TARGETS
def test_what_a_file_on_the_web_says_of_itself_is_kept(start_recording, tmp_path, target, ranges):
    state = values(net(0))
    server = start_recording({"a b.safetensors": save(state, SAID)}, ranges=ranges)
    taker, options, opened = into(tmp_path, target)
    adopt(f"{server.url}/a%20b.safetensors?download=true", KEY, taker, **options)
    opened().materialize(KEY, tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert file.metadata() == SAID


@TARGETS
def test_shards_on_the_web_come_back_as_they_were(start_recording, tmp_path, store, target):
    source = write(tmp_path / "source", FOLDERS["shards"]())
    (source / "config.json").unlink()
    server = start_recording(source)
    taker, options, opened = into(tmp_path, target)
    adopt(f"{server.url}/model.safetensors.index.json?sig=SECRET", KEY, taker, **options)
    opened().materialize(KEY, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)


def test_renamed_shards_on_the_web_become_one_file(start_recording, tmp_path, store):
    source = write(tmp_path / "source", FOLDERS["shards"]())
    server = start_recording(source)
    index = f"{server.url}/model.safetensors.index.json"
    report = adopt(index, KEY, store, add_prefix="new.")
    assert report.files == ()
    store.materialize(KEY, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"model.safetensors"}


def test_no_file_is_asked_for_once_more_for_what_it_says(start_recording, store):
    server = start_recording({"x.safetensors": save(values(net(0)), SAID)})
    adopt(f"{server.url}/x.safetensors", KEY, store)
    asked = [record.range for record in server.requests]
    assert len(asked) == len({*asked}) > 0


@RANGES
@pytest.mark.parametrize("place", ["hub", "web", "here"])
@TARGETS
def test_what_was_chosen_and_passed_over_is_told(  # noqa: PLR0917
    hub_only, start_recording, tmp_path, target, place, ranges
):
    state = {f"module.{name}": tensor for name, tensor in values(net(0)).items()}
    content = saved({"state_dict": {**state, "step": 3}, "epoch": 1})
    address = str(write(tmp_path / "s", {}) / "x.ckpt")
    if place == "hub":
        hub_only.add("org/model", {"x.ckpt": content, "notes.bin.txt": b""})
        address = "hf://org/model"
    elif place == "web":
        address = f"{start_recording({'x.ckpt': content}, ranges=ranges).url}/x.ckpt"
    else:
        (tmp_path / "s").mkdir()
        Path(address).write_bytes(content)
    taker, options, _ = into(tmp_path, target)
    report = adopt(address, KEY, taker, tensors_only=True, **options)
    assert (report.select, report.passed_over) == ("state_dict", ("step",))
    assert report.prefix == "module."
    assert report.digest == state_digest(state)
    again = adopt(address, OTHER, taker, tensors_only=True, strip_prefix="module.", **options)
    assert (again.digest, again.prefix) == (state_digest(values(net(0))), None)
    with pytest.raises((FormatError, FetchError), match=r"tensors.only|--tensors-only"):
        adopt(address, StateKey.parse("pytorch.net.c"), taker, **options)


PAGE = b"<!DOCTYPE html><html><body>" + b"please log in " * 100
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n"


@RANGES
@pytest.mark.parametrize(
    ("name", "content", "found", "way_out"),
    [
        ("x.safetensors", PAGE, "a web page (HTML)", "the address of the file itself"),
        ("x.safetensors", POINTER, "a pointer of Git LFS", "git lfs pull"),
        ("x.safetensors", b"", "an empty file", "bring it again"),
        ("x.safetensors", b"\x89HDF\r\n\x1a\n" + b"0" * 900, "an HDF5 file", "its own library"),
        ("x.safetensors", "torch", "a checkpoint that torch.save wrote", "format='torch'"),
        ("x.safetensors", "gzip", "a file that gzip compressed", "format='torch-gzip'"),
        ("x.pth", "plain", "a safetensors file", "format='safetensors'"),
        ("x.pth", "gzip", "a file that gzip compressed", "format='torch-gzip'"),
        ("x.pth", b"", "an empty file", "bring it again"),
        ("x.pth", PAGE, "a web page (HTML)", "the address of the file itself"),
        ("x.pth", POINTER, "a pointer of Git LFS", "git lfs pull"),
        ("x.pth.gz", PAGE, "a web page (HTML)", "the address of the file itself"),
        ("x.pth.gz", "torch", "a checkpoint that torch.save wrote", "format='torch'"),
    ],
)
def test_what_an_address_serves_is_called_by_its_name(  # noqa: PLR0917
    start_recording, store, name, content, found, way_out, ranges
):
    state = values(net(0))
    kinds = {"torch": saved(state), "plain": save(state), "gzip": gzip.compress(saved(state))}
    given = kinds.get(content, content) if isinstance(content, str) else content
    url = f"{start_recording({name: given}, ranges=ranges).url}/{name}"
    with pytest.raises((FormatError, FetchError)) as caught:
        adopt(url, KEY, store)
    assert f"found: {found}" in str(caught.value)
    assert way_out in str(caught.value)
    if content in kinds:
        form = way_out.partition("'")[2].rstrip("'")
        assert adopt(url, KEY, store, format=form).digest == state_digest(state)


@RANGES
@pytest.mark.parametrize("kind", ["plain", "torch", "gzip"])
@pytest.mark.parametrize("way", ["bare", "download", "redirect", "disposition", "format"])
@TARGETS
def test_an_address_that_tells_nothing_is_read_by_its_first_bytes(  # noqa: PLR0917
    start_recording, tmp_path, way, kind, ranges, target
):
    state = values(net(0))
    kinds = {"torch": saved(state), "plain": save(state), "gzip": gzip.compress(saved(state))}
    behind = start_recording({"blob": kinds[kind]}, ranges=ranges)
    signed = f"{behind.url}/blob?Signature=SECRET&Expires=1"

    def before(record):
        return Reply.redirect(signed) if record.name == "get" else None

    def named(record):
        name = 'attachment; filename="weights.bin"'
        return None if record.name else Reply(headers={"Content-Disposition": name}, body=content)

    content = kinds[kind]
    url = {
        "bare": f"{behind.url}/blob",
        "download": f"{behind.url}/blob?download=true",
        "redirect": f"{start_recording(before=before).url}/get?download=true",
        "disposition": f"{start_recording(before=named).url}/",
        "format": f"{behind.url}/blob#x.pth",
    }[way]
    form = {"plain": "safetensors", "torch": "torch", "gzip": "torch-gzip"}[kind]
    options = {"format": form} if way == "format" else {}
    taker, mirror, opened = into(tmp_path, target)
    report = adopt(url, KEY, taker, **options, **mirror)
    assert report.digest == state_digest(state)
    if target == "manifest":
        assert "SECRET" not in taker.read_text()
        assert Manifest.read(taker).states[KEY].mirrors[0].format == form
    assert same(opened().load_state_dict(KEY), state)
