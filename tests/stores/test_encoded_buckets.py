"""A bucket in which tensor objects are in encoded form: loads, copies, prunings."""

from __future__ import annotations

import pytest

import mlstate
from mlstate import LocalStateStore, StateKey
from mlstate.format.tensor_object import object_size
from mlstate.reading import read_state
from tests.support.buckets import bucket_store, contents
from tests.support.encoding import encode_all, near_tensors
from tests.support.models import same

SHAPES = {"embedding": (700, 900), "head": (40, 300), "bias": (7,)}
KEYS = [StateKey.parse(f"pytorch.net.{name}") for name in ("a", "b", "c")]
ALL_OLD = -60.0


def tensors(step: int):
    return near_tensors(1, step, **SHAPES)


class Scene:
    """A store in a bucket, encoded, and what opens it with an empty cache."""

    def __init__(self, server, folder) -> None:
        self._server, self._bucket, self._folder = server, server.new_bucket(), folder
        self._opened = 0
        store = self.store()
        for step, key in enumerate(KEYS):
            store.save_state_dict(tensors(step), key)
        found = [read_state(store.get(key).entry, store.own) for key in KEYS]
        self.refs = [ref for state in found for ref in state.refs.values()]
        encode_all(store.own, self.refs)

    def store(self):
        self._opened += 1
        return bucket_store(self._server, self._bucket, cache=self._folder / str(self._opened))

    def names(self, folder: str) -> list[str]:
        return [n for n in contents(self._server, self._bucket) if f"/{folder}/" in n]

    def empty_trash(self) -> None:
        for name in self.names("trash"):
            self._server.boto.delete_object(Bucket=self._bucket, Key=name)


@pytest.fixture
def scene(moto, tmp_path):
    return Scene(moto, tmp_path)


def test_encoded_states_load_from_a_bucket(scene):
    scene.empty_trash()
    assert len(scene.names("encoded")) == len(scene.refs)
    for step, key in enumerate(KEYS):
        store = scene.store()
        assert same(store.load_state_dict(key), tensors(step))
        assert store.own.size(scene.refs[0].digest) == object_size(scene.refs[0].spec)


def test_they_are_verified_and_copied(scene, tmp_path):
    scene.empty_trash()
    assert mlstate.verify(scene.store()).findings == ()
    target = LocalStateStore(tmp_path / "target")
    mlstate.copy(scene.store(), target, KEYS)
    assert mlstate.verify(target).ok
    assert same(target.load_state_dict(KEYS[2]), tensors(2))


def test_saving_the_same_again_writes_nothing(scene):
    before = scene.names("objects")
    store = scene.store()
    store.save_state_dict(tensors(1), KEYS[1])
    store.save_state_dict(tensors(1), StateKey.parse("pytorch.net.other"))
    assert scene.names("objects") == before


def test_a_base_lives_while_something_needs_it(scene):
    for key in KEYS[:2]:
        scene.store().delete(key)
    scene.empty_trash()
    for _ in range(2):
        scene.store().prune(grace_seconds=ALL_OLD)
    assert len(scene.names("encoded")) == len(scene.refs)
    assert same(scene.store().load_state_dict(KEYS[2]), tensors(2))
    scene.store().delete(KEYS[2])
    scene.empty_trash()
    report = scene.store().prune(grace_seconds=ALL_OLD)
    assert {ref.digest for ref in scene.refs} <= report.trashed.keys()
    assert scene.names("encoded") == []
    report = scene.store().prune(grace_seconds=ALL_OLD)
    assert {ref.digest for ref in scene.refs} <= report.deleted.keys()
    assert scene.names("trash") == []


def test_what_is_in_the_trash_is_read_there_and_comes_back(scene):
    store = scene.store()
    texts = {key: store.catalog.text(key).data for key in KEYS}
    for key in KEYS:
        store.delete(key)
    scene.empty_trash()
    store.prune(grace_seconds=ALL_OLD)
    assert scene.names("encoded") == []
    for key in KEYS:
        store.saver.files.create(key, texts[key])
    assert same(scene.store().load_state_dict(KEYS[2]), tensors(2))
    report = scene.store().prune(grace_seconds=ALL_OLD)
    assert {ref.digest for ref in scene.refs} <= set(report.restored)
    assert len(scene.names("encoded")) == len(scene.refs)
    assert scene.names("trash") == []
    assert same(scene.store().load_state_dict(KEYS[1]), tensors(1))


def test_the_plain_object_that_was_given_up_goes_after_the_grace_period(scene):
    assert len(scene.names("trash")) == len(scene.refs)
    report = scene.store().prune()
    assert report.restored == []
    assert len(report.waiting) == len(scene.refs)
    report = scene.store().prune(grace_seconds=ALL_OLD)
    assert report.deleted.keys() == {ref.digest for ref in scene.refs}
    assert same(scene.store().load_state_dict(KEYS[2]), tensors(2))


def test_a_bucket_says_that_it_has_encoded_objects(scene, tmp_path):
    store = scene.store()
    data, _ = store.own.place.read("mlstate.toml")
    assert data == b'version = 1\nrequires = ["encoded"]\n'
    store.own.say_plain()
    assert store.own.place.read("mlstate.toml")[0] == b"version = 1\nrequires = []\n"
    assert not store.own.place.says_encoded()
