"""MLSTATE_PEERS names a cache that is asked before the object mirrors of manifests."""

from __future__ import annotations

import pytest
import torch

from mlstate import LocalStateStore, StateKey
from mlstate.errors import FetchError, FormatError, ObjectNotFoundError
from mlstate.manifests import Manifest
from tests.servers.ports import HOST, closed_port
from tests.servers.recording import Reply
from tests.support.fetching import STORE, manifest_store

KEY = StateKey.parse("pytorch.net.shared")


@pytest.fixture
def folder(tmp_path):
    """A state, in a store."""
    store = LocalStateStore(tmp_path / "published" / STORE)
    store.save_state_dict({"w": torch.rand(9000), "v": torch.rand(20000)}, KEY)
    return tmp_path / "published"


@pytest.fixture
def fetching(tmp_path, folder):
    """Makes a store of the state, with such object mirrors."""

    def prepare(*objects):
        entry = LocalStateStore(folder / STORE).get(KEY).entry
        Manifest({KEY: entry}, objects=objects).write(tmp_path / "m.toml")
        return manifest_store(tmp_path / "m.toml", tmp_path / "cache", attempts=2)

    return prepare


def test_peers_are_asked_first_and_alone(fetching, folder, start_recording, monkeypatch):
    peers, origin = (start_recording(folder) for _ in range(2))
    monkeypatch.setenv("MLSTATE_PEERS", f"{peers.url}/{STORE}/")
    assert fetching(f"{origin.url}/{STORE}").fetch(KEY).fetched > 0
    assert len(peers.requests) == 3
    assert not origin.requests


def test_what_peers_lack_comes_from_the_mirrors(
    fetching, folder, tmp_path, start_recording, monkeypatch
):
    (tmp_path / "empty").mkdir()
    peers, origin = start_recording(tmp_path / "empty"), start_recording(folder)
    monkeypatch.setenv("MLSTATE_PEERS", peers.url)
    fetching(f"{origin.url}/{STORE}").fetch(KEY)
    assert len(origin.requests) == 3


def test_peers_that_lie_are_believed_nothing(fetching, folder, start_recording, monkeypatch):
    peers, origin = (start_recording(folder) for _ in range(2))
    peers.before = lambda request: Reply(200, {}, b"\0" * 40_000)
    monkeypatch.setenv("MLSTATE_PEERS", f"{peers.url}/{STORE}")
    store = fetching(f"{origin.url}/{STORE}")
    store.fetch(KEY)
    assert sorted(store.load_state_dict(KEY)) == ["v", "w"]
    assert len(peers.requests) == 1


def test_peers_that_are_gone_cost_one_attempt(fetching, folder, start_recording, monkeypatch):
    origin = start_recording(folder)
    with closed_port() as dead:
        monkeypatch.setenv("MLSTATE_PEERS", f"http://{HOST}:{dead}")
        fetching(f"{origin.url}/{STORE}").fetch(KEY)
    assert len(origin.requests) == 3


def test_they_are_named_when_nobody_has_it(
    fetching, folder, tmp_path, start_recording, monkeypatch
):
    (tmp_path / "empty").mkdir()
    peers, origin = (start_recording(tmp_path / "empty") for _ in range(2))
    monkeypatch.setenv("MLSTATE_PEERS", peers.url)
    with pytest.raises(FetchError) as error:
        fetching(f"{origin.url}/{STORE}").fetch(KEY)
    assert peers.url in str(error.value.attempts)


def test_states_without_object_mirrors_do_not_ask_peers(
    folder, tmp_path, start_recording, monkeypatch
):
    peers = start_recording(folder)
    monkeypatch.setenv("MLSTATE_PEERS", f"{peers.url}/{STORE}")
    entry = LocalStateStore(folder / STORE).get(KEY).entry
    Manifest({KEY: entry}).write(tmp_path / "m.toml")
    with pytest.raises(ObjectNotFoundError, match="no mirror"):
        manifest_store(tmp_path / "m.toml", tmp_path / "cache").fetch(KEY)
    assert not peers.requests


def test_what_is_no_address_is_refused(fetching, monkeypatch):
    monkeypatch.setenv("MLSTATE_PEERS", "node-a:9470")
    with pytest.raises(FormatError, match="MLSTATE_PEERS"):
        fetching("http://127.0.0.1:9/store").fetch(KEY)
