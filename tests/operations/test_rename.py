"""`rename`: in stores and manifests, with nothing lost on the way."""

from __future__ import annotations

import pytest
import torch

from mlstate import LocalStateStore, Manifest, MemoryStateStore, StateKey, history, rename, verify
from mlstate.errors import (
    FormatError,
    ReadOnlyStoreError,
    StateExistsError,
    StateNotFoundError,
)
from mlstate.stores.manifest import ManifestStore
from tests.support.buckets import bucket_store
from tests.support.github_stores import github_store
from tests.support.models import LINEAR

KEY = StateKey(LINEAR, "a")
NEW = StateKey(LINEAR, "b")
STATE = {"w": torch.arange(20_000.0), "b": torch.ones(2)}

TEXT = """\
version = 1

# The one that we ship.
[states."p.net.a"] # chosen in March
blake3 = "1111111111111111111111111111111111111111111111111111111111111111"
size = 8

# Its words.
[states."p.net.a".files]
"vocab.txt" = "2222222222222222222222222222222222222222222222222222222222222222"

[states."p.net.c"]
blake3 = "3333333333333333333333333333333333333333333333333333333333333333"

[aliases]
best = "p.net.a"
"""
A, B, C = (StateKey.parse(f"p.net.{name}") for name in "abc")


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


def test_a_state_gets_another_key_and_stays_the_same(store):
    store.save_state_dict(STATE, KEY, files={"labels": b"[1]"}, meta={"acc": 0.5})
    before = store.get(KEY).entry
    rename(store, KEY, NEW)
    assert store.get_state_keys() == [NEW]
    after = store.get(NEW).entry
    assert (after.digest, after.size, after.meta) == (before.digest, before.size, before.meta)
    assert store.files(NEW)["labels"] == b"[1]"
    assert torch.equal(store.load_state_dict(NEW)["w"], STATE["w"])
    assert verify(store).ok


def test_another_state_is_replaced_only_on_request(store):
    store.save_state_dict(STATE, KEY)
    store.save_state_dict({"w": torch.zeros(3)}, NEW)
    theirs = store.digest(NEW)
    with pytest.raises(StateExistsError, match="nothing was changed"):
        rename(store, KEY, NEW)
    assert (store.exists(KEY), store.digest(NEW)) == (True, theirs)
    digest = store.digest(KEY)
    rename(store, KEY, NEW, overwrite=True)
    assert store.get_state_keys() == [NEW]
    assert store.digest(NEW) == digest


def test_what_cannot_be_renamed_is_refused(store):
    with pytest.raises(StateNotFoundError):
        rename(store, KEY, NEW)
    store.save_state_dict(STATE, KEY)
    with pytest.raises(FormatError, match="this key already"):
        rename(store, KEY, KEY)
    with pytest.raises(StateExistsError, match="differs only in case"):
        rename(store, KEY, StateKey(LINEAR, "A"))
    assert store.get_state_keys() == [KEY]


def test_no_tensor_is_written_in_a_folder(tmp_path):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict(STATE, KEY)
    objects = {path: path.stat().st_ino for path in (tmp_path / "store/objects").rglob("*/*")}
    rename(store, KEY, NEW)
    now = {path: path.stat().st_ino for path in (tmp_path / "store/objects").rglob("*/*")}
    assert now == objects
    assert {(event.key, event.event) for event in history(store)} == {
        (KEY, "deleted"),
        (NEW, "saved"),
    }


def test_a_manifest_keeps_its_comments_and_its_order(tmp_path):
    path = tmp_path / "weights.toml"
    path.write_text(TEXT)
    rename(path, A, StateKey.parse("p.net.z"))
    assert path.read_text() == TEXT.replace("p.net.a", "p.net.z")
    read = Manifest.read(path)
    assert read.aliases == {"best": StateKey.parse("p.net.z")}


def test_a_manifest_with_other_quotes_and_dotted_tables_is_renamed(tmp_path):
    path = tmp_path / "weights.toml"
    digest = "1" * 64
    path.write_text(f"version = 1\n\n[states.'p.net.a']\r\nblake3 = '{digest}'\r\n")
    rename(path, A, B)
    assert Manifest.read(path).states.keys() == {B}
    path.write_text(f"version = 1\nstates.'p.net.a'.blake3 = '{digest}'\n")
    with pytest.raises(FormatError, match="cannot be edited"):
        rename(path, A, B)
    assert Manifest.read(path).states.keys() == {A}


def test_a_taken_key_of_a_manifest_stays(tmp_path):
    path = tmp_path / "weights.toml"
    path.write_text(TEXT)
    with pytest.raises(StateExistsError, match="nothing was changed"):
        rename(path, A, C)
    with pytest.raises(StateNotFoundError):
        rename(path, B, StateKey.parse("p.net.d"))
    assert path.read_text() == TEXT
    rename(path, A, C, overwrite=True)
    read = Manifest.read(path)
    assert read.states.keys() == {C}
    assert read.states[C].digest == "1" * 64


def test_every_manifest_of_a_folder_that_lists_it_is_changed(tmp_path):
    for name in ("one.toml", "two.toml"):
        (tmp_path / name).write_text(TEXT)
    rename(tmp_path, A, B)
    for name in ("one.toml", "two.toml"):
        assert Manifest.read(tmp_path / name).states.keys() == {B, C}


def test_a_view_of_a_manifest_is_not_changed(tmp_path):
    path = tmp_path / "weights.toml"
    path.write_text(TEXT)
    with pytest.raises(ReadOnlyStoreError, match="cannot be renamed here"):
        rename(ManifestStore(path), A, B)
