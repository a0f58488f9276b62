"""A bucket in which tensor objects are in encoded form: loads, copies, prunings."""

from __future__ import annotations

import pytest

import mlstate
from mlstate import LocalStateStore, StateKey
from mlstate.errors import FormatError
from mlstate.format.tensor_object import object_size
from mlstate.objects.encoded_indexes import write_index
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


def test_who_opened_the_store_before_does_not_take_back_what_its_settings_say(moto, tmp_path):
    """This server writes what was damaged, and is tested before the first large upload."""
    bucket = moto.new_bucket()
    stores = [bucket_store(moto, bucket, cache=tmp_path / str(number)) for number in range(2)]
    stores[0].save_state_dict(tensors(0), KEYS[0])
    assert stores[1].exists(KEYS[0])
    stores[0].own.say_encoded()
    stores[1].save_state_dict({"large": near_tensors(2, 0, large=(1000, 1000))["large"]}, KEYS[1])
    assert stores[1].own.place.verifies_uploads() is False
    settings = {n: d for n, d in contents(moto, bucket).items() if n.endswith("mlstate.toml")}
    assert list(settings.values()) == [b'version = 1\nrequires = ["encoded"]\n']
    assert [n for n in contents(moto, bucket) if "/tmp/" in n] == []


def test_a_test_for_conditions_takes_back_no_settings(moto, tmp_path, monkeypatch):
    bucket = moto.new_bucket()
    stores = [bucket_store(moto, bucket, cache=tmp_path / str(number)) for number in range(2)]
    stores[0].save_state_dict(tensors(0), KEYS[0])
    place = stores[1].own.place
    assert place.check()
    stores[0].own.say_encoded()
    monkeypatch.setattr(place.client, "create", place.client.put)  # as of a server without them
    with pytest.warns(UserWarning, match="ignores conditional writes"):
        assert not place.honours_conditions()
    assert place.read("mlstate.toml")[0] == b'version = 1\nrequires = ["encoded"]\n'


def test_a_store_that_is_open_is_not_pruned_once_it_needs_a_newer_version(moto, tmp_path):
    bucket = moto.new_bucket()
    store = bucket_store(moto, bucket, cache=tmp_path)
    store.save_state_dict(tensors(0), KEYS[0])
    path = store.own.place.path("mlstate.toml")
    moto.boto.put_object(Bucket=bucket, Key=path, Body=b'version = 1\nrequires = ["packs"]\n')
    with pytest.raises(FormatError, match="newer mlstate"):
        store.prune(grace_seconds=ALL_OLD)


def test_indexes_of_states_that_are_gone_are_swept(scene):
    store = scene.store()
    state = read_state(store.get(KEYS[1]).entry, store.own)
    digest = store.digest(KEYS[1])
    assert write_index(store.own, digest, state, 1)
    (name,) = scene.names("encoded/states")
    assert store.prune(grace_seconds=ALL_OLD).swept == []
    store.delete(KEYS[1])
    assert store.prune().swept == []
    assert scene.names("encoded/states") == [name]
    assert [path.endswith(name) for path in store.prune(grace_seconds=ALL_OLD).swept].count(True)
    assert scene.names("encoded/states") == []


def test_an_object_is_restored_with_what_its_encoded_form_needs(scene):
    store = scene.store()
    ref = read_state(store.get(KEYS[2]).entry, store.own).refs["embedding"]
    for key in KEYS[:2]:  # the forms that it is built on
        base = read_state(store.get(key).entry, store.own).refs["embedding"].digest
        source = store.own.place.client.head(store.own.encoded_path(base))
        target = store.own.place.path(f"trash/{base}.encoded.{'0' * 32}")
        assert store.own.place.client.control.copy(source, target)
        store.own.place.client.delete(source.path)
    for name in scene.names("trash"):
        if ".encoded." not in name:
            scene._server.boto.delete_object(Bucket=scene._bucket, Key=name)
    assert len(scene.names("encoded")) == len(scene.refs) - 2
    assert store.own.restore(ref.digest)
    assert len(scene.names("encoded")) == len(scene.refs)
    assert same(scene.store().load_state_dict(KEYS[2]), tensors(2))
