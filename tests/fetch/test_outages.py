"""A server that is down is waited for once, by all that a store fetches, and asked last."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import pytest
import torch
import urllib3.util.connection

from mlstate import LocalStateStore, StateKey
from mlstate.errors import FetchError
from mlstate.fetch.outages import Outages, server_of
from mlstate.manifests import Manifest
from tests.servers.ports import HOST, black_hole, closed_port
from tests.servers.recording import Reply
from tests.support.fetching import STORE, manifest_store

KEYS = [StateKey.parse(f"pytorch.net.n{number}") for number in range(8)]
ATTEMPTS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight states, in a store."""
    folder = tmp_path_factory.mktemp("published")
    store = LocalStateStore(folder / STORE)
    for number, key in enumerate(KEYS):
        store.save_state_dict({"w": torch.full((8192,), float(number))}, key)
    return folder


@pytest.fixture
def fetching(tmp_path, folder):
    """Makes a store of the eight states, with such servers as object mirrors, in order."""

    def prepare(*servers, **options):
        store = LocalStateStore(folder / STORE)
        entries = {key: store.get(key).entry for key in KEYS}
        Manifest(entries, objects=tuple(f"{server}/{STORE}" for server in servers)).write(
            tmp_path / "m.toml"
        )
        return manifest_store(
            tmp_path / "m.toml", tmp_path / "cache", **{"attempts": ATTEMPTS, **options}
        )

    return prepare


@pytest.fixture
def connections(monkeypatch):
    """The port of each connection that is begun, and the seconds that it may take."""
    begun = []
    connect = urllib3.util.connection.create_connection

    def counted(address, timeout=None, *rest, **options):
        begun.append((address[1], timeout))
        return connect(address, timeout, *rest, **options)

    monkeypatch.setattr(urllib3.util.connection, "create_connection", counted)
    return begun


@pytest.mark.parametrize("port", [closed_port, black_hole])
def test_a_server_that_nobody_reaches_is_tried_once_for_eight_states(
    port, fetching, folder, connections, start_recording
):
    good = start_recording(folder)
    with port() as dead:
        store = fetching(f"http://{HOST}:{dead}", good.url)
        told = []
        store.fetcher.outages.tell = lambda server, reason: told.append((server, reason))
        for key in KEYS:
            assert store.fetch(key).fetched > 0
    # Seconds, not ten: another mirror is at hand.
    assert [timeout for to, timeout in connections if to == dead] == [1.0]
    ((server, reason),) = told
    assert server == f"http://{HOST}:{dead}"
    assert "cannot be reached" in reason


def test_a_server_that_says_that_it_is_down_is_asked_once_for_eight_states(
    fetching, folder, start_recording
):
    bad, good = (start_recording(folder) for _ in range(2))
    bad.before = lambda request: Reply(503, {}, b"down\n")
    store = fetching(bad.url, good.url)
    for key in KEYS:
        store.fetch(key)
    assert len(bad.requests) == 1
    objects = [request.path for request in good.requests]
    assert len(objects) == len(set(objects)) == 2 * len(KEYS)


def test_one_that_asks_for_a_moment_is_given_it(fetching, folder, start_recording):
    bad, good = (start_recording(folder) for _ in range(2))
    busy = [Reply(503, {"Retry-After": "0"}, b"busy\n")] * 2
    bad.before = lambda request: busy.pop() if busy else None
    fetching(bad.url, good.url).fetch(KEYS[0])
    assert good.requests == []


def test_what_no_other_mirror_has_comes_from_it_after_all(fetching, folder, start_recording):
    passing, empty = start_recording(folder), start_recording({})
    down = [Reply(503, {}, b"down\n")] * 2
    passing.before = lambda request: down.pop() if down else None
    store = fetching(passing.url, empty.url)
    assert store.fetch(KEYS[0]).fetched > 0
    assert not store.fetcher.outages.is_down(passing.url)  # it answers
    asked = len(empty.requests)
    store.fetch(KEYS[1])
    assert len(empty.requests) == asked


def test_without_another_mirror_all_attempts_are_made_and_then_one_for_each_state(
    fetching, folder, start_recording
):
    bad = start_recording(folder)
    bad.before = lambda request: Reply(503, {}, b"down\n")
    store = fetching(bad.url)
    for _ in range(2):
        with pytest.raises(FetchError) as caught:
            store.fetch(KEYS[0])
        assert "HTTP 503" in str(caught.value)
    assert len(bad.requests) == ATTEMPTS + 1
    bad.before = None
    store.fetch(KEYS[0])
    bad.reset()
    down = [Reply(503, {}, b"down\n")] * (ATTEMPTS - 1)
    bad.before = lambda request: down.pop() if down else None
    store.fetch(KEYS[1])  # it had answered: all attempts are made again
    assert not down


