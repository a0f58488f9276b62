"""How many threads read at once: a few where bytes come fast, all where the network is slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mlstate.fetch import crew as module
from mlstate.fetch.crew import Crew

MOST = 7


class Network:
    """Gives bytes, after a while; counts who waits for them at the same time.

    Args:
        wait: Called for each item: returns how many bytes came.
    """

    def __init__(self, wait: Callable[[int], int]) -> None:
        self.done: list[int] = []
        self.came = 0
        self.at_once = 0
        self._now = 0
        self._wait = wait
        self._lock = threading.Lock()

    def read(self, item: int) -> None:
        with self._lock:
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        count = self._wait(item)
        with self._lock:
            self._now -= 1
            self.came += count
            self.done.append(item)

    def crew(self, count: int, most: int = MOST) -> Crew[int]:
        return Crew(self.read, range(count), most, lambda: self.came)


def after(seconds: float, count: int) -> Callable[[int], int]:
    def wait(_: int) -> int:
        time.sleep(seconds)
        return count

    return wait


def test_what_keeps_a_processor_busy_is_read_by_a_few(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_FIRST_BYTES", 10)
    monkeypatch.setattr(module, "_LOOK_AGAIN", 0.1)
    monkeypatch.setattr(module, "_BUSY", 0.02)  # other processes may be busy, too

    def work(_: int) -> int:
        until = time.thread_time() + 0.005
        while time.thread_time() < until:
            pass
        return 1

    network = Network(work)
    assert network.crew(200).work() is None
    assert sorted(network.done) == list(range(200))
    assert network.at_once <= module._FEW


def test_where_nothing_comes_at_first_all_read():
    together = threading.Barrier(MOST)

    def wait(_: int) -> int:
        together.wait(60)  # breaks if there are fewer
        return 1

    network = Network(wait)
    assert network.crew(MOST).work() is None
    assert network.at_once == MOST


def test_where_it_becomes_slow_all_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_LOOK_AGAIN", 0.01)
    together = threading.Barrier(MOST)

    def wait(item: int) -> int:
        if item >= 100:
            together.wait(60)
        return 1

    network = Network(wait)
    assert network.crew(100 + MOST).work() is None
    assert sorted(network.done) == list(range(100 + MOST))


def test_fewer_may_be_asked_for_than_a_few():
    network = Network(after(0.02, 0))
    assert network.crew(10, most=1).work() is None
    assert network.at_once == 1


def test_an_error_ends_the_taking_of_work_by_all():
    error = ValueError("no")
    asked = []

    def items() -> Iterator[int]:
        for item in range(1000):
            asked.append(item)
            yield item

    def do(item: int) -> None:
        time.sleep(0.02)  # longer than nothing may come, so that all are at work
        if item == 20:
            raise error

    crew = Crew(do, items(), MOST, lambda: 0)
    assert crew.work() is error
    assert len(asked) <= 21 + 2 * MOST
    crew.wait()


def test_an_error_of_what_gives_the_work_is_told():
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("what to do")

    error = Crew(lambda _: None, items(), MOST, lambda: 0).work()
    assert isinstance(error, KeyError)
