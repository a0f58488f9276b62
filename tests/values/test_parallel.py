"""Work is spread over threads: each item once, and no error lost."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate.parallel import Background, ProcessLock, _Helper, begun, for_each


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers()), st.integers(1, 5))
def test_every_item_is_worked_on_once(items, threads):
    done = []
    for_each(done.append, iter(items), threads)
    assert Counter(done) == Counter(items)


def test_work_is_done_when_it_returns():
    done = []

    def slowly(item):
        threading.Event().wait(0.01)
        done.append(item)

    for_each(slowly, range(7), 3)
    assert len(done) == 7


def test_several_threads_work_at_once():
    together = threading.Barrier(3)
    for_each(lambda _: together.wait(10), range(3), 3)


def test_one_thread_keeps_the_order_and_the_caller():
    done = []
    for_each(lambda item: done.append((item, threading.current_thread())), range(5), 1)
    assert done == [(item, threading.current_thread()) for item in range(5)]


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_is_raised_and_the_rest_left_out(threads, kind):
    begun = []
    error = kind("x")

    def work(item):
        begun.append(item)
        raise error

    with pytest.raises(kind) as caught:
        for_each(work, range(1000), threads)
    assert caught.value is error
    assert 1 <= len(begun) <= threads


def test_what_was_begun_is_finished_before_the_error_is_raised():
    failed = threading.Event()
    finished = []

    def work(item):
        if item == "bad":
            failed.set()
            raise ValueError(item)
        failed.wait(10)
        threading.Event().wait(0.02)
        finished.append(item)

    with pytest.raises(ValueError, match="bad"):
        for_each(work, ["good", "bad"], 2)
    assert finished == ["good"]


def test_the_first_error_is_the_one_raised():
    first = threading.Event()

    def work(item):
        if item == 0:
            first.set()
            raise ValueError("first")
        first.wait(10)
        threading.Event().wait(0.02)
        raise ValueError("second")

    with pytest.raises(ValueError, match="first"):
        for_each(work, range(2), 2)


def test_no_thread_is_left_behind():
    before = threading.active_count()
    for_each(lambda _: None, range(10), 4)
    assert threading.active_count() == before


def test_other_threads_begin_before_the_caller_takes_part():
    one, more = threading.Event(), threading.Event()
    steps = {1: one.set, 2: more.set}
    with begun(lambda item: steps[item](), [1, 2], 2) as finish:
        assert one.wait(10)
        assert more.wait(10)
        finish()


def test_who_does_not_take_part_ends_the_work():
    done, first = [], threading.Event()

    def work(item):
        done.append(item)
        first.set()
        threading.Event().wait(0.01)

    def leave():
        with begun(work, range(1000), 2):
            assert first.wait(10)
            raise KeyError("left")

    with pytest.raises(KeyError, match="left"):
        leave()
    assert 1 <= len(done) < 1000
    settled = len(done)
    threading.Event().wait(0.05)
    assert len(done) == settled


def test_an_error_of_another_thread_waits_until_the_caller_takes_part():
    failed = threading.Event()

    def work(item):
        failed.set()
        raise ValueError("x")

    with begun(work, [1], 2) as finish:
        assert failed.wait(10)
        with pytest.raises(ValueError, match="x"):
            finish()


def test_work_in_the_background_is_done_when_it_was_waited_for():
    done: list[int] = []
    background = Background(3, most=4)
    for round_ in range(3):
        for number in range(20):
            background.do(lambda number=number: done.append(number))
        background.wait()
        assert sorted(done) == sorted(list(range(20)) * (round_ + 1))


def test_no_more_than_asked_for_is_under_way():
    background, go = Background(2, most=3), threading.Event()
    for _ in range(3):
        background.do(go.wait)
    fourth = threading.Thread(target=background.do, args=(go.wait,))
    fourth.start()
    fourth.join(0.1)
    assert fourth.is_alive()
    go.set()
    fourth.join()
    background.wait()


def test_an_error_in_the_background_is_raised_and_then_forgotten():
    background = Background(2, most=3)

    def fail() -> None:
        raise KeyError("lost")

    background.do(fail)
    with pytest.raises(KeyError, match="lost"):
        background.wait()
    background.do(lambda: None)
    background.wait()


def test_the_threads_of_the_background_end():
    before = set(threading.enumerate())
    background = Background(4, most=8)
    for _ in range(8):
        background.do(lambda: None)
    background.wait()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)  # they have ended their work, and are about to end
        assert not thread.is_alive()


def test_ctrl_c_while_the_end_is_waited_for_leaves_no_thread_at_work(monkeypatch):
    """Python's own join takes an interrupted thread to have ended."""
    go, done = threading.Event(), []

    def work(number: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            go.wait()
            done.append(number)
        else:
            while not helper_has_one.is_set():
                helper_has_one.wait(0.01)

    helper_has_one = threading.Event()

    def items():
        yield 1
        helper_has_one.set()
        yield 2

    wait, interrupted = _Helper.wait, []

    def once(helper):
        if not interrupted:
            interrupted.append(helper)
            threading.Timer(0.1, go.set).start()
            raise KeyboardInterrupt
        wait(helper)

    monkeypatch.setattr(_Helper, "wait", once)
    with pytest.raises(KeyboardInterrupt):
        for_each(work, items())
    assert len(done) == 1, "it was waited for"


def test_a_helper_that_waits_for_items_is_woken_when_there_will_be_none():
    queue: SimpleQueue[int | None] = SimpleQueue()
    with (
        pytest.raises(KeyError),
        begun(print, iter(queue.get, None), cancel=lambda: queue.put(None)),
    ):
        raise KeyError


def test_without_threads_the_caller_does_it(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    background = Background(2, most=2)
    for number in range(5):
        background.do(lambda number=number: done.append(number))
    background.wait()
    assert done == [0, 1, 2, 3, 4]


def test_another_thread_is_begun_only_where_all_have_work():
    background, go = Background(3, most=8), threading.Event()
    for _ in range(4):  # each is done before the next comes
        background.do(lambda: None)
        while background._room.qsize() < 8:
            time.sleep(0.001)
    assert len(background._helpers) == 1
    for _ in range(2):
        background.do(lambda: go.wait(60))
    assert len(background._helpers) == 2
    go.set()
    background.wait()


@pytest.mark.parametrize("started", [0, 1])
def test_where_threads_are_missing_those_there_are_do_the_work(monkeypatch, started):
    real, left = threading.Thread.start, [started]

    def refuse(thread):
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    for_each(done.append, range(100), 8)
    assert sorted(done) == [*range(100)]
    with begun(done.append, range(100, 200), 8) as finish:
        finish()
    assert sorted(done) == [*range(200)]


FORKED = """
import os, signal, sys, threading
from mlstate.parallel import ProcessLock

lock, again = ProcessLock(), ProcessLock(again=True)
held, done = threading.Event(), threading.Event()

def hold():
    with lock, again:
        held.set()
        done.wait(60)

thread = threading.Thread(target=hold)
thread.start()
held.wait(60)
child = os.fork()
if child == 0:
    signal.alarm(30)  # it would wait for ever
    with lock, again, again:
        os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert not lock._lock.acquire(blocking=False)  # in the parent it is held still
done.set()
thread.join()
with lock:
    if (child := os.fork()) == 0:
        signal.alarm(30)
assert child or lock._lock.acquire(blocking=False)
os._exit(0 if child == 0 else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_lock_that_another_thread_holds_is_free_in_a_forked_child():
    run = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, ""), run.stderr


def test_a_pickled_lock_is_a_new_one():
    lock = ProcessLock(again=True)
    with lock, lock:
        other = pickle.loads(pickle.dumps(lock))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(other.__enter__).result(60) is None
