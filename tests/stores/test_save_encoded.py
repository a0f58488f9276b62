"""Saving encoded at once: against a state that the caller names, or one that is found."""

from __future__ import annotations

import os

import pytest
import torch

from mlstate import GitHubReleaseStore, LocalStateStore, StateKey, compact, copy
from mlstate.errors import FormatError, StateNotFoundError, UnsupportedStoreError
from mlstate.format import layout
from mlstate.objects.encoded_forms import head_of
from mlstate.reading import read_state
from mlstate.texts import load_toml
from tests.operations.compact.states import KEYS, digests, files, near, noise, save_all, weights

pytestmark = pytest.mark.usefixtures("no_fsync")
NAME = "layers.0.weight"


@pytest.fixture
def store(tmp_path) -> LocalStateStore:
    return LocalStateStore(tmp_path / "store")


@pytest.fixture
def plain(tmp_path) -> LocalStateStore:
    """What is saved plainly, to compare with."""
    return LocalStateStore(tmp_path / "plain")


def ref(store, key, name=NAME):
    return read_state(store.get(key).entry, store.own).refs[name]


def is_plain(store, key, name=NAME) -> bool:
    return store.own.plain_size(ref(store, key, name).digest) is not None


def head(store, key, name=NAME):
    return head_of(store.own, ref(store, key, name).digest)


def ask_for_it(store, value: str = "true") -> None:
    path = store.folder / layout.SETTINGS
    path.chmod(0o644)
    path.write_text(f"version = 1\nrequires = []\ncompact = {value}\n")


def test_a_state_is_encoded_against_the_one_that_is_named(store, plain):
    for one in (store, plain):
        one.save_state_dict(weights(0), KEYS[0])
        one.save_state_dict(weights(1), KEYS[1])
    store.save_state_dict(weights(2), KEYS[2], compact=KEYS[0])
    store.save_state_dict(weights(3), KEYS[3], compact=str(KEYS[1]))
    for step in (2, 3):
        plain.save_state_dict(weights(step), KEYS[step])
        assert not is_plain(store, KEYS[step])
        assert head(store, KEYS[step]).base == ref(store, KEYS[step - 2]).digest
    assert digests(store) == digests(plain)
    assert load_toml((store.folder / layout.SETTINGS).read_bytes(), "it")["requires"] == ["encoded"]


def test_no_plain_object_is_written_on_the_way(store):
    store.save_state_dict(weights(0), KEYS[0])
    before = files(store.folder)
    store.save_state_dict(weights(1), KEYS[1], compact=True)
    new = files(store.folder).keys() - before.keys()
    assert len(new) == 1  # the state object
    assert not list(store.folder.glob("trash/*"))


def test_a_near_state_is_found(store):
    store.save_state_dict({NAME: noise(50)}, KEYS[5])
    store.save_state_dict({NAME: noise(0)}, KEYS[6])
    store.save_state_dict({NAME: near(noise(0), 1)}, KEYS[7], compact=True)
    assert head(store, KEYS[7]).base == ref(store, KEYS[6]).digest


def test_what_is_near_to_nothing_is_encoded_alone_if_it_is_bf16(store):
    store.save_state_dict({NAME: noise(0)}, KEYS[0], compact=True)
    store.save_state_dict({NAME: noise(1, torch.float32)}, KEYS[1], compact=True)
    assert head(store, KEYS[0]).base is None
    assert is_plain(store, KEYS[1])


def test_checkpoints_of_a_loop_are_built_on_the_first(store):
    for step, key in enumerate(KEYS[:5]):
        store.save_state_dict(weights(step, torch.float32), key, compact=True)
    first = ref(store, KEYS[0]).digest
    assert is_plain(store, KEYS[0])
    assert {head(store, key).base for key in KEYS[1:5]} == {first}
    assert len(digests(store)) == 5


def test_a_chain_of_named_ones_is_no_deeper_than_readers_take(store):
    expected = {}
    for step, key in enumerate(KEYS):
        before = KEYS[step - 1] if step else None
        store.save_state_dict(weights(step, torch.float32), key, compact=before)
        expected[key] = store.digest(key)
    depths = [head(store, key).depth for key in KEYS[1:]]
    assert depths[:9] == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert max(depths) == 8
    assert digests(store) == expected


def test_saving_again_changes_nothing(store):
    store.save_state_dict(weights(0), KEYS[0])
    store.save_state_dict(weights(1), KEYS[1], compact=True)
    there = files(store.folder, "")
    for how in (True, False, None, KEYS[0]):
        store.save_state_dict(weights(1), KEYS[1], compact=how)
    assert files(store.folder, "") == there
    store.save_state_dict(weights(1), KEYS[2])  # what is encoded is used again
    assert len(files(store.folder, "")) == len(there) + 1
    assert digests(store)[KEYS[2]] == store.digest(KEYS[1])


