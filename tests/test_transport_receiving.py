"""How the body of a reply is received: by few calls of the system, whole, and in time."""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import threading
import time

import pytest

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


@pytest.mark.parametrize("size", [8191, 8192, 8193, 20_000, 100_000, 3 << 20])
@pytest.mark.parametrize("buffer", [1000, 8192, 8193, 1 << 20])
def test_a_body_is_whole_however_it_is_asked_for(web, recording_server, size, buffer):
    content = random.Random(size).randbytes(size)
    recording_server.files = {"x": content}
    resource = web.open(recording_server.url + "/x")
    for _ in range(2):  # over one connection
        assert read(resource, size=buffer) == content
        assert read(resource, 1, size, size=buffer) == content[1:]
    assert recording_server.connections == 1


def test_buffers_of_all_sizes_may_follow_one_another(web, recording_server):
    recording_server.files = {"x": CONTENT}
    rng = random.Random(0)
    for _ in range(20):
        data = b""
        with web.open(recording_server.url + "/x").read() as stream:
            while piece := stream.read(rng.choice([1, 100, 9000, 50_000])):
                data += piece
        assert data == CONTENT
