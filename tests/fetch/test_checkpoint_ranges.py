"""Torch checkpoints on servers: of a zip archive only what is missing is asked for, by ranges."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mlstate import StateKey, state_digest
from mlstate.errors import FetchError
from mlstate.fetch import checkpoint_runs, download, file_mirror, gather
from mlstate.locations import parse_mirror
from mlstate.manifests import StateEntry
from tests.servers.recording import Reply, serve
from tests.support.fetching import check_cache, leftovers, manifest_store, publish, write_manifest
from tests.support.models import same

KEY = StateKey.parse("pytorch.net.a")
BASE = StateKey.parse("pytorch.net.base")
STRUCTURE = 54 << 10
"""What the front and the end of a file take at most where nothing is known of the state: bytes."""


def saved(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def as_older_torch(data: bytes, *, pickle_last: bool = False) -> bytes:
    """The same entries as torch 1 wrote them: none aligned, no byte order, in another order."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(file, "w") as target:
        names = [name for name in source.namelist() if "/." not in name and "byteorder" not in name]
        for name in sorted(names, key=lambda n: n.endswith("data.pkl")) if pickle_last else names:
            target.writestr(name, source.read(name))
    return file.getvalue()


class Scene:
    """A state that a server has as ``net.pth``, with and without its state object."""

    def __init__(self, folder: Path, state: Mapping[str, torch.Tensor], content: bytes) -> None:
        self.folder = folder
        self.state = {
            name: tensor.resolve_conj().contiguous().clone() for name, tensor in state.items()
        }
        self.published = publish(folder / "web", KEY, self.state)
        self.file = folder / "web" / "net.pth"
        self.file.write_bytes(content)

    def store(self, url: str, *, known: bool, cache: str = "cache", **mirror: Any):
        """A store that knows the state object, or the digest and the size alone."""
        given = {"url": f"{url}/net.pth", "format": "torch", **mirror}
        if known:
            given["state"] = str(self.folder / "web" / self.published.state_object)
        path = write_manifest(self.folder / f"{cache}.toml", self.published, mirrors=[given])
        return manifest_store(path, self.folder / cache, attempts=1)

    def pinned(self, base: str, *, cache: str = "cache", **mirror: Any) -> StateEntry:
        """The entry that pinning makes of the mirror."""
        given = parse_mirror({"url": f"{base}/net.pth", "format": "torch", **mirror})
        store = self.store(base, known=False, cache=cache)
        return store.fetcher.pin(StateEntry(KEY, None, None, (given,)))

    def check(self, store) -> None:
        store.fetch(KEY)
        assert same(store.load_state_dict(KEY), self.state)
        check_cache(store.objects.own.root)
        assert leftovers(store.objects.own.root) == {}


def layers(seed: int, count: int = 30) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"layer.{i}.weight": torch.randn(64, 200, generator=generator) for i in range(count)}
    return tensors | {"head.weight": torch.randn(50, 200, generator=generator)}


def fine_tune(head: str = "head.weight") -> tuple[dict, dict]:
    base = layers(0)
    return base, base | {head: base[head] + 1}


@pytest.mark.parametrize("head", ["head.weight", "layer.17.weight"])
@pytest.mark.parametrize("order", ["as it is", "older", "pickle last"])
def test_of_a_fine_tune_only_the_head_is_asked_for(tmp_path, start_nginx, head, order):
    base, tuned = fine_tune(head)
    content = saved(tuned)
    if order != "as it is":
        content = as_older_torch(content, pickle_last=order == "pickle last")
    scene = Scene(tmp_path, tuned, content)
    with_base(tmp_path, base)
    nginx = start_nginx(tmp_path / "web")
    store = scene.store(nginx.url("").rstrip("/"), known=True)
    report = store.fetch(KEY)
    log = nginx.log()
    assert same(store.load_state_dict(KEY), tuned)
    assert report.fetched < tuned[head].nbytes + 40_000
    assert all(served.status == 206 for served in log)
    served = sum(served.bytes_sent for served in log)
    # The state's names tell how long the structure is: some 7 kB here, where the file has 1.6 MB.
    extra = 70_000 if order == "pickle last" else 20_000
    assert served < tuned[head].nbytes + extra
    assert len(log) <= (5 if order == "pickle last" else 3)


def with_base(folder: Path, base: dict[str, torch.Tensor]) -> None:
    """Put a state into the cache."""
    published = publish(folder / "base", BASE, base)
    manifest = write_manifest(folder / "b.toml", published, objects=[str(folder / "base/store")])
    manifest_store(manifest, folder / "cache").fetch(BASE)


