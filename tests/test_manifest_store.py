"""States that manifests list, over a cache; and the default store."""

from __future__ import annotations

import os
import subprocess
import sys
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
)
from mlstate.digests import Digest
from mlstate.errors import (
    ManifestError,
    ObjectNotFoundError,
    ReadOnlyStoreError,
    StateNotFoundError,
    UnpinnedStateError,
)
from mlstate.manifests import StateEntry
from mlstate.objects import MemoryObjectStore
from tests.models import LINEAR, net, same, values

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
    for path in (Path(__file__).parents[1] / "manifests").glob("*.toml"):
        assert Manifest.read(path).format() == path.read_text()


def test_the_default_store_needs_no_torch():
    program = (
        "import sys; from mlstate import Store, StateType;"
        "print(Store().get_state_keys(StateType('pytorch', 'bert-l6-h384')));"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