def test_a_base_that_is_deleted_at_that_moment_is_no_loss(store, monkeypatch):
    """It is deleted and pruned between the two looks of the save."""
    store.save_state_dict(weights(0), KEYS[0])
    for path in store.folder.rglob("*"):
        if path.is_file():
            os.utime(path, (1e9, 1e9))
    create = store.saver.files.create

    def pruned_before(key, data):
        store.delete(KEYS[0])
        for path in store.folder.rglob("*"):
            if path.is_file() and path.name != "mlstate.toml":
                os.utime(path, (1e9, 1e9))
        for _ in range(2):
            store.prune(grace_seconds=0)
        return create(key, data)

    monkeypatch.setattr(store.saver.files, "create", pruned_before)
    store.save_state_dict(weights(1), KEYS[1], compact=KEYS[0])
    assert digests(store) == {KEYS[1]: store.digest(KEYS[1])}


def test_a_key_that_is_not_there_is_refused_before_anything_is_written(store):
    with pytest.raises(StateNotFoundError):
        store.save_state_dict(weights(1), KEYS[1], compact=KEYS[0])
    with pytest.raises(FormatError):
        store.save_state_dict(weights(1), KEYS[1], compact="no key")
    assert not store.folder.exists()


def test_the_settings_of_a_store_ask_for_it(store):
    store.save_state_dict(weights(0, torch.float32), KEYS[0])
    ask_for_it(store)
    store.save_state_dict(weights(1, torch.float32), KEYS[1])
    store.save_state_dict(weights(2, torch.float32), KEYS[2], compact=False)
    assert not is_plain(store, KEYS[1])
    assert is_plain(store, KEYS[2])
    settings = load_toml((store.folder / layout.SETTINGS).read_bytes(), "it")
    assert settings == {"version": 1, "requires": ["encoded"], "compact": True}
    compact(store, undo=True)
    settings = load_toml((store.folder / layout.SETTINGS).read_bytes(), "it")
    assert settings == {"version": 1, "requires": [], "compact": True}


def test_a_setting_that_is_neither_true_nor_false_is_refused(store):
    store.save_state_dict(weights(0), KEYS[0])
    ask_for_it(store, '"yes"')
    with pytest.raises(FormatError, match="settings"):
        store.save_state_dict(weights(1), KEYS[1])
    assert not store.exists(KEYS[1])


def test_what_is_copied_into_such_a_store_is_encoded(store, plain):
    save_all(plain, {key: weights(step, torch.float32) for step, key in enumerate(KEYS[:3])})
    store.save_state_dict({"x": torch.ones(1)}, StateKey.parse("pytorch.other.one"))
    ask_for_it(store)
    copy(plain, store)
    assert is_plain(store, KEYS[0])
    assert not is_plain(store, KEYS[2])
    assert {key: value for key, value in digests(store).items() if key in KEYS} == digests(plain)


def test_a_release_refuses():
    github = GitHubReleaseStore("owner", "repository")
    with pytest.raises(UnsupportedStoreError, match="not encoded"):
        github.save_state_dict(weights(0), KEYS[0], compact=True)


def requires(store) -> list[str]:
    return load_toml((store.folder / layout.SETTINGS).read_bytes(), "settings")["requires"]


def test_an_undoing_beside_a_save_does_not_take_back_what_the_settings_say(store, monkeypatch):
    """It looks when the save has said it, and has written nothing yet."""
    store.save_state_dict(weights(0), KEYS[0])
    put, undone = type(store.own).put_encoded, []

    def undo_before(self, *args, **options):
        if not undone:
            undone.append(compact(LocalStateStore(store.folder), undo=True))
            assert requires(store) == []
        return put(self, *args, **options)

    monkeypatch.setattr(type(store.own), "put_encoded", undo_before)
    store.save_state_dict(weights(1), KEYS[1], compact=True)
    assert undone
    assert not is_plain(store, KEYS[1])
    assert requires(store) == ["encoded"]


def test_who_uses_what_a_killed_save_has_encoded_says_so(store):
    store.save_state_dict(weights(0), KEYS[0])
    store.save_state_dict(weights(1), KEYS[1], compact=True)
    store.delete(KEYS[1])
    store.own.say_plain()  # as an undoing did, before the form was there
    store.save_state_dict(weights(1), KEYS[2])
    assert not is_plain(store, KEYS[2])
    assert requires(store) == ["encoded"]
