"""The least speed of a server, and reading no more than so much of it."""

from __future__ import annotations

import pytest

from mlstate import limits
from mlstate.limits import Limits, SpeedLimit, read_limited


@pytest.fixture
def clock(monkeypatch):
    """The time, which passes as a test says."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
    return clock


def received(speed, clock, seconds, size):
    speed.resume()
    clock.now += seconds
    return speed.count(size)


def test_a_server_has_to_give_enough_bytes_in_each_span_of_time(clock):
    speed = SpeedLimit(Limits(low_speed=10, low_speed_seconds=5))
    assert received(speed, clock, 4, 30)
    assert received(speed, clock, 4, 20)  # late, but these are enough
    assert received(speed, clock, 4.9, 1)
    assert not received(speed, clock, 0.2, 1)


def test_the_time_that_a_reader_takes_for_itself_does_not_count(clock):
    speed = SpeedLimit(Limits(low_speed=10, low_speed_seconds=5))
    for _ in range(4):
        assert received(speed, clock, 1, 1)
        clock.now += 100
    assert received(speed, clock, 0.9, 1)
    assert not received(speed, clock, 0.2, 1)


@pytest.mark.parametrize(
    ("most", "found"), [(0, b"a"), (3, b"abcd"), (4, b"abcde"), (5, b"abcde"), (9, b"abcde")]
)
def test_one_byte_more_than_the_most_is_read(most, found):
    assert read_limited(iter([b"ab", memoryview(b"c"), b"de"]), most) == found


def test_no_chunk_is_asked_for_once_there_is_too_much():
    def chunks():
        yield b"abc"
        raise AssertionError

    assert read_limited(chunks(), 2) == b"abc"
