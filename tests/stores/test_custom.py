"""Stores that users write themselves: how operations read and write them, and what they ask."""

from __future__ import annotations

import pytest
import torch

from mlstate import (
    AbstractListStateStore,
    AbstractStateStore,
    MemoryStateStore,
    StateKey,
    bundle,
    copy,
    describe,
    diff,
    export,
    manifest_of,
    state_digest,
    usage,
    verify,
)
from mlstate.errors import (
    IntegrityError,
    ReadOnlyStoreError,
    StateExistsError,
    StateNotFoundError,
    UnsupportedStoreError,
)

KEY = StateKey.parse("pytorch.net.first")
OTHER = StateKey.parse("pytorch.net.second")


def tensors(seed=0):
    torch.manual_seed(seed)
    return {"weight": torch.randn(100, 100), "bias": torch.randn(3)}


class Three(AbstractStateStore):
    """The three methods, and no more."""

    def __init__(self, states=None):
        self.states = dict(states or {})

    def get_state_keys(self, state_type):
        return sorted(k for k in self.states if k.state_type.is_compatible_with(state_type))

    def load(self, model, state_key):
        model.load_state_dict(self.states[state_key])

    def save(self, model, training_id):
        key = StateKey(model.state_type, training_id)
        self.states[key] = model.state_dict()
        return key


class Readable(Three):
    def load_state_dict(self, key):
        return self.states[key]


class Known(Readable):
    """Its digests may be wrong."""

    wrong = False

    def digest(self, key):
        return state_digest(tensors(9) if self.wrong else self.states[key])


class OnlyDigests(Three):
    def digest(self, key):
        return state_digest(self.states[key])


class Listed(AbstractListStateStore):
    available_state_keys = (OTHER, KEY)

    def state_downloader(self, model, state_key):
        model.load_state_dict(self.load_state_dict(state_key))

    def load_state_dict(self, key):
        return tensors(len(key.training_id))


class Writable(Readable):
    def save_state_dict(self, state_dict, key):
        self.states[key] = state_dict


class WithFiles(Writable):
    def save_state_dict(self, state_dict, key, *, files=None, meta=None):
        super().save_state_dict(state_dict, key)
        self.kept = files, meta


READERS = {
    "copy": lambda store, folder: copy(store, MemoryStateStore(), [KEY]),
    "usage": lambda store, folder: usage(store, [KEY]),
    "manifest_of": lambda store, folder: manifest_of(store, [KEY]),
    "diff": lambda store, folder: diff((store, KEY), (store, KEY)),
    "verify": lambda store, folder: verify(store, [KEY]),
    "describe": lambda store, folder: describe(store, KEY),
    "export": lambda store, folder: export(store, KEY, folder / "x.safetensors"),
    "bundle": lambda store, folder: bundle(store, [KEY], folder / "x.tar"),
}


@pytest.mark.parametrize("name", READERS)
def test_three_methods_are_not_enough_and_the_missing_one_is_named(name, tmp_path):
    with pytest.raises(UnsupportedStoreError) as caught:
        READERS[name](Three({KEY: tensors()}), tmp_path)
    assert "load_state_dict(key)" in caught.value.expected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", [Readable, Known])
def test_with_state_dicts_every_operation_works(name, kind, tmp_path):
    assert READERS[name](kind({KEY: tensors()}), tmp_path) is not False


def test_what_is_read_of_it_is_right(tmp_path):
    store, digest = Readable({KEY: tensors(1), OTHER: tensors(2)}), state_digest(tensors(1))
    theirs = MemoryStateStore()
    assert copy(store, theirs, [KEY]).copied == (KEY,)
    assert theirs.digest(KEY) == digest
    assert manifest_of(store, [KEY]).states[KEY].digest == digest
    (state,) = usage(store, [KEY]).states
    assert (state.key, state.digest, state.nbytes) == (KEY, digest, 4 * 10_003)
    found = diff((store, KEY), (store, OTHER))
    assert not found.same_weights
    assert [change.name for change in found.changed] == ["bias", "weight"]
    assert {tensor.name for tensor in describe(store, KEY).tensors} == {"weight", "bias"}


