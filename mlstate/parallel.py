"""Work on several threads. Hashing and copying release the GIL, so that threads suffice."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["THREADS", "Background", "OneFirst", "ProcessLock", "begun", "for_each"]

THREADS = 2

_MOMENT = 1.0
"""The seconds within which a thread begins, once it was started."""

_T = TypeVar("_T")


class ProcessLock:
    """A lock for the threads of this process alone, which another process begins anew.

    A thread that holds a plain lock when the process is forked does not exist in the child, and
    never gives it back there: whoever asks for it waits for ever. A plain lock cannot be pickled,
    either.

    Args:
        again: Whether the thread that holds the lock may take it once more.
    """

    def __init__(self, again: bool = False) -> None:
        self._again = again
        self._renew()
        _LOCKS.add(self)

    def _renew(self) -> None:
        self._lock = threading.RLock() if self._again else threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(RuntimeError):  # the process was forked within the context: it is renewed
            self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return (ProcessLock, (self._again,))


_LOCKS: weakref.WeakSet[ProcessLock] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in _LOCKS:
        lock._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


def for_each(work: Callable[[_T], None], items: Iterable[_T], threads: int = THREADS) -> None:
    """Call ``work`` on every item, on several threads; the calling thread is one of them.

    A future for each of many small tensors costs more than the tensor (measured: a third of the
    speed at 64 KB), a shared iterator does not. It is asked for the next item by one thread at a
    time. This thread works, too, and alone where no other can be started.

    Raises:
        BaseException: The first error of any call; items not yet begun are then left out.
    """
    with begun(work, items, threads) as finish:
        finish()


@contextmanager
def begun(
    work: Callable[[_T], None],
    items: Iterable[_T],
    threads: int = THREADS,
    *,
    cancel: Callable[[], object] = lambda: None,
) -> Iterator[Callable[[], None]]:
    """Like `for_each`, but the calling thread can do something else while the others work.

    Yields:
        A function that takes part in the work, and returns when all of it is done, or raises the
        first error of any thread. When the context ends, ``cancel`` is called, which wakes a thread
        that waits for an item; items not yet begun are left out, and all threads have ended, even
        after Ctrl-C.
    """
    end: Any = object()
    remaining = iter(items)
    lock = threading.Lock()
    errors: list[BaseException] = []
    helpers: list[_Helper] = []
    over = False

    def run() -> None:
        while not errors and not over:
            try:
                with lock:
                    item = next(remaining, end)
                if item is end:
                    return
                work(item)
            except BaseException as error:
                errors.append(error)

    def finish() -> None:
        run()
        for helper in helpers:
            helper.wait()
        if errors:
            raise errors[0]

    try:
        _start(helpers, run, threads - 1)
        yield finish
    finally:  # Ctrl-C, too: the helpers take no further item
        over = True
        cancel()
        for helper in helpers:
            helper.wait()


def _start(helpers: list[_Helper], run: Callable[[], None], most: int) -> None:
    """Start helpers: fewer, or none, where there can be no more threads."""
    with suppress(RuntimeError):
        for _ in range(most):
            helpers.append(_Helper(run))  # before it starts, should Ctrl-C come between
            helpers[-1].start()


class _Helper:
    """A thread for whose end one can wait again after an interruption of the first wait.

    After an interrupted ``Thread.join``, Python takes the thread to have ended; events and
    semaphores may stay locked. Locks and simple queues are safe. If ``run`` begins late, after the
    caller has given up, it must find nothing to do.
    """

    def __init__(self, run: Callable[[], None]) -> None:
        self._run = run
        self._asked = self._started = False
        self._not_begun, self._at_work = threading.Lock(), threading.Lock()
        self._not_begun.acquire()
        self._at_work.acquire()

    def start(self) -> None:
        """Start the thread; a RuntimeError if there can be no more threads."""
        self._asked = True
        try:
            threading.Thread(target=self._until_the_end, daemon=True).start()
        except RuntimeError:
            self._asked = False
            raise
        self._started = True

    def wait(self) -> None:
        """Wait until the thread has ended, if it was started."""
        if not self._asked:
            return
        # After Ctrl-C during `start`, it is unknown whether the thread was started.
        if self._started or self._not_begun.acquire(timeout=_MOMENT):
            self._started = True
            with self._at_work:
                pass

    def _until_the_end(self) -> None:
        self._not_begun.release()
        try:
            self._run()
        finally:
            self._at_work.release()


class Background:
    """Work that mostly waits, for instance for a disk, on threads beside that of the caller.

    At most ``most`` calls are under way: a caller with more waits. A thread is added while all are
    busy. At the end of a program, when none can be started, the caller works itself.
    """

    def __init__(self, threads: int, *, most: int) -> None:
        self._threads, self._most = threads, most
        self._room: SimpleQueue[None] = SimpleQueue()  # a place for each work under way
        for _ in range(most):
            self._room.put(None)
        self._lock = threading.Lock()
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._helpers: list[_Helper] = []
        self._errors: list[BaseException] = []

    def do(self, work: Callable[[], object]) -> None:
        """Do some work, for any thread; raises the error of earlier work instead."""
        if self._errors:
            raise self._errors[0]
        self._room.get()
        with self._lock:
            under_way = self._most - self._room.qsize()
            if len(self._helpers) < min(self._threads, under_way):
                helper = _Helper(partial(self._run_all, self._queue))
                self._helpers.append(helper)
                try:
                    helper.start()
                except RuntimeError:
                    self._helpers.remove(helper)
            if self._helpers:
                self._queue.put(work)
                return
        self._run(work)

    def wait(self) -> None:
        """Wait until all work is done, let the threads end, and raise the first error."""
        with self._lock:
            helpers = self._helpers
            for _ in helpers:
                self._queue.put(None)
            self._helpers, self._queue = [], SimpleQueue()
        for helper in helpers:
            helper.wait()
        if self._errors:
            error, self._errors = self._errors[0], []
            raise error

    def _run_all(self, queue: SimpleQueue[Callable[[], object] | None]) -> None:
        for work in iter(queue.get, None):
            self._run(work)

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._room.put(None)


class OneFirst:
    """Lets one thread look something up while others wait; if it fails, they all try at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Enter at once, or wait until the thread that entered has left; it may know by then."""
        if self._lock.acquire(blocking=False):
            try:
                yield
            finally:
                self._lock.release()
        else:
            with self._lock:
                pass
            yield
