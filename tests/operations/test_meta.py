"""`set_meta`: notes change, and nothing else does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mlstate import LocalStateStore, Manifest, MemoryStateStore, StateKey, set_meta, sign, verify
from mlstate.errors import (
    FormatError,
    ReadOnlyStoreError,
    SignatureError,
    StateNotFoundError,
)
from mlstate.stores.manifest import ManifestStore
from tests.support.buckets import bucket_store
from tests.support.github_stores import github_store
from tests.support.models import LINEAR
from tests.support.signing import Key, needs_ssh_keygen

KEY = StateKey(LINEAR, "a")
STATE = {"w": torch.arange(20_000.0)}


@pytest.fixture(params=["local", "memory", "s3", "github"])
def store(request, tmp_path):
    if request.param == "memory":
        return MemoryStateStore()
    if request.param == "local":
        return LocalStateStore(tmp_path / "store")
    if request.param == "github":
        request.getfixturevalue("github")
        return github_store(tmp_path / "cache")
    moto = request.getfixturevalue("moto")
    return bucket_store(moto, moto.new_bucket(), cache=tmp_path / "cache")


def test_notes_are_added_replaced_and_taken_away(store):
    store.save_state_dict(STATE, KEY, files={"labels": b"[1]"}, meta={"acc": 0.5, "by": "me"})
    digest = store.digest(KEY)
    said = set_meta(store, KEY, {"acc": 0.75, "steps": 100, "tags": ["x", "y"]}, unset=["by"])
    assert said == {"acc": 0.75, "steps": 100, "tags": ["x", "y"]}
    assert store.meta(KEY) == said
    assert store.digest(KEY) == digest
    assert store.files(KEY)["labels"] == b"[1]"
    assert verify(store).ok
    assert set_meta(store, KEY, unset=list(said)) == {}
    assert store.meta(KEY) == {}


def test_nothing_changes_when_something_is_refused(store):
    with pytest.raises(StateNotFoundError):
        set_meta(store, KEY, {"acc": 1.0})
    store.save_state_dict(STATE, KEY, meta={"acc": 0.5})
    with pytest.raises(FormatError, match="no such note"):
        set_meta(store, KEY, {"steps": 1}, unset=["nothing"])
    with pytest.raises(FormatError, match="TOML"):
        set_meta(store, KEY, {"steps": object()})
    assert store.meta(KEY) == {"acc": 0.5}


def test_no_change_of_another_is_lost(tmp_path):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict(STATE, KEY)
    names = [f"n{number}" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: set_meta(store, KEY, {name: 1}), names))
    assert store.meta(KEY).keys() == set(names)


def test_a_manifest_is_edited_and_keeps_its_comments(tmp_path):
    path = tmp_path / "weights.toml"
    path.write_text(
        f'version = 1\n\n# Ours.\n[states."{KEY}"]\nblake3 = "{"1" * 64}" # sure\n\n'
        f'[states."{KEY}".meta]\nacc = 0.5 # on the test set\n'
    )
    assert set_meta(path, KEY, {"acc": 0.75, "by": "me"}) == {"acc": 0.75, "by": "me"}
    assert "# Ours." in path.read_text()
    assert "# sure" in path.read_text()
    assert Manifest.read(path).states[KEY].meta == {"acc": 0.75, "by": "me"}
    with pytest.raises(StateNotFoundError):
        set_meta(path, StateKey(LINEAR, "b"), {"acc": 1})
    with pytest.raises(ReadOnlyStoreError, match="no state file"):
        set_meta(ManifestStore(path), KEY, {"acc": 1})


@needs_ssh_keygen
def test_signed_states_are_signed_again_or_say_that_they_are_not(tmp_path):
    alice = Key.make(tmp_path, "alice@lab.example")
    signers = tmp_path / "allowed"
    signers.write_text(alice.line())
    where = tmp_path / "store"
    signing = LocalStateStore(where, require_signature=signers, signing_key=alice.path)
    signing.save_state_dict(STATE, KEY)
    set_meta(signing, KEY, {"acc": 0.5})
    reading = LocalStateStore(where, require_signature=signers)
    assert reading.meta(KEY) == {"acc": 0.5}
    with pytest.raises(SignatureError, match="needs a signature"):
        set_meta(reading, KEY, {"acc": 0.75})
    assert reading.meta(KEY) == {"acc": 0.5}
    plain = LocalStateStore(where)
    with pytest.warns(UserWarning, match="its signature is gone"):
        set_meta(plain, KEY, {"acc": 0.75})
    assert plain.meta(KEY) == {"acc": 0.75}
    with pytest.raises(SignatureError):
        reading.meta(KEY)
    sign(plain, alice.path)
    assert reading.meta(KEY) == {"acc": 0.75}
