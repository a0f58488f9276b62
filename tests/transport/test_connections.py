"""How the body of a reply is received: by few calls of the system, whole, and in time."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlstate.errors import TransportError
from mlstate.transport import Transports, connections

CONTENT = bytes(range(256)) * 800

linux = pytest.mark.skipif(sys.platform != "linux", reason="others receive as Python does")


@pytest.fixture
def web():
    with Transports(read_timeout=5) as transports:
        yield transports


def read(resource, *bounds, size):
    with resource.read(*bounds) as stream:
        return b"".join(iter(lambda: stream.read(size), b""))


def on_a_thread(call, *arguments, **named):
    """As fetches do it: the main thread, which gets the signals, receives as Python does."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(call, *arguments, **named).result()


class Slowly:
    """A server that sends a body as it is told, of which this side receives under a watch."""

    def __init__(self, timeout: float = 5.0, low_speed_seconds: float = 5.0) -> None:
        self.sender, self.receiver = socket.socketpair()
        self.receiver.settimeout(timeout)
        raw = self.receiver.makefile("rb", buffering=0)
        self.direct = connections._Direct(self.receiver, connections.Watch(raw, low_speed_seconds))
        raw.close()

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


@pytest.fixture
def slowly():
    with contextlib.ExitStack() as stack:

        def start(**options):
            made = Slowly(**options)
            stack.callback(made.close)
            return made

        yield start


@linux
def test_all_that_comes_within_a_moment_is_received_by_one_call(slowly, monkeypatch):
    monkeypatch.setattr(connections, "_MOMENT", 5.0)
    one, buffer = slowly(), memoryview(bytearray(3000))

    def send():
        for _ in range(3):
            one.sender.sendall(b"x" * 1000)
            time.sleep(0.05)

    thread = threading.Thread(target=send)
    thread.start()
    assert one.direct.readinto(buffer) == 3000
    thread.join()


@linux
def test_what_comes_slowly_is_given_after_a_moment_and_at_the_end(slowly):
    one, buffer = slowly(), memoryview(bytearray(3000))
    one.sender.sendall(b"x" * 1000)
    began = time.monotonic()
    assert one.direct.readinto(buffer) == 1000
    assert time.monotonic() - began < 4
    one.sender.sendall(b"x" * 10)
    one.sender.close()
    assert one.direct.readinto(buffer) == 10
    assert one.direct.readinto(buffer) == 0


@linux
@pytest.mark.parametrize("limit", ["timeout", "low_speed_seconds"])
def test_silence_ends_at_whichever_limit_comes_first(slowly, limit):
    one = slowly(**{limit: 0.3})
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        one.direct.readinto(memoryview(bytearray(10)))
    assert 0.25 < time.monotonic() - began < 4


@linux
def test_afterwards_the_socket_waits_as_before(slowly):
    one = slowly(timeout=3.0)
    assert one.receiver.gettimeout() is None
    one.direct.close()
    assert one.receiver.gettimeout() == 3.0


@linux
def test_a_large_body_is_received_directly_and_its_connection_waits_as_before(
    web, recording_server, monkeypatch
):
    made = []

    class Noted(connections._Direct):
        def __init__(self, sock, watch):
            super().__init__(sock, watch)
            made.append(sock)

    monkeypatch.setattr(connections, "_Direct", Noted)
    recording_server.files = {"x": CONTENT}
    resource = web.open(recording_server.url + "/x")
    assert read(resource, size=1 << 20) == CONTENT
    assert made == []
    assert on_a_thread(read, resource, size=1 << 20) == CONTENT
    (sock,) = made
    assert sock.gettimeout() == 5
    moment = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
    assert moment == bytes(16)


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


@linux
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