def test_a_state_that_is_not_there_is_said(tmp_path):
    for name, read in READERS.items():
        if name != "usage":  # which tells of those that are there
            with pytest.raises(StateNotFoundError):
                read(Readable({OTHER: tensors()}), tmp_path)
    assert usage(Readable({OTHER: tensors()}), [KEY]).states == ()


@pytest.mark.parametrize("operation", [usage, manifest_of, verify])
def test_all_states_need_a_store_that_lists_all(operation):
    with pytest.raises(UnsupportedStoreError) as caught:
        operation(Readable({KEY: tensors()}))
    assert "keys=" in caught.value.expected
    assert operation(Listed())


def test_a_list_store_is_copied_whole():
    theirs = MemoryStateStore()
    assert copy(Listed(), theirs).copied == (KEY, OTHER)
    assert theirs.digest(KEY) == state_digest(tensors(len("first")))


@pytest.mark.parametrize("name", [name for name in READERS if name != "usage"])
def test_a_digest_that_is_not_that_of_the_tensors_is_refused(name, tmp_path):
    store = Known({KEY: tensors()})
    store.wrong = True
    if name == "verify":
        (finding,) = verify(store, [KEY]).findings
        assert finding.keys == (KEY,)
        return
    with pytest.raises(IntegrityError):
        READERS[name](store, tmp_path)


def test_usage_says_what_is_wrong_with_a_state():
    store = Known({KEY: tensors()})
    store.wrong = True
    (state,) = usage(store, [KEY]).states
    assert "other weights than it says" in state.error


def test_digests_alone_make_a_manifest_and_no_copy():
    store = OnlyDigests({KEY: tensors()})
    assert manifest_of(store, [KEY]).states[KEY].digest == state_digest(tensors())
    for name in ("copy", "diff", "export"):
        with pytest.raises(UnsupportedStoreError) as caught:
            READERS[name](store, None) if name != "export" else export(store, KEY, "/nowhere/x.pth")
        assert "load_state_dict" in caught.value.expected


def test_states_are_copied_into_a_store_with_save_state_dict():
    ours, theirs = MemoryStateStore(), Writable()
    ours.save_state_dict(tensors(), KEY)
    assert copy(ours, theirs).copied == (KEY,)
    assert state_digest(theirs.states[KEY]) == ours.digest(KEY)
    with pytest.raises(StateExistsError):
        copy(ours, theirs)
    assert copy(ours, theirs, overwrite=True).copied == (KEY,)


def test_what_is_there_by_digest_is_not_saved_again():
    class Both(Writable, Known):
        pass

    ours, theirs = MemoryStateStore(), Both()
    ours.save_state_dict(tensors(), KEY)
    assert copy(ours, theirs).copied == (KEY,)
    assert copy(ours, theirs).present == (KEY,)


def test_files_and_meta_go_along_or_nothing_does():
    ours = MemoryStateStore()
    ours.save_state_dict(tensors(), KEY, files={"a.json": b"{}"}, meta={"license": "MIT"})
    theirs = WithFiles()
    copy(ours, theirs)
    assert theirs.kept == ({"a.json": b"{}"}, {"license": "MIT"})
    other = Writable()
    with pytest.raises(UnsupportedStoreError) as caught:
        copy(ours, other)
    assert "files=" in caught.value.expected or "meta=" in caught.value.expected
    assert other.states == {}


def test_a_store_that_cannot_be_written_says_which_method_it_lacks():
    ours = MemoryStateStore()
    with pytest.raises(ReadOnlyStoreError) as caught:
        copy(ours, Readable())
    assert "save_state_dict(state_dict, key)" in caught.value.expected
