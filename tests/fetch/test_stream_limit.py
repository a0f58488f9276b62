"""How many streams read at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from mlstate.errors import IntegrityError, TransportError
from mlstate.fetch import reader
from mlstate.fetch.progress import Meter
from mlstate.fetch.reader import Reader
from mlstate.transport import Retries

STREAMS = 16


class Count:
    """How many are at work, and how many were at most."""

    def __init__(self) -> None:
        self.now = self.most = self.began = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.began += 1
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.now -= 1


def read_all(meter: Meter, work: Callable[[int], None], number: int = STREAMS) -> None:
    Reader(Retries(), meter, STREAMS).all(partial(work, item) for item in range(number))


def test_where_nothing_comes_all_streams_are_asked_soon():
    count, met = Count(), threading.Barrier(STREAMS)

    def work(item: int) -> None:
        with count:
            met.wait(20)  # fails if not all come

    began = time.monotonic()
    read_all(Meter("test"), work)
    assert count.most == STREAMS
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("bytes_", [True, False])
def test_where_much_comes_few_streams_read(bytes_: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "_LOOK", 0.3)
    monkeypatch.setattr(reader, "_FAST", 1e7)  # whatever else this machine has to do
    count, meter = Count(), Meter("test")

    def work(item: int) -> None:
        with count:
            time.sleep(0.01 if bytes_ else 0.002)
            if bytes_:
                meter.add(1 << 30)

    read_all(meter, work, 300 if bytes_ else 1500)
    assert count.most <= reader._FEW


def test_what_becomes_slow_gets_more_streams(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "_LOOK", 0.5)
    count, meter = Count(), Meter("test")

    def feed() -> None:
        for _ in range(26):
            meter.add(1 << 30)
            time.sleep(0.05)
        seen.append(count.most)

    def work(item: int) -> None:
        with count:
            end.wait(20)

    seen: list[int] = []
    end = threading.Event()
    feeder = threading.Thread(target=feed)
    feeder.start()

    def watch() -> None:
        until = time.monotonic() + 20
        while count.most < STREAMS and time.monotonic() < until:
            time.sleep(0.01)
        end.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    read_all(meter, work)
    feeder.join()
    watcher.join()
    assert seen == [reader._FEW]
    assert count.most == STREAMS


@pytest.mark.parametrize("error", [TransportError("gone"), IntegrityError("wrong")], ids=str)
def test_who_waits_for_a_turn_asks_for_nothing_after_an_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reader, "_LOOK", 20.0)
    asked = Count()

    def work(item: int) -> None:
        with asked:
            time.sleep(0.2)  # all have an item by then, and wait
            raise error

    with pytest.raises(type(error)):
        read_all(Meter("test"), work)
    assert asked.began <= reader._FEW


def test_a_single_request_needs_no_other_turn():
    done: list[int] = []
    read_all(Meter("test"), done.append, 1)
    assert done == [0]


def test_fewer_streams_than_few_are_as_many():
    count = Count()

    def work(item: int) -> None:
        with count:
            time.sleep(0.01)

    Reader(Retries(), Meter("test"), 2).all(partial(work, item) for item in range(20))
    assert count.most == 2


def test_after_ctrl_c_nobody_waits_for_a_turn_for_ever(monkeypatch: pytest.MonkeyPatch):
    stuck, began = threading.Event(), Count()
    before = set(threading.enumerate())

    def interrupted(self: reader.StreamLimit, work: threading.Thread) -> None:
        while began.now < reader._FEW:
            time.sleep(0.001)
        raise KeyboardInterrupt

    def work(item: int) -> None:
        with began:
            stuck.wait(20)

    monkeypatch.setattr(reader.StreamLimit, "watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_all(Meter("test"), work)
    left = set(threading.enumerate()) - before
    until = time.monotonic() + 10
    while sum(thread.is_alive() for thread in left) > reader._FEW + 1:  # and who waits for these
        assert time.monotonic() < until, "some wait although nothing is read any more"
        time.sleep(0.01)
    stuck.set()
    for thread in left:
        thread.join(10)
        assert not thread.is_alive()
    assert began.began == reader._FEW
