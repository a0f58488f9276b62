"""Copies that encode on the way, and what a fetch makes of them: of folders and of buckets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mlstate import (
    GitHubReleaseStore,
    LocalStateStore,
    ManifestStore,
    StateKey,
    compact,
    copy,
    manifest_of,
    verify,
)
from mlstate.digests import Digest
from mlstate.errors import StateNotFoundError, UnsupportedStoreError
from mlstate.format import layout
from mlstate.format.encoded_index import EncodedIndex
from tests.servers.recording import RecordingServer
from tests.support.buckets import bucket_store
from tests.support.encoded_mirrors import near, weights
from tests.support.models import same

BASE, TUNED = StateKey.parse("pytorch.net.base"), StateKey.parse("pytorch.net.tuned")
SIZE = 2 << 20
TENSORS = weights(count=5, size=SIZE)
STATES = {BASE: TENSORS, TUNED: near(TENSORS)}
NBYTES = 5 * 2 * SIZE


@pytest.fixture
def source(tmp_path: Path) -> LocalStateStore:
    store = LocalStateStore(tmp_path / "source")
    for key, state in STATES.items():
        store.save_state_dict(state, key)
    return store


def index_in(folder: Path, state: str) -> EncodedIndex:
    digest = Digest(state)
    return EncodedIndex.parse((folder / layout.encoded_index_path(digest)).read_bytes(), digest)


def test_a_copy_encodes_against_what_the_target_has(source: LocalStateStore, tmp_path: Path):
    target = LocalStateStore(tmp_path / "target")
    copy(source, target, [BASE])
    assert copy(source, target, [TUNED], encode=True).copied == (TUNED,)
    index = index_in(tmp_path / "target", target.digest(TUNED))
    assert len(index.forms) == 5
    for digest, form in index.forms.items():
        assert form.depth == 1
        assert not form.plain
        assert not (tmp_path / "target" / layout.object_path(digest)).exists()
        assert (tmp_path / "target" / layout.encoded_path(digest)).stat().st_size == form.size
    assert sum(form.size for form in index.forms.values()) < 0.3 * NBYTES
    same(target.load_state_dict(TUNED), STATES[TUNED])
    assert verify(target).ok


@pytest.mark.parametrize("encode", [True, BASE, str(BASE)])
def test_states_of_one_copy_are_bases_of_each_other(
    source: LocalStateStore, tmp_path: Path, encode: bool | StateKey | str
):
    target = LocalStateStore(tmp_path / "target")
    if encode is not True:
        with pytest.raises(StateNotFoundError):
            copy(source, target, [BASE], encode=encode)
        copy(source, target, [BASE])
    copy(source, target, [BASE, TUNED], encode=encode)
    index = index_in(tmp_path / "target", target.digest(TUNED))
    assert {form.depth for digest, form in index.forms.items()} <= {0, 1}
    own = {ref: form for ref, form in index.forms.items() if form.base is not None}
    assert len(own) == 5
    for key, state in STATES.items():
        same(target.load_state_dict(key), state)


def test_what_was_copied_so_is_fetched_in_fewer_bytes(
    source: LocalStateStore, tmp_path: Path, start_recording: Callable[..., RecordingServer]
):
    target = LocalStateStore(tmp_path / "target")
    copy(source, target, [BASE])
    copy(source, target, [TUNED], encode=True)
    server = start_recording(tmp_path / "target")
    manifest_of(target, objects=[server.url]).write(tmp_path / "m.toml")
    store = ManifestStore(tmp_path / "m.toml", cache=tmp_path / "cache")
    assert store.fetch(BASE).fetched > NBYTES
    assert store.fetch(TUNED).fetched < 0.3 * NBYTES
    same(store.load_state_dict(TUNED), STATES[TUNED])


def test_to_a_bucket_and_from_it(source: LocalStateStore, tmp_path: Path, moto):
    target = bucket_store(moto, bucket := moto.new_bucket())
    copy(source, target, [BASE])
    copy(source, target, [TUNED], encode=True)
    elsewhere = bucket_store(moto, bucket, cache=tmp_path / "cache")
    assert elsewhere.fetch(BASE).fetched > NBYTES
    assert elsewhere.fetch(TUNED).fetched < 0.3 * NBYTES
    same(elsewhere.load_state_dict(TUNED), STATES[TUNED])


def test_a_release_takes_no_encoded_objects(source: LocalStateStore, github):
    with pytest.raises(UnsupportedStoreError, match="not encoded") as caught:
        copy(source, GitHubReleaseStore("org", "models"), [BASE], encode=True)
    assert "encode=" in str(caught.value.remedy)
    assert github.api.requests == []


def test_compact_writes_indexes_and_takes_them_back(
    source: LocalStateStore, tmp_path: Path, start_recording: Callable[..., RecordingServer]
):
    folder = tmp_path / "source"
    compact(source)
    forms = index_in(folder, source.digest(TUNED)).forms
    assert {path.parent.name + path.name for path in (folder / "encoded").glob("??/*")} == {*forms}
    assert len(list((folder / "encoded/states").glob("*/*"))) == 1  # of the base nothing is
    server = start_recording(folder)
    manifest_of(source, objects=[server.url]).write(tmp_path / "m.toml")
    store = ManifestStore(tmp_path / "m.toml", cache=tmp_path / "cache")
    for key, state in STATES.items():
        store.fetch(key)
        same(store.load_state_dict(key), state)
    assert server.bytes_sent < 1.3 * NBYTES
    compact(source, undo=True)
    assert list((folder / "encoded/states").glob("*/*")) == []
