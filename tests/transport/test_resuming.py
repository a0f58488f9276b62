"""Resources that outlast transient errors: a stream goes on from where it broke."""

from __future__ import annotations

import random
import signal
import threading
import time
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate.errors import NoRangesError, OfflineError, TransportError
from mlstate.transport import Resource, Retries, Stream, Transports, retrying
from tests.servers.recording import Reply

CONTENT = random.Random(3).randbytes(200_000)


def transient(**fields):
    return TransportError("broken", transient=True, **fields)


class Fragile:
    """A resource that breaks after as many bytes as its plan says, one reading after the other."""

    address = "fragile"

    def __init__(self, content, cuts=(), ranges=True, says_length=True, error=transient):
        self.content = content
        self.cuts = list(cuts)  # bytes until a reading breaks; -1: it does not even begin
        self.ranges = ranges
        self.says_length = says_length
        self.error = error
        self.readings = []
        self.open = 0

    def size(self):
        if self.cuts:
            self.cuts.pop(0)
            raise self.error()
        return len(self.content)

    @contextmanager
    def read(self, start=0, stop=None):
        self.readings.append((start, stop))
        if not self.ranges and (start, stop) != (0, None):
            raise NoRangesError("whole only")
        cut = self.cuts.pop(0) if self.cuts else None
        if cut == -1:
            raise self.error()
        self.open += 1
        try:
            yield FragileStream(self, self.content[start:stop], cut)
        finally:
            self.open -= 1


class FragileStream(Stream):
    def __init__(self, owner, data, cut):
        self.length = len(data) if owner.says_length else None
        self.total = len(owner.content) if owner.says_length else None
        self._data, self._cut, self._error = data, cut, owner.error

    def readinto(self, buffer):
        size = len(buffer)
        if self._cut is not None:
            size = min(size, self._cut)
            if size == 0:
                raise self._error()
            self._cut -= size
        data, self._data = self._data[:size], self._data[size:]
        buffer[: len(data)] = data
        return len(data)


def everything(resource, start=0, stop=None, size=1000):
    with resource.read(start, stop) as stream:
        return b"".join(iter(lambda: stream.read(size), b""))


def patient(resource, attempts=5, **options):
    return retrying(resource, Retries(attempts), sleep=lambda seconds: None, **options)


@given(
    content=st.binary(max_size=300),
    cuts=st.lists(st.integers(-1, 60).filter(bool), max_size=12),
    ranges=st.booleans(),
    says_length=st.booleans(),
    size=st.integers(1, 50),
)
def test_a_stream_that_breaks_anywhere_gives_exactly_the_bytes(
    content, cuts, ranges, says_length, size
):
    inner = Fragile(content, cuts, ranges, says_length)
    assert everything(patient(inner, attempts=100), size=size) == content
    assert inner.open == 0
    if ranges:
        given_so_far = [start for start, _ in inner.readings]
        assert given_so_far == sorted(given_so_far)  # nothing is asked for again


@given(
    cuts=st.lists(st.integers(-1, 20).filter(bool), max_size=12),
    bounds=st.tuples(st.integers(0, 100), st.integers(0, 100)).map(sorted),
)
def test_a_range_that_breaks_anywhere_gives_exactly_its_bytes(cuts, bounds):
    content = bytes(range(100))
    start, stop = bounds
    inner = Fragile(content, cuts)
    assert everything(patient(inner, attempts=100), start, stop, size=7) == content[start:stop]
    assert all(reading[1] == stop for reading in inner.readings)


