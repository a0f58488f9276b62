"""How many streams are read at once: a few, and more where it is the network that they wait for.

Each stream has a thread of its own. Where the network is no slower than this machine, they wait for
the interpreter's lock and for a processor, and more of them are only in each other's way: from a
server on the same machine 16 take a fifth longer than 4 (docs/performance.md).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from mlstate.parallel import for_each

__all__ = ["Crew"]

_FEW = 4
_FIRST_BYTES = 0.01
"""The seconds within which something comes from nearby."""
_LOOK_AGAIN = 0.25
"""The seconds after which it is asked again whether more would help."""
_BUSY = 0.7
"""So much of a processor's time, and threads wait for Python's lock rather than for the network."""

_T = TypeVar("_T")


class Crew(Generic[_T]):
    """Threads that go through the same work, each item once.

    Args:
        do: What to do with an item.
        work: The items. They are asked for by one thread at a time.
        most: How many threads at most.
        came: How many bytes have come so far.
    """

    def __init__(
        self, do: Callable[[_T], None], work: Iterable[_T], most: int, came: Callable[[], int]
    ) -> None:
        self._do = do
        self._items = _Shared(work)
        self._most = most
        self._came = came
        self._groups: list[threading.Thread] = []
        self._busy: list[float] = []  # seconds of a processor, for each item that is done
        self._errors: list[BaseException] = []

    def work(self) -> BaseException | None:
        """Have the work done. The calling thread does nothing but wait, so that Ctrl-C finds it.

        Returns:
            The first error, if there was one; items not yet begun were then left out.
        """
        few = min(_FEW, self._most)
        self._start(few)
        if few < self._most and self._more_may_help():
            self._start(self._most - few)
        self.wait()
        return self._errors[0] if self._errors else None

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the threads' end, for each group of them at most so long."""
        for group in self._groups:
            group.join(seconds)

    def _start(self, count: int) -> None:
        self._groups.append(threading.Thread(target=self._run, args=(count,), daemon=True))
        self._groups[-1].start()

    def _run(self, count: int) -> None:
        try:
            for_each(self._timed, self._items, count)
        except BaseException as error:
            self._errors.append(error)
            self._items.close()

    def _timed(self, item: _T) -> None:
        began = time.thread_time()
        self._do(item)
        self._busy.append(time.thread_time() - began)

    def _more_may_help(self) -> bool:
        """Watch the first threads until they are done, or it shows that the network is slow."""
        first, before = self._groups[0], self._came()
        first.join(_FIRST_BYTES)
        if first.is_alive() and self._came() == before:
            return True
        while first.is_alive():
            done = len(self._busy)
            first.join(_LOOK_AGAIN)
            if first.is_alive() and sum(self._busy[done:]) < _BUSY * _LOOK_AGAIN:
                return True
        return False


class _Shared(Iterator[_T]):
    """Items that several groups of threads take from."""

    def __init__(self, items: Iterable[_T]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()
        self._closed = False

    def __next__(self) -> _T:
        with self._lock:
            if self._closed:
                raise StopIteration
            return next(self._items)

    def close(self) -> None:
        """Give nothing more."""
        self._closed = True