@pytest.mark.parametrize("large", [64 << 20, 30_000], ids=["", "segments"])
def test_a_storage_costs_one_request_for_header_and_content(
    tmp_path, start_nginx, monkeypatch, large
):
    monkeypatch.setattr(checkpoint_runs, "LARGE", large)
    monkeypatch.setattr(gather, "LARGE", large)
    base = layers(0)
    changed = [f"layer.{i}.weight" for i in range(2, 30, 4)]
    tuned = base | {name: base[name] + 1 for name in changed}
    scene = Scene(tmp_path, tuned, saved(tuned))
    with_base(tmp_path, base)
    nginx = start_nginx(tmp_path / "web")
    store = scene.store(nginx.url("").rstrip("/"), known=True)
    store.fetch(KEY)
    log = nginx.log()
    assert same(store.load_state_dict(KEY), tuned)
    headers = 0 if large > 30_000 else len(changed)  # what comes in segments has one for its header
    assert len(log) <= 2 + len(changed) + headers
    wanted = sum(tuned[name].nbytes for name in changed)
    assert sum(served.bytes_sent for served in log) < 1.02 * wanted + 20_000


def test_shards_and_parts_of_checkpoints(tmp_path, start_nginx):
    state = layers(0)
    names = sorted(state)
    scene = Scene(tmp_path, state, saved({name: state[name] for name in names[::2]}))
    others = {"model": {f"module.{name}": state[name] for name in names[1::2]}}
    (tmp_path / "web" / "other.pth").write_bytes(saved(others))
    nginx = start_nginx(tmp_path / "web")
    parts = [
        {"url": nginx.url("net.pth"), "format": "torch"},
        {
            "url": nginx.url("other.pth"),
            "format": "torch",
            "select": "model",
            "strip_prefix": "module.",
        },
    ]
    for state_object in ({}, {"state": nginx.url(scene.published.state_object)}):
        mirror = {"parts": parts, **state_object}
        cache = f"cache-{len(state_object)}"
        path = write_manifest(tmp_path / f"{cache}.toml", scene.published, mirrors=[mirror])
        scene.check(manifest_store(path, tmp_path / cache, attempts=1))
    assert {served.status for served in nginx.log() if "pth" in served.path} == {206}


def strange() -> dict[str, torch.Tensor]:
    """Tensors that do not lie in a storage of their own from front to back."""
    generator = torch.Generator().manual_seed(3)
    big = torch.randn(300, 200, generator=generator)
    flat = torch.randn(60_000, generator=generator)
    tied = torch.randn(100, 90, generator=generator)
    return {
        "transposed": big.T,
        "strided": torch.randn(400, 100, generator=generator)[::2, 1:],
        "small.transposed": torch.randn(9, 7, generator=generator).T,
        "flat.0": flat[:20_000].view(100, 200),
        "flat.1": flat[20_000:50_000],
        "flat.overlapping": flat[10_000:25_000],
        "tied.a": tied,
        "tied.b": tied,
        "half": torch.randn(100, 100, generator=generator).bfloat16(),
        "bool": torch.rand(200, 100, generator=generator) > 0.5,
        "bool.view": (torch.rand(300, 100, generator=generator) > 0.5)[:, :90],
        "complex": torch.randn(60, 60, dtype=torch.complex64, generator=generator).conj(),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(7),
        "expanded": torch.randn(1, 6000, generator=generator).expand(3, 6000),
        "last": torch.randn(3, generator=generator),
    }


def written(how: str) -> bytes:
    """A file of `strange` tensors, deep inside, as several versions of torch write it."""
    nested = {"epoch": 3, "state_dict": strange(), "other": object}
    aligned = {"save.storage_alignment": 4096} if how == "aligned to 4096" else {}
    with torch.utils.serialization.config.patch(aligned):
        torch.serialization.set_crc32_options(how != "no sums")
        try:
            data = saved(nested)
        finally:
            torch.serialization.set_crc32_options(True)
    if how in ("older", "pickle last"):
        return as_older_torch(data, pickle_last=how == "pickle last")
    return data