def test_it_is_a_resource_with_streams(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    resource = patient(Transports().open("a", base=tmp_path))
    assert isinstance(resource, Resource)
    assert resource.address == str(tmp_path / "a")
    assert resource.size() == len(CONTENT)
    with resource.read(5, 10) as stream:
        assert isinstance(stream, Stream)
        assert (stream.length, stream.total) == (5, len(CONTENT))
    assert str(tmp_path) in repr(resource)


def test_progress_starts_the_count_anew_and_standing_still_does_not():
    inner = Fragile(bytes(100), [1] * 50)
    retries = Retries(2, enough=1)
    assert everything(retrying(inner, retries, sleep=lambda seconds: None)) == bytes(100)
    inner = Fragile(bytes(100), [1] * 50)
    with pytest.raises(TransportError, match="broken"):
        everything(patient(inner, attempts=4))
    assert len(inner.readings) == 4
    inner = Fragile(bytes(100), [10, -1, -1, -1, -1, -1, -1])
    with pytest.raises(TransportError, match="broken"):
        everything(patient(inner, attempts=4))
    assert len(inner.readings) == 4
    assert inner.open == 0


def test_without_ranges_the_same_place_again_is_no_progress():
    inner = Fragile(bytes(100), [50] * 20, ranges=False)
    with pytest.raises(TransportError, match="broken"):
        everything(patient(inner, attempts=4))
    assert inner.readings.count((0, None)) == 4


def test_a_range_does_not_become_the_whole():
    inner = Fragile(bytes(100), [10])
    with patient(inner).read(10, 50) as stream:
        stream.read(10)
        inner.ranges = False
        with pytest.raises(NoRangesError):
            stream.read(10)
    inner = Fragile(bytes(100), ranges=False)
    with pytest.raises(NoRangesError):
        everything(patient(inner), 10, 50)
    assert len(inner.readings) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_another_length_on_resuming_is_a_change(ranges):
    inner = Fragile(bytes(100), [10], ranges=ranges)
    with patient(inner).read() as stream:
        stream.read(10)
        inner.content = bytes(99)
        with pytest.raises(TransportError, match="changed"):
            stream.read(10)
    assert inner.open == 0


def test_a_whole_that_became_shorter_than_what_was_given_is_a_change():
    inner = Fragile(bytes(100), [50], ranges=False, says_length=False)
    with patient(inner).read() as stream:
        stream.read(50)
        inner.content = bytes(20)
        with pytest.raises(TransportError, match="changed"):
            stream.read(10)


def test_a_break_after_the_last_byte_is_no_loss():
    inner = Fragile(b"abc", [3])
    assert everything(patient(inner)) == b"abc"
    assert len(inner.readings) == 1


@pytest.mark.parametrize(
    "error",
    [lambda: TransportError("not here", status=404), lambda: OfflineError("offline"), KeyError],
)
def test_what_is_not_transient_is_not_tried_again(error):
    slept = []
    for cuts in ([-1, -1], [10, -1]):
        inner = Fragile(bytes(100), cuts, error=error)
        resource = retrying(inner, Retries(), sleep=slept.append)
        with pytest.raises(type(error())):
            everything(resource)
        assert len(inner.readings) == 1
    with pytest.raises(type(error())):
        retrying(Fragile(b"", [1], error=error), Retries(), sleep=slept.append).size()
    assert slept == []


def test_the_size_is_tried_again_too():
    assert patient(Fragile(b"abc", [-1] * 4)).size() == 3
    with pytest.raises(TransportError):
        patient(Fragile(b"abc", [-1] * 5)).size()


def test_the_wait_ends_as_soon_as_it_is_to_stop():
    begin = time.monotonic()
    stopped = threading.Event()
    threading.Timer(0.2, stopped.set).start()
    error = transient(retry_after=100)
    with pytest.raises(TransportError) as caught:
        retrying(Fragile(b"abc", [-1], error=lambda: error), Retries(), stopped.is_set).size()
    assert caught.value is error
    assert 0.1 < time.monotonic() - begin < 2


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_wait():
    begin = time.monotonic()
    inner = Fragile(b"abc", [2], error=lambda: transient(retry_after=100))
    main = threading.main_thread().ident
    timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        everything(retrying(inner, Retries()))
    assert time.monotonic() - begin < 5
    assert inner.open == 0
    timer.join()


# With real connections


@pytest.fixture
def web():
    with Transports(read_timeout=0.5, low_speed_seconds=1) as transports:
        yield transports


@pytest.mark.parametrize("reset", [False, True])
def test_a_download_over_a_connection_that_is_cut_again_and_again(
    web, recording_server, start_chaos, reset
):
    recording_server.files = {"x": CONTENT}
    chaos = start_chaos(recording_server.url, cut_after=30_000, reset=reset)
    resource = retrying(web.open(chaos.url + "/x"), Retries(first=0.01))
    assert everything(resource, size=1 << 16) == CONTENT
    assert everything(resource, 50_000, 120_000) == CONTENT[50_000:120_000]
    assert recording_server.requests[0].range is None
    assert all(request.range for request in recording_server.requests[1:])
    assert chaos.counts().bytes_down < 320_000


def test_a_stall_is_got_over(web, recording_server, start_chaos):
    recording_server.files = {"x": CONTENT}
    chaos = start_chaos(recording_server.url, stall_after=150_000, first=1)
    assert everything(retrying(web.open(chaos.url + "/x"), Retries(first=0.01))) == CONTENT
    assert chaos.counts().connections == 2


def test_without_ranges_a_download_begins_again(web, start_recording, start_chaos):
    server = start_recording({"x": CONTENT}, ranges=False)
    chaos = start_chaos(server.url, cut_after=150_000, first=1)
    assert everything(retrying(web.open(chaos.url + "/x"), Retries(first=0.01))) == CONTENT
    assert [request.range is None for request in server.requests] == [True, False, True]


def test_a_busy_server_is_waited_for(web, start_nginx, tmp_path):
    (tmp_path / "x").write_bytes(CONTENT)
    nginx = start_nginx(tmp_path)

    def sleep(seconds):
        slept.append(seconds)
        if sum(slept) >= 1:
            nginx.busy = False

    slept: list[float] = []
    resource = retrying(web.open(nginx.url("x", "busy")), Retries(first=0.01), sleep=sleep)
    assert everything(resource) == CONTENT
    assert [entry.status for entry in nginx.log()] == [503, 200]
    assert 1 <= sum(slept) < 1.1


def test_a_file_that_is_replaced_in_the_middle_is_not_stitched_together(
    web, recording_server, start_chaos
):
    recording_server.files = {"x": CONTENT}
    chaos = start_chaos(recording_server.url, cut_after=50_000, first=1)
    resource = retrying(web.open(chaos.url + "/x"), Retries(first=0.01))
    with resource.read() as stream:
        stream.read(10)
        recording_server.files = {"x": CONTENT[::-1]}
        with pytest.raises(TransportError, match="changed"):
            list(iter(lambda: stream.read(1 << 16), b""))


def test_a_refusal_is_final(web, recording_server):
    recording_server.before = lambda record: Reply(403)
    with pytest.raises(TransportError, match="refuses access"):
        everything(retrying(web.open(recording_server.url + "/x"), Retries()))
    assert len(recording_server.requests) == 1