def test_when_all_are_down_each_is_named_with_its_reason(fetching, folder, start_recording):
    bad = start_recording(folder)
    bad.before = lambda request: Reply(502, {}, b"down\n")
    with closed_port() as dead:
        store = fetching(f"http://{HOST}:{dead}", bad.url)
        for _ in range(2):
            with pytest.raises(FetchError) as caught:
                store.fetch(KEYS[0])
            reasons = dict(caught.value.attempts)
            assert "cannot be reached" in reasons[f"http://{HOST}:{dead}/{STORE}"]
            assert "HTTP 502" in reasons[f"{bad.url}/{STORE}"]
    assert len(bad.requests) == 1 + ATTEMPTS + 1


def test_it_is_asked_in_its_turn_again_after_a_while(fetching, folder, start_recording):
    bad, good = (start_recording(folder) for _ in range(2))
    bad.before = lambda request: Reply(503, {}, b"down\n")
    store = fetching(bad.url, good.url)
    now = 0.0
    store.fetcher.outages = Outages(300.0, lambda: now)
    store.fetch(KEYS[0])
    now = 299.0
    store.fetch(KEYS[1])
    assert len(bad.requests) == 1
    now = 300.0
    store.fetch(KEYS[2])
    assert len(bad.requests) == 2
    bad.before = None
    bad.reset()
    now = 700.0
    store.fetch(KEYS[3])
    assert len(bad.requests) == 2  # the state object and the tensor, and no more of the other


def test_a_server_that_breaks_off_what_it_gives_is_asked_again(fetching, folder, start_chaos):
    with ExitStack() as servers:
        from tests.servers.recording import RecordingServer

        first, good = (servers.enter_context(RecordingServer(folder)) for _ in range(2))
        chaos = start_chaos(first.url, cut_after=20_000, first=2)
        fetching(chaos.url, good.url).fetch(KEYS[0])
        assert good.requests == []


def test_the_server_of_an_address():
    of = {
        "https://Host:8080/a/b": "https://host:8080",
        "https://host?sig=x": "https://host",
        "s3://bucket/prefix": "s3://bucket",
        "hf://org/repo@main/a": "hf://",
        "weights/a": None,
        "file:///weights/a": None,
    }
    assert {address: server_of(address) for address in of} == of


def test_an_outage_is_told_again_only_when_it_was_forgotten():
    now = 0.0
    outages, told = Outages(10.0, lambda: now), []
    outages.tell = lambda server, reason: told.append(server)
    add = partial(outages.add, "https://a", "down", waited_for=False)
    add()
    add()
    assert told == ["https://a"]
    assert not outages.was_waited_for("https://a")
    outages.add("https://a", "down", waited_for=True)
    assert outages.was_waited_for("https://a")
    now = 10.0
    assert not outages.is_down("https://a")
    add()
    assert not outages.was_waited_for("https://a")
    outages.remove("https://a")
    add()
    assert told == ["https://a"] * 3


@pytest.mark.parametrize("status", [401, 403])
def test_a_mirror_that_refuses_is_asked_once_for_eight_states(
    status, fetching, folder, start_recording
):
    refusing, good = start_recording(before=lambda record: Reply(status)), start_recording(folder)
    store = fetching(refusing.url, good.url)
    for key in KEYS:
        assert store.fetch(key).fetched > 0
    assert len(refusing.requests) == 1
    assert store.fetcher.outages.known() == []  # it can be reached


def test_a_mirror_that_refuses_is_asked_again_where_nobody_else_has_it(
    fetching, folder, start_recording
):
    """As a bucket that nobody may list, which refuses what is not there."""
    first = LocalStateStore(folder / STORE).digest(KEYS[0])
    private = start_recording(
        folder, before=lambda record: Reply(403) if first[2:] in record.name else None
    )
    other = start_recording(
        folder, before=lambda record: None if first[2:] in record.name else Reply(404)
    )
    store = fetching(private.url, other.url)
    with pytest.raises(FetchError):
        store.fetch(KEYS[0])  # the tensor's object is at the first alone, which was asked
    assert store.fetch(KEYS[1]).fetched > 0
    assert store.fetch(KEYS[2]).fetched > 0
    assert len([r for r in other.requests if r.status == 404]) <= 3
