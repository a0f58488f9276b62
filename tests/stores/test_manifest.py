"""States that manifests list, over a cache; and the default store."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlstate import (
    LocalStateStore,
    Manifest,
    ManifestStore,
    StateKey,
    StateType,
    Store,
    load_pretrained_model,
    lock,
    manifest_of,
)
from mlstate.digests import Digest
from mlstate.errors import (
    FormatError,
    ManifestError,
    ObjectNotFoundError,
    ReadOnlyStoreError,
    StateNotFoundError,
    UnpinnedStateError,
)
from mlstate.locations import parse_mirror
from mlstate.manifests import StateEntry
from mlstate.objects import MemoryObjectStore
from tests.support.models import LINEAR, net, same, values

KEY = StateKey(LINEAR, "a")
UNPINNED = StateKey(LINEAR, "unpinned")


@pytest.fixture
def local(tmp_path):
    store = LocalStateStore(tmp_path / "local")
    store.save(net(1), "a", files={"f": b"file"})
    return store


@pytest.fixture
def manifest(tmp_path, local):
    path = tmp_path / "manifests" / "models.toml"
    path.parent.mkdir()
    entry = local.get(KEY).entry
    Manifest({KEY: entry, UNPINNED: StateEntry(UNPINNED, None)}).write(path)
    return path


def test_it_lists_and_loads_from_the_cache(manifest, local):
    for path in (manifest, manifest.parent, str(manifest)):
        store = ManifestStore(path, cache=local.folder)
        assert store.get_state_keys(LINEAR) == [KEY, UNPINNED]
        assert store.get_state_keys(StateType("pytorch", "other")) == []
        assert store.exists(KEY)
        model = net(2)
        assert store.load(model, KEY).digest == local.digest(KEY)
        assert same(values(model), values(net(1)))
        assert store.files(KEY)["f"] == b"file"
        assert same(store.load_state_dict(KEY), values(net(1)))


def test_the_folder_of_a_store_is_a_manifest_too(local):
    store = ManifestStore(local.folder, cache=local.folder)
    store.load(net(2), KEY)


def test_an_unpinned_state_is_listed_and_refused(manifest, local):
    store = ManifestStore(manifest, cache=local.folder)
    assert store.exists(UNPINNED)
    for use in (store.digest, store.load_state_dict, lambda key: store.load(net(2), key)):
        with pytest.raises(UnpinnedStateError, match="pin it") as caught:
            use(UNPINNED)
        assert caught.value.path == str(manifest)


def test_it_cannot_save(manifest, local):
    with pytest.raises(ReadOnlyStoreError):
        ManifestStore(manifest, cache=local.folder).save(net(1), "b")


def test_what_the_cache_lacks_is_named(manifest, tmp_path):
    model = net(2)
    with pytest.raises(ObjectNotFoundError) as caught:
        ManifestStore(manifest, cache=tmp_path / "empty").load(model, KEY)
    assert caught.value.key == KEY
    assert "cache" in caught.value.remedy
    assert same(values(model), values(net(2)))
    assert not (tmp_path / "empty").exists()  # reading makes no folder


def test_a_cache_can_be_any_object_store(manifest, local):
    memory = MemoryObjectStore()
    for path in local.folder.glob("objects/*/*"):
        memory.put(path.parent.name + path.name, [path.read_bytes()])
    ManifestStore(manifest, cache=memory).load(net(2), KEY)


def test_caches_chain_the_read_only_ones_first(manifest, local, tmp_path, monkeypatch):
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "own"))
    chain = os.pathsep.join([str(tmp_path / "empty"), str(local.folder)])
    monkeypatch.setenv("MLSTATE_READONLY_CACHES", chain)
    ManifestStore(manifest).load(net(2), KEY)
    monkeypatch.delenv("MLSTATE_READONLY_CACHES")
    with pytest.raises(ObjectNotFoundError, match="own"):
        ManifestStore(manifest).load(net(2), KEY)
    monkeypatch.setenv("MLSTATE_CACHE", str(local.folder))
    ManifestStore(manifest).load(net(2), KEY)


def test_no_manifest_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ManifestError, match="no manifest here"):
        ManifestStore(tmp_path / "nothing")


def test_the_default_store_has_what_is_shipped_and_what_the_environment_names(
    manifest, local, monkeypatch
):
    bert = StateKey.parse("pytorch.bert-l6-h384.all-MiniLM-L6-v2")
    assert Store().get_state_keys(bert.state_type) == [bert]
    assert Store().digest(bert).startswith("8bc562ba")
    monkeypatch.setenv("MLSTATE_MANIFESTS", str(manifest))
    monkeypatch.setenv("MLSTATE_CACHE", str(local.folder))
    assert Store().exists(KEY)
    assert Store().exists(bert)
    model = net(2)
    assert load_pretrained_model(model, training_id="a") is model
    assert same(values(model), values(net(1)))
    with pytest.raises(StateNotFoundError):
        load_pretrained_model(model)  # there is no "imagenet"


def test_manifests_that_contradict_each_other_are_refused(manifest, monkeypatch, tmp_path):
    other = tmp_path / "other.toml"
    Manifest({KEY: StateEntry(KEY, Digest("0" * 64))}).write(other)
    monkeypatch.setenv("MLSTATE_MANIFESTS", os.pathsep.join([str(manifest), str(other)]))
    with pytest.raises(ManifestError) as caught:
        Store()
    assert str(manifest) in str(caught.value)
    assert str(other) in str(caught.value)


@pytest.mark.parametrize("names", [("a.toml", "b.toml"), ("b.toml", "a.toml")])
def test_who_pins_a_state_decides_for_who_only_lists_it(local, tmp_path, names):
    folder = tmp_path / "several"
    folder.mkdir()
    Manifest({KEY: StateEntry(KEY, None)}).write(folder / names[0])
    Manifest({KEY: local.get(KEY).entry}).write(folder / names[1])
    assert ManifestStore(folder, cache=local.folder).digest(KEY) == local.digest(KEY)


def test_the_shipped_manifests_are_as_mlstate_writes_them():
    for path in (Path(__file__).parents[2] / "manifests").glob("*.toml"):
        assert Manifest.read(path).format() == path.read_text()


def test_the_default_store_needs_no_torch():
    program = (
        "import sys; from mlstate import Store, StateType;"
        "print(Store().get_state_keys(StateType('pytorch', 'bert-l6-h384')));"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_mirror_of_ones_own_comes_before_those_of_a_shipped_state(local, tmp_path, monkeypatch):
    """As for a machine without the internet: the state is shipped, the mirror is in the house."""
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    entry = replace(local.get(KEY).entry, mirrors=(parse_mirror("https://weights.invalid/a"),))
    Manifest({KEY: entry}).write(shipped / "a.toml")
    monkeypatch.setattr("mlstate.stores.manifest.shipped_manifests", lambda: shipped)
    own = tmp_path / "own" / "mine.toml"
    own.parent.mkdir()
    Manifest({KEY: replace(local.get(KEY).entry, files={})}, objects=("../local",)).write(own)
    monkeypatch.setenv("MLSTATE_MANIFESTS", str(own))
    store = Store()
    store.load(net(2), KEY)
    assert store.files(KEY)["f"] == b"file"  # the shipped one names it, the own mirror has it
    found = store.get(KEY).entry
    assert found.objects == (str(local.folder),)
    assert [mirror.urls for mirror in found.mirrors] == [("https://weights.invalid/a",)]
    assert str(own) in found.origin
    assert str(shipped / "a.toml") in found.origin


def test_what_two_manifests_say_of_a_state_is_put_together(local, tmp_path):
    base = local.get(KEY).entry
    for name, mirror, meta in (("a", "a.safetensors", {"n": 1}), ("b", "b.safetensors", {"m": 2})):
        folder = tmp_path / "both" / name
        folder.mkdir(parents=True)
        mirrors = (parse_mirror(mirror), parse_mirror("https://weights.invalid/both"))
        Manifest({KEY: replace(base, mirrors=mirrors, meta=meta)}).write(folder / "x.toml")
    found = ManifestStore(tmp_path / "both", cache=local.folder).get(KEY).entry
    assert [mirror.urls[0] for mirror in found.mirrors] == [
        str(tmp_path / "both" / "a" / "a.safetensors"),
        "https://weights.invalid/both",
        str(tmp_path / "both" / "b" / "b.safetensors"),
    ]
    assert found.meta == {"n": 1, "m": 2}


def test_a_name_that_looks_misspelt_is_said_to_be_and_never_pinned_anew(local, tmp_path):
    path = tmp_path / "typo.toml"
    text = f'version = 1\n\n[states."{KEY}"]\nblak3 = "{"0" * 64}"\nmirror = ["x"]\n'
    path.write_text(text)
    with pytest.warns(UserWarning, match="did you mean") as warned:
        store = ManifestStore(path, cache=local.folder)
    said = [str(warning.message) for warning in warned]
    assert any("blak3" in message and "did you mean blake3" in message for message in said)
    assert any("did you mean mirrors" in message for message in said)
    with pytest.raises(UnpinnedStateError) as caught:
        store.load(net(2), KEY)
    assert caught.value.remedy == "call it blake3"
    with (
        pytest.warns(UserWarning, match="did you mean"),
        pytest.raises(UnpinnedStateError, match="call it blake3"),
    ):
        lock(path, cache=local.folder)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "call",
    [
        lambda local, path: manifest_of(local, KEY),
        lambda local, path: manifest_of(local, [str(KEY)]),
        lambda local, path: manifest_of(local, objects="https://weights.invalid"),
        lambda local, path: lock(path, KEY),
        lambda local, path: lock(path, str(KEY)),
    ],
)
def test_one_thing_where_a_list_is_needed_is_refused(call, local, manifest):
    with pytest.raises(FormatError, match=r"list|StateKey"):
        call(local, manifest)
