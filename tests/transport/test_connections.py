"""How replies are received: whole, and in time, whatever drips."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import pytest

from mlstate.errors import TransportError
from mlstate.limits import Limits
from mlstate.transport import Transports
from mlstate.transport.client import Session
from mlstate.transport.urls import Url

CONTENT = bytes(range(256)) * 800


@pytest.fixture
def web():
    with Transports(read_timeout=5) as transports:
        yield transports


def read(resource, *bounds, size):
    with resource.read(*bounds) as stream:
        return b"".join(iter(lambda: stream.read(size), b""))


def on_a_thread(call, *arguments, **named):
    """As fetches do it; the main thread is the one that gets the signals."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(call, *arguments, **named).result()


@pytest.mark.parametrize("where", [on_a_thread, lambda call: call()], ids=["thread", "main"])
@pytest.mark.parametrize(
    "faults",
    [
        {"stall_after": 100_000},
        {"rate": 500},
        {"cut_after": 100_000},
        {"cut_after": 100_000, "reset": True},
    ],
    ids=str,
)
def test_what_came_is_given_before_a_server_fails(recording_server, start_chaos, faults, where):
    recording_server.files = {"x": CONTENT}
    chaos = start_chaos(recording_server.url, **faults)
    came = bytearray()

    def read_all():
        with hasty.open(chaos.url + "/x").read() as stream:
            while data := stream.read(1 << 20):
                came.extend(data)

    began = time.monotonic()
    with (
        Transports(read_timeout=0.3, low_speed=1000, low_speed_seconds=0.4) as hasty,
        pytest.raises(TransportError) as caught,
    ):
        where(read_all)
    assert caught.value.transient
    assert time.monotonic() - began < 5
    assert came == CONTENT[: len(came)]
    assert len(came) < len(CONTENT)


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such signals")
def test_a_silent_server_is_left_in_time_whatever_signals_come(recording_server, start_chaos):
    recording_server.files = {"x": CONTENT}
    chaos = start_chaos(recording_server.url, stall_after=100_000)
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    began = time.monotonic()
    try:
        with (
            Transports(read_timeout=0.5) as transports,
            pytest.raises(TransportError, match="silent"),
        ):
            read(transports.open(chaos.url + "/x"), size=1 << 20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("size", [8191, 8192, 8193, 20_000, 100_000, 3 << 20])
@pytest.mark.parametrize("buffer", [1000, 8192, 8193, 1 << 20])
def test_a_body_is_whole_however_it_is_asked_for(web, recording_server, size, buffer):
    content = random.Random(size).randbytes(size)
    recording_server.files = {"x": content}
    resource = web.open(recording_server.url + "/x")
    for call in (on_a_thread, lambda read, *a, **b: read(*a, **b)) * 2:  # over one connection
        assert call(read, resource, size=buffer) == content
        assert call(read, resource, 1, size, size=buffer) == content[1:]
    assert recording_server.connections == 1


def test_buffers_of_all_sizes_may_follow_one_another(web, recording_server):
    recording_server.files = {"x": CONTENT}
    rng = random.Random(0)

    def read_all():
        data = b""
        with web.open(recording_server.url + "/x").read() as stream:
            while piece := stream.read(rng.choice([1, 100, 9000, 50_000])):
                data += piece
        return data

    for _ in range(20):
        assert on_a_thread(read_all) == CONTENT


def dripping(listener, context, begin):
    """Answer one request with this, and then a digit now and then."""
    connection, _ = listener.accept()
    if context is not None:
        connection = context.wrap_socket(connection, server_side=True)
    with connection, contextlib.suppress(OSError):
        connection.recv(1 << 16)
        connection.sendall(begin)
        for digit in repeat(b"1", 1000):
            connection.sendall(digit)
            time.sleep(0.02)


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(
    "begin",
    [
        b"HTTP/1.1 ",
        b"HTTP/1.1 200 OK\r\nX-",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-",
    ],
    ids=["status", "header", "body", "endless", "chunk", "trailer"],
)
def test_whatever_drips_ends_in_time(begin, secure, tls, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls[0]))
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Transports(read_timeout=0.3, low_speed=1000, low_speed_seconds=0.4) as hasty,
    ):
        serving = (listener, tls[1] if secure else None, begin)
        thread = threading.Thread(target=dripping, args=serving)
        thread.start()
        scheme = "https" if secure else "http"
        resource = hasty.open(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/x")
        began = time.monotonic()
        with pytest.raises(TransportError, match="too slow") as caught:
            read(resource, size=1 << 20)
        assert caught.value.transient
        assert time.monotonic() - began < 5
        thread.join(30)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "proxy",
    ["http://u:p@", "//:@", "http://", "http://[::1", "http://h:99999", "a b", "\n", "[", "x://y"],
)
def test_a_proxy_that_cannot_be_parsed_is_a_typed_error(monkeypatch, scheme, proxy):
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(f"{scheme}_proxy", proxy)
    url = Url.parse(f"{scheme}://models.invalid:1/x")
    session = Session(Limits(connect_timeout=1, read_timeout=1))
    with pytest.raises(TransportError) as caught:
        session.send("GET", url, {}, url.shown)
    session.close()
    assert caught.value.path == url.shown