@pytest.mark.parametrize(
    "writer", ["as it is", "aligned to 4096", "older", "pickle last", "no sums"]
)
@pytest.mark.parametrize("large", [64 << 20, 30_000], ids=["", "segments"])
@pytest.mark.parametrize("how", ["state object known", "digest known", "nothing known"])
def test_tensors_come_as_they_are_however_they_lie(  # noqa: PLR0917
    tmp_path,
    recording_server,
    monkeypatch,
    writer,
    how,
    large,
):
    monkeypatch.setattr(checkpoint_runs, "LARGE", large)
    monkeypatch.setattr(gather, "LARGE", large)
    scene = Scene(tmp_path, strange(), written(writer))
    recording_server.files = tmp_path / "web"
    if how == "nothing known":
        entry = scene.pinned(recording_server.url, select="state_dict")
        assert entry.digest == state_digest(strange())
        assert leftovers(tmp_path / "cache") == {}
    store = scene.store(
        recording_server.url, known=how == "state object known", select="state_dict"
    )
    scene.check(store)
    assert {record.status for record in recording_server.requests} == {
        206
    }  # nothing was read whole


@pytest.mark.parametrize("kind", ["zip", "legacy", "gzip", "gzip legacy"])
@pytest.mark.parametrize("server", ["plain", "no-ranges"])
def test_what_has_no_parts_is_read_whole(tmp_path, start_nginx, kind, server):
    state = strange()
    content = saved(state, _use_new_zipfile_serialization="legacy" not in kind)
    form = "torch-gzip" if "gzip" in kind else "torch"
    if "gzip" in kind:
        content = gzip.compress(content, 1)
    scene = Scene(tmp_path, state, content)
    nginx = start_nginx(tmp_path / "web")
    url = nginx.url("", server).rstrip("/")
    for known in (True, False):
        scene.check(scene.store(url, known=known, cache=f"cache-{known}", format=form))
    assert scene.pinned(url, cache="pinning", format=form).digest == state_digest(state)
    sizes = [served.bytes_sent for served in nginx.log()]
    if kind != "zip" or server == "no-ranges":
        # Once each; and a server without ranges begins to send it when it is asked for a part.
        assert 3 <= sizes.count(len(content)) <= (6 if server == "no-ranges" else 3)


WITHOUT_TORCH = """
import sys
from mlstate.__main__ import main
try:
    main()
finally:
    assert "torch" not in sys.modules, "torch was imported"
    assert "numpy" not in sys.modules, "numpy was imported"
"""


@pytest.mark.parametrize("kind", ["zip", "legacy", "gzip"])
@pytest.mark.parametrize("command", ["fetch", "lock", "add --mirror", "add"])
def test_no_torch_is_imported(tmp_path, recording_server, kind, command):
    state = strange()
    content = saved(state, _use_new_zipfile_serialization=kind != "legacy")
    scene = Scene(tmp_path, state, gzip.compress(content, 1) if kind == "gzip" else content)
    recording_server.files = tmp_path / "web"
    url, form = recording_server.url, "torch-gzip" if kind == "gzip" else "torch"
    manifest = tmp_path / "cache.toml"
    scene.store(url, known=False, format=form)
    if command == "lock":
        mirror = f'{{url = "{url}/net.pth", format = "{form}"}}'
        manifest.write_text(f'version = 1\n[states."{KEY}"]\nmirrors = [{mirror}]')
    name = "net.pth.gz" if kind == "gzip" else "net.pth"
    if command.startswith("add"):
        scene.file.rename(scene.file.with_name(name))
    new = StateKey.parse("pytorch.net.new")
    arguments = {
        "fetch": ["fetch", str(KEY), "--store", str(manifest)],
        "lock": ["lock", str(manifest)],
        "add --mirror": ["add", str(new), f"{url}/{name}", "--mirror", "--store", str(manifest)],
        "add": ["add", str(new), f"{url}/{name}", "--store", str(tmp_path / "new")],
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, *arguments[command]],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    if command != "fetch":
        assert state_digest(state) in done.stdout


def refused(store) -> str:
    with pytest.raises(FetchError) as caught:
        store.fetch(KEY)
    assert leftovers(store.objects.own.root) == {}
    check_cache(store.objects.own.root)
    [(_, said)] = caught.value.attempts
    return said


def entry_of(data: bytes, name: str) -> zipfile.ZipInfo:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return next(info for info in archive.infolist() if info.filename.endswith(name))


