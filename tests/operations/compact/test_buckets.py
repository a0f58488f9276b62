"""Compaction of a store in a bucket."""

from __future__ import annotations

import errno

import pytest

from mlstate import LocalStateStore, compact, usage, verify
from mlstate.format import layout
from mlstate.format.encoded_index import EncodedIndex
from mlstate.operations.compact import run
from tests.operations.compact.states import KEYS, digests, save_all, weights
from tests.support.buckets import bucket_store, contents


@pytest.fixture
def open_store(moto, tmp_path):
    """Opens the store, each time with an empty cache."""
    bucket, opened = moto.new_bucket(), []

    def open_it():
        opened.append(bucket)
        return bucket_store(moto, bucket, cache=tmp_path / str(len(opened)))

    open_it.names = lambda folder: [n for n in contents(moto, bucket) if f"/{folder}/" in n]
    return open_it


def test_a_bucket_is_compacted_loads_and_comes_back(open_store):
    store = open_store()
    save_all(store, {key: weights(step, layers=1) for step, key in enumerate(KEYS[:3])})
    before, objects = digests(store), open_store.names("objects")
    report = compact(store)
    assert (report.objects, report.looked_at) == (2, 3)
    assert len(open_store.names("objects")) == len(objects) - 2
    assert digests(open_store()) == before
    assert verify(open_store()).ok
    used = usage(open_store())
    assert (used.encoded.objects, used.encoded.nbytes) == (2, report.after)
    assert used.disk.own + used.disk.shared == used.total
    assert compact(open_store()).objects == 0
    assert compact(open_store(), undo=True).objects == 2
    assert sorted(open_store.names("objects")) == sorted(objects)
    assert open_store.names("encoded") == []
    assert digests(open_store()) == before


def test_a_state_is_saved_encoded_into_a_bucket(open_store):
    store = open_store()
    store.save_state_dict(weights(0, layers=1), KEYS[0])
    store.save_state_dict(weights(1, layers=1), KEYS[1], compact=True)
    assert len([n for n in open_store.names("encoded") if "/states/" not in n]) == 1
    assert digests(open_store())[KEYS[1]] == store.digest(KEYS[1])


def test_each_state_has_an_index_of_its_encoded_objects(tmp_path):
    store = LocalStateStore(tmp_path / "store")
    save_all(store, {key: weights(step, layers=1) for step, key in enumerate(KEYS[:3])})
    report = compact(store)
    paths = {key: store.folder / layout.encoded_index_path(store.digest(key)) for key in KEYS[:3]}
    assert not paths[KEYS[0]].exists()
    sizes = 0
    for key in KEYS[1:3]:
        index = EncodedIndex.parse(paths[key].read_bytes(), store.digest(key))
        ((digest, form),) = index.forms.items()
        assert (form.size, form.depth, form.plain) == (store.own.encoded_size(digest), 1, False)
        assert store.own.plain_size(form.base) is not None
        sizes += form.size
    assert sizes == report.after
    store.save_state_dict(weights(3, layers=1), KEYS[3], compact=KEYS[0])
    assert (store.folder / layout.encoded_index_path(store.digest(KEYS[3]))).exists()
    compact(store, undo=True)
    assert not any(path.exists() for path in paths.values())


def indexes_of(store, key) -> dict:
    data = store.own.encoded_index(store.digest(key))
    return {} if data is None else EncodedIndex.parse(data, store.digest(key)).forms


def test_a_run_says_what_one_that_was_killed_has_not_said(tmp_path, open_store):
    for store in (LocalStateStore(tmp_path / "store"), open_store()):
        save_all(store, {key: weights(step, layers=1) for step, key in enumerate(KEYS[:3])})
        compact(store)
        said = {key: indexes_of(store, key) for key in KEYS[:3]}
        assert [len(said[key]) for key in KEYS[:3]] == [0, 1, 1]
        store.own.put_encoded_index(store.digest(KEYS[1]), None)
        assert compact(store).objects == 0
        assert {key: indexes_of(store, key) for key in KEYS[:3]} == said


def test_what_was_encoded_before_the_disk_was_full_is_said(tmp_path, monkeypatch):
    store = LocalStateStore(tmp_path / "store")
    save_all(store, {key: weights(step, layers=1) for step, key in enumerate(KEYS[:3])})
    monkeypatch.setattr(run, "_BATCH", 1)
    put, times = type(store.own).put_encoded, []

    def full(self, *args, **options):
        times.append(1)
        if len(times) > 1:
            raise OSError(errno.ENOSPC, "full")
        return put(self, *args, **options)

    monkeypatch.setattr(type(store.own), "put_encoded", full)
    with pytest.raises(OSError, match="full"):
        compact(store)
    only = [key for key in KEYS[:3] if indexes_of(store, key)]
    assert len(only) == 1
    assert not any(form.plain for form in indexes_of(store, only[0]).values())


def test_a_state_that_takes_encoded_objects_of_others_has_an_index(tmp_path, open_store):
    for store in (LocalStateStore(tmp_path / "store"), open_store()):
        save_all(store, {key: weights(step, layers=1) for step, key in enumerate(KEYS[:2])})
        compact(store)
        taken = dict(weights(1, layers=1))
        store.save_state_dict({**taken, "more": taken["bias"] + 1}, KEYS[5])
        assert indexes_of(store, KEYS[5]) == indexes_of(store, KEYS[1]) != {}
