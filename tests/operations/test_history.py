"""`history` and `restore`: deleted and replaced states are told of, and come back whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mlstate import LocalStateStore, MemoryStateStore, StateKey, history, restore, sign, verify
from mlstate.errors import (
    IntegrityError,
    ObjectNotFoundError,
    ReadOnlyStoreError,
    SignatureError,
    StateExistsError,
    StateNotFoundError,
    UnsupportedStoreError,
)
from mlstate.stores.manifest import ManifestStore
from tests.support.buckets import bucket_store
from tests.support.github_stores import github_store
from tests.support.models import LINEAR
from tests.support.signing import Key, needs_ssh_keygen

KEY = StateKey(LINEAR, "a")
OTHER = StateKey(LINEAR, "b")
DAY = 86400.0


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """One tensor that is an object, and one within the state object."""
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.rand(100, 100, generator=generator), "b": torch.full((3,), float(seed))}


def age(store: LocalStateStore, seconds: float) -> None:
    """Make everything in a folder older."""
    for path in store.folder.rglob("*"):
        if path.is_file():
            when = path.stat().st_mtime - seconds
            os.utime(path, (when, when))


def events(store) -> list[tuple[str, str]]:
    return [(str(event.key.training_id), event.event) for event in history(store)]


@pytest.fixture(params=["local", "memory", "s3"])
def store(request, tmp_path):
    if request.param == "memory":
        return MemoryStateStore()
    if request.param == "local":
        return LocalStateStore(tmp_path / "store")
    moto = request.getfixturevalue("moto")
    return bucket_store(moto, moto.new_bucket(), cache=tmp_path / "cache")


def test_what_was_saved_replaced_and_deleted_is_told(store):
    assert history(store) == []
    store.save_state_dict(tensors(0), KEY)
    first = store.digest(KEY)
    store.save_state_dict(tensors(1), KEY, overwrite=True)
    store.save_state_dict(tensors(2), OTHER)
    third = store.digest(OTHER)
    store.delete(OTHER)
    found = {(event.key, event.event): event for event in history(store)}
    assert found.keys() == {(KEY, "saved"), (KEY, "replaced"), (OTHER, "deleted")}
    assert found[KEY, "replaced"].digest == first
    assert found[KEY, "saved"].digest == store.digest(KEY)
    assert found[OTHER, "deleted"].digest == third
    assert found[OTHER, "deleted"].nbytes == 40_012
    assert [event.key for event in history(store, [OTHER])] == [OTHER]
    times = [event.time for event in history(store) if event.time is not None]
    assert times == sorted(times, reverse=True)


def test_a_deleted_state_comes_back_as_it_was(store):
    store.save_state_dict(tensors(0), KEY, files={"x/labels": b"[1]"}, meta={"acc": 0.5})
    entry = store.get(KEY).entry
    store.delete(KEY)
    assert not store.exists(KEY)
    assert restore(store, KEY, dry_run=True).digest == entry.digest
    assert not store.exists(KEY)
    event = restore(store, KEY)
    assert (event.key, event.event, event.digest) == (KEY, "deleted", entry.digest)
    back = store.get(KEY).entry
    assert (back.digest, back.size, back.meta) == (entry.digest, entry.size, entry.meta)
    assert store.files(KEY)["x/labels"] == b"[1]"
    assert torch.equal(store.load_state_dict(KEY)["w"], tensors(0)["w"])
    assert verify(store).ok


def test_one_of_several_is_chosen_by_its_digest(store):
    digests = []
    for seed in range(3):
        store.save_state_dict(tensors(seed), KEY, overwrite=True)
        digests.append(store.digest(KEY))
    with pytest.raises(StateExistsError, match="another state now"):
        restore(store, KEY, digest=digests[0])
    assert store.digest(KEY) == digests[2]
    restore(store, KEY, digest=digests[0][:10].upper(), overwrite=True)
    assert store.digest(KEY) == digests[0]
    with pytest.raises(StateNotFoundError) as caught:
        restore(store, KEY, digest="f" * 64, overwrite=True)
    assert digests[1] in str(caught.value.found)
    assert store.digest(KEY) == digests[0]
    assert {event.digest for event in history(store)} == set(digests)


def test_what_was_never_there_is_said(store):
    store.save_state_dict(tensors(0), KEY)
    with pytest.raises(StateNotFoundError, match="no state of this key"):
        restore(store, OTHER)
    store.delete(KEY)
    restore(store, KEY)
    with pytest.raises(StateExistsError, match="this state is there"):
        restore(store, KEY)


def test_what_a_pruning_moved_comes_back_until_it_is_deleted(tmp_path):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict(tensors(0), KEY, files={"labels": b"[1]"})
    store.delete(KEY)
    age(store, 2 * DAY)
    kept = {path: path.read_bytes() for path in (store.folder / "trash").iterdir()}
    store.prune(grace_seconds=DAY)
    assert not list((store.folder / "objects").rglob("*/*"))  # all of it is in the trash now
    for path, data in kept.items():  # the pruning swept the old state file: a younger one is there
        path.write_bytes(data)
    restore(store, KEY)
    assert verify(store).ok
    assert torch.equal(store.load_state_dict(KEY)["w"], tensors(0)["w"])

    store.delete(KEY)
    age(store, 2 * DAY)
    kept = {path: path.read_bytes() for path in (store.folder / "trash").glob("*.toml.*")}
    for _ in range(2):
        store.prune(grace_seconds=DAY)
        age(store, 2 * DAY)
    for path, data in kept.items():
        path.write_bytes(data)
    with pytest.raises(ObjectNotFoundError):
        restore(store, KEY)
    assert not store.exists(KEY)


def test_a_damaged_object_keeps_a_state_from_coming_back(tmp_path):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict(tensors(0), KEY)
    store.delete(KEY)
    age(store, 2 * DAY)
    kept = {path: path.read_bytes() for path in (store.folder / "trash").iterdir()}
    store.prune(grace_seconds=DAY)
    for path, data in kept.items():
        path.write_bytes(data)
    largest = max((store.folder / "trash").iterdir(), key=lambda path: path.stat().st_size)
    largest.chmod(0o644)
    with largest.open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff\xff\xff")
    with pytest.raises(IntegrityError):
        restore(store, KEY)
    assert not store.exists(KEY)


def test_unreadable_and_foreign_things_in_the_trash_are_no_states(tmp_path):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict(tensors(0), KEY)
    trash = store.folder / "trash"
    trash.mkdir(exist_ok=True)
    (trash / f"{OTHER}.toml.{'0' * 32}").write_bytes(b"\x00 no TOML")
    (trash / "notes.txt").write_text("mine")
    (trash / f"{KEY}.toml.{'1' * 32}").mkdir()
    found = {(event.key, event.event): event.error for event in history(store)}
    assert found.keys() == {(KEY, "saved"), (OTHER, "deleted")}
    assert found[OTHER, "deleted"]
    with pytest.raises(StateNotFoundError):
        restore(store, OTHER, digest="0" * 64)


def test_stores_that_keep_nothing_say_so(tmp_path, github):
    manifest = tmp_path / "weights.toml"
    manifest.write_text("version = 1\n")
    for store in (ManifestStore(manifest), github_store(tmp_path / "cache")):
        with pytest.raises((UnsupportedStoreError, ReadOnlyStoreError), match="keeps nothing"):
            history(store)
        with pytest.raises((UnsupportedStoreError, ReadOnlyStoreError), match="keeps nothing"):
            restore(store, KEY)


@needs_ssh_keygen
def test_a_signed_state_comes_back_with_its_signature(tmp_path):
    alice = Key.make(tmp_path, "alice@lab.example")
    signers = tmp_path / "allowed"
    signers.write_text(alice.line())
    plain = LocalStateStore(tmp_path / "store")
    plain.save_state_dict(tensors(0), KEY)
    sign(plain, alice.path)
    before = plain.catalog.text(KEY).data
    plain.delete(KEY)
    strict = LocalStateStore(tmp_path / "store", require_signature=signers)
    restore(strict, KEY)
    assert strict.catalog.text(KEY).data == before
    assert strict.digest(KEY) == plain.digest(KEY)


@needs_ssh_keygen
def test_no_older_version_comes_back_where_signatures_are_required(tmp_path):
    alice = Key.make(tmp_path, "alice@lab.example")
    signers = tmp_path / "allowed"
    signers.write_text(alice.line())
    where: Path = tmp_path / "store"
    signing = LocalStateStore(where, require_signature=signers, signing_key=alice.path)
    signing.save_state_dict(tensors(0), KEY)
    old = signing.digest(KEY)
    signing.save_state_dict(tensors(1), KEY, overwrite=True)
    new = signing.digest(KEY)
    reading = LocalStateStore(where, require_signature=signers)
    with pytest.raises(SignatureError):
        restore(reading, KEY, digest=old, overwrite=True)
    assert reading.digest(KEY) == new
    restore(signing, KEY, digest=old, overwrite=True)  # signed anew, as a newer version
    assert LocalStateStore(where, require_signature=signers).digest(KEY) == old
    unsigned = LocalStateStore(tmp_path / "other", signing_key=False)
    unsigned.save_state_dict(tensors(0), KEY)
    unsigned.delete(KEY)
    with pytest.raises(SignatureError):
        restore(LocalStateStore(tmp_path / "other", require_signature=signers), KEY)
