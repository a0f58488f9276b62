"""Making room in a cache removes whole states, least recently used first, and no saved ones."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
import torch

from mlstate import LocalStateStore, Manifest, ManifestStore, StateKey
from mlstate.errors import ObjectNotFoundError, ReadOnlyStoreError
from mlstate.objects import MemoryObjectStore

KEYS = [StateKey.parse(f"pytorch.net.{name}") for name in "abc"]
SIZE = 40_000
HOUR = 3600


@pytest.fixture
def store(tmp_path):
    """A manifest of three states that share a tensor; all are fetched, a first, c last."""
    source = LocalStateStore(tmp_path / "source")
    for number, key in enumerate(KEYS):
        own = torch.full((SIZE // 4,), number + 2.0)
        tensors = {"shared": torch.ones(SIZE // 4), "own": own}
        source.save_state_dict(tensors, key, files={"name": str(key).encode()})
    entries = {key: replace(source.get(key).entry, objects=("source",)) for key in KEYS}
    Manifest(entries, objects=("source",)).write(tmp_path / "weights.toml")
    store = ManifestStore(tmp_path / "weights.toml", cache=tmp_path / "cache")
    for number, key in enumerate(KEYS):
        store.fetch(key)
        used(tmp_path, store, key, hours=10 - number)
    age_objects(tmp_path / "cache", hours=10)
    return store


def used(tmp_path, store, key, hours):
    path = tmp_path / "cache" / "roots" / store.digest(key)
    os.utime(path, (time.time() - hours * HOUR,) * 2)


def age_objects(cache, hours):
    for path in cache.glob("objects/*/*"):
        os.utime(path, (time.time() - hours * HOUR,) * 2)


def cached(store):
    return [key for key in KEYS if store.objects.size(store.digest(key)) is not None]


def test_what_was_not_used_for_long_goes_and_is_fetched_again_when_needed(store, tmp_path):
    report = store.prune(older_than=9.5 * HOUR)
    assert list(report.states.values()) == [str(KEYS[0])]
    assert cached(store) == KEYS[1:]
    assert sum(report.objects.values()) == pytest.approx(SIZE + 4096, abs=1000)
    assert not any((tmp_path / "cache" / "trash").iterdir())
    for key in KEYS:
        assert store.load_state_dict(key)["shared"].sum() == SIZE / 4
        assert store.files(key)["name"] == str(key).encode()


def test_a_size_keeps_those_that_were_used_last(store):
    report = store.prune(max_size=2 * SIZE + 20_000)
    assert sorted(report.states.values()) == [str(key) for key in KEYS[:2]]
    assert cached(store) == KEYS[2:]
    store.prune(max_size=0)
    assert cached(store) == []


def test_loading_counts_as_use(store):
    store.load_state_dict(KEYS[0])
    store.prune(older_than=HOUR)
    assert cached(store) == KEYS[:1]


def test_a_dry_run_says_the_same_and_changes_nothing(store):
    said = store.prune(max_size=2 * SIZE + 20_000, dry_run=True)
    assert cached(store) == KEYS
    assert store.prune(max_size=2 * SIZE + 20_000) == said


def test_without_a_limit_nothing_goes(store):
    assert not store.prune().states
    assert cached(store) == KEYS


def test_what_is_used_again_before_it_is_gone_is_kept_again(store, tmp_path):
    age_objects(tmp_path / "cache", hours=0)
    assert len(store.prune(max_size=0).states) == 3  # the objects are too young to go
    store.load_state_dict(KEYS[1])
    age_objects(tmp_path / "cache", hours=10)
    store.prune()
    assert cached(store) == [KEYS[1]]


def test_a_store_that_serves_as_a_cache_is_not_told_what_to_keep(store, tmp_path):
    ManifestStore(tmp_path / "weights.toml", cache=tmp_path / "source").load_state_dict(KEYS[0])
    assert not (tmp_path / "source" / "roots").exists()


def test_what_has_just_been_fetched_is_not_taken_from_under_a_fetch(store, tmp_path):
    age_objects(tmp_path / "cache", hours=0)
    report = store.prune(max_size=0)
    assert len(report.states) == 3
    assert not report.objects  # young objects wait for a later pruning
    age_objects(tmp_path / "cache", hours=2)
    assert len(store.prune().objects) == 4 + 3 + 3  # tensors, state objects, files


def test_states_that_were_saved_in_the_folder_stay(store, tmp_path):
    own = LocalStateStore(tmp_path / "cache")
    key = StateKey.parse("pytorch.net.mine")
    own.save_state_dict({"shared": torch.ones(SIZE // 4)}, key)
    age_objects(tmp_path / "cache", hours=20 * 24)
    for _ in range(2):
        store.prune(max_size=0)
        age_objects(tmp_path / "cache", hours=20 * 24)
    assert own.load_state_dict(key)["shared"].sum() == SIZE / 4
    assert cached(store) == []


def test_pruning_a_store_spares_what_a_cache_in_its_folder_keeps(store, tmp_path):
    own = LocalStateStore(tmp_path / "cache")
    for _ in range(2):
        own.prune(grace_seconds=0)
    (tmp_path / "source").rename(tmp_path / "gone")
    for key in KEYS:
        store.load_state_dict(key)
        assert store.files(key)["name"]


def test_a_root_that_cannot_be_read_keeps_nothing_and_breaks_nothing(store, tmp_path):
    (tmp_path / "cache" / "roots" / store.digest(KEYS[0])).write_bytes(b"\xff")
    (tmp_path / "cache" / "roots" / "note.txt").write_text("mine")
    store.prune()
    assert cached(store) == KEYS[1:]
    assert (tmp_path / "cache" / "roots" / "note.txt").exists()


def test_a_cache_that_is_no_folder_is_not_pruned(tmp_path):
    path = tmp_path / "weights.toml"
    path.write_text("version = 1\n")
    with pytest.raises(ReadOnlyStoreError):
        ManifestStore(path, cache=MemoryObjectStore()).prune()


def test_what_no_mirror_has_any_more_is_named(store, tmp_path):
    store.prune(max_size=0)
    (tmp_path / "weights.toml").write_text(
        (tmp_path / "weights.toml").read_text().replace('objects = [\n    "source",\n]\n', "")
    )
    again = ManifestStore(tmp_path / "weights.toml", cache=tmp_path / "cache")
    with pytest.raises(ObjectNotFoundError, match="lists no mirrors"):
        again.load_state_dict(KEYS[0])