def directory_entry(data: bytes, name: str) -> int:
    """Where the directory's record of an entry begins."""
    full = entry_of(data, name).filename.encode()
    return data.rindex(full) - 46


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def hostile() -> dict[str, bytes]:
    data = saved(layers(0))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        header = entry_of(data, "data/17").header_offset
        record = directory_entry(data, "data/17")
        other = archive.getinfo("archive/data/3").header_offset

    def word(number: int) -> bytes:
        return number.to_bytes(4, "little")

    return {
        "outside": patched(data, record + 42, word(len(data) + 1000)),
        "far outside": patched(data, record + 42, word(0xFFFF_FFF0)),
        "overlapping": patched(data, record + 42, word(other + 64)),
        "another's header": patched(data, record + 42, word(header + 2)),
        "name of another": patched(data, header + 30, b"archive/data/18"),
        "compressed, says its header": patched(data, header + 8, b"\x08\0"),
        "no header": patched(data, header, b"XXXX"),
        "extra as long as can be": patched(data, header + 28, b"\xff\xff"),
        "size of another": patched(data, record + 20, word(100) + word(100)),
        "a pickle of 40 MB": saved({f"{'n' * 400_000}{i}": torch.ones(1) for i in range(100)}),
        "a damaged pickle": data.replace(b"layer.3.weight", b"layer.\xff.weight", 1),
        "no end": data[:-30],
        "two ends": data + data[-22:],
    }


@pytest.mark.parametrize("what", hostile())
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_a_hostile_file_is_refused_and_little_of_it_is_read(
    tmp_path, recording_server, what, known
):
    scene = Scene(tmp_path, layers(0), hostile()[what])
    recording_server.files = tmp_path / "web"
    said = refused(scene.store(recording_server.url, known=known))
    assert "checkpoint" in said or "archive" in said or "headers" in said or "entry" in said, said
    assert recording_server.bytes_sent < 3 << 20
    with pytest.raises(FetchError):
        scene.pinned(recording_server.url, cache="pinning")


def test_another_byte_order_is_refused(tmp_path, recording_server):
    data = saved(layers(0))
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(file, "w") as target:
        for info in source.infolist():
            is_order = info.filename.endswith("byteorder")
            target.writestr(info.filename, b"big" if is_order else source.read(info))
    scene = Scene(tmp_path, layers(0), file.getvalue())
    recording_server.files = tmp_path / "web"
    assert "little-endian" in refused(scene.store(recording_server.url, known=True))


@pytest.mark.parametrize("large", [64 << 20, 10_000], ids=["", "segments"])
@pytest.mark.parametrize("name", ["layer.3.weight", "transposed", "bool"])
def test_a_damaged_storage_is_noticed_whatever_is_known(
    tmp_path, recording_server, monkeypatch, large, name
):
    monkeypatch.setattr(checkpoint_runs, "LARGE", large)
    monkeypatch.setattr(gather, "LARGE", large)
    many = layers(2)
    state = layers(0) | {
        "transposed": many["layer.0.weight"].T,
        "bool": torch.cat([many["layer.1.weight"], many["layer.2.weight"]]) > 0,
    }
    data = bytearray(saved(state))
    stored = state[name].T if name == "transposed" else state[name]
    data[data.index(stored.contiguous().numpy().tobytes()) + 999] ^= 1
    scene = Scene(tmp_path, state, bytes(data))
    recording_server.files = tmp_path / "web"
    url = recording_server.url
    with pytest.raises(FetchError, match="wrong bytes came"):  # what else came stays, as partials
        scene.store(url, known=True).fetch(KEY)
    check_cache(tmp_path / "cache")
    said = refused(scene.store(url, known=False, cache="digest"))
    assert "CRC-32" in said
    assert f"tensor: {name}" in said
    with pytest.raises(FetchError, match="CRC-32"):
        scene.pinned(url, cache="pinning")
    assert check_cache(tmp_path / "pinning") == 0
    assert leftovers(tmp_path / "pinning") == {}


@pytest.mark.parametrize("says", ["another ETag", "nothing"])
@pytest.mark.parametrize("how", ["state object known", "nothing known"])
def test_a_file_that_changes_between_ranges_is_never_a_mixture(
    tmp_path, start_recording, says, how
):
    old, new = (saved(layers(seed)) for seed in (0, 1))
    assert len(old) == len(new)
    scene = Scene(tmp_path, layers(0), old)
    count = 0

    def change(record) -> Reply:
        nonlocal count
        count += 1
        etag = "" if says == "nothing" else '"old"' if count <= 2 else '"new"'
        reply = serve(record, old if count <= 2 else new, etag, True)
        if says == "nothing":
            reply.headers.pop("ETag", None)
        return reply

    server = start_recording({}, before=change)
    store = scene.store(server.url, known=True)
    fetch = (
        partial(scene.pinned, server.url) if how == "nothing known" else partial(store.fetch, KEY)
    )
    if (says, how) == ("another ETag", "nothing known"):  # it is read once more, whole
        assert fetch().digest == state_digest(layers(1))
        return
    with pytest.raises(FetchError) as caught:
        fetch()
    [(_, said)] = caught.value.attempts
    # Of another ETag all is read once more, as one piece: hosts may disagree about the same file.
    assert ("wrong bytes came" if how == "state object known" else "CRC-32") in said
    assert leftovers(tmp_path / "cache") == {}
    assert check_cache(tmp_path / "cache") == (how == "state object known")


@pytest.mark.parametrize("how", ["state object known", "digest known"])
@pytest.mark.parametrize("kind", ["plain", "transposed"])
def test_after_a_cut_only_the_rest_is_asked_for(tmp_path, start_recording, monkeypatch, how, kind):
    monkeypatch.setattr(checkpoint_runs, "LARGE", 20 << 20)
    monkeypatch.setattr(gather, "LARGE", 20 << 20)
    large = torch.randn(2048, 3072, generator=torch.Generator().manual_seed(5))  # 24 MiB
    state = layers(0, 8) | {"large": large if kind == "plain" else large.T}
    scene = Scene(tmp_path, state, saved(state))
    cut = True

    def refuse_the_second_segment(record) -> Reply | None:
        first, _, last = (record.range or "=-").partition("=")[2].partition("-")
        long = first and 1 << 20 < int(last) - int(first) < 10 << 20
        return Reply(503) if cut and long else None

    server = start_recording(tmp_path / "web", before=refuse_the_second_segment)
    store = scene.store(server.url, known=how == "state object known")
    store.fetcher.connections = 1
    with pytest.raises(FetchError, match="503"):
        store.fetch(KEY)
    size, came, cut = scene.file.stat().st_size, server.bytes_sent, False
    assert came > 15 << 20
    server.reset()
    scene.check(store)
    assert came + server.bytes_sent < size + (1 << 20)  # the structure, and a block


@pytest.mark.parametrize("kind", ["plain", "transposed", "legacy", "safetensors"])
def test_of_an_unpinned_state_that_failed_nothing_is_left(
    tmp_path, start_recording, monkeypatch, kind
):
    for module in (checkpoint_runs, gather, file_mirror, download):
        monkeypatch.setattr(module, "LARGE", 20 << 20)
    large = torch.randn(2048, 3072, generator=torch.Generator().manual_seed(5))  # 24 MiB
    state = {"large": large.T if kind == "transposed" else large, "more": torch.ones(9000)}
    scene = Scene(tmp_path, state, saved(state, _use_new_zipfile_serialization=kind != "legacy"))

    def refuse_the_second_segment(record) -> Reply | None:
        first, _, last = (record.range or "=-").partition("=")[2].partition("-")
        if not (first and 1 << 20 < int(last) - int(first) < 10 << 20):
            return None
        end = time.monotonic() + 10
        while server.bytes_sent <= 1 << 20 and time.monotonic() < end:
            time.sleep(0.01)  # the first one is on its way
        return Reply(503)

    server = start_recording(tmp_path / "web", before=refuse_the_second_segment)
    file = "model.safetensors" if kind == "safetensors" else "net.pth"
    form = "safetensors" if kind == "safetensors" else "torch"
    with pytest.raises(FetchError, match="503"):
        scene.pinned(server.url, url=f"{server.url}/{file}", format=form)
    assert server.bytes_sent > 1 << 20
    assert leftovers(tmp_path / "cache") == {}


def test_memory_does_not_grow_with_the_tensors(tmp_path, start_recording, monkeypatch):
    monkeypatch.setattr(checkpoint_runs, "LARGE", 40 << 20)
    monkeypatch.setattr(gather, "LARGE", 40 << 20)
    state = {f"t{i}": torch.randn(2048, 1024 * size).T for i, size in enumerate((3, 4, 7))}
    state["plain"] = torch.randn(12 << 20)  # 24, 32, 56 and 48 MiB
    scene = Scene(tmp_path, state, saved(state))
    store = scene.store(start_recording(tmp_path / "web").url, known=True)
    tracemalloc.start()
    try:
        store.fetch(KEY)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert store.digest(KEY) == state_digest(store.load_state_dict(KEY))
