"""Work spread over a few threads. Hashing and copying release the GIL, so threads do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["THREADS", "begun", "for_each"]

THREADS = 2

_T = TypeVar("_T")


def for_each(
    work: Callable[[_T], None],
    items: Iterable[_T],
    threads: int = THREADS,
) -> None:
    """Call ``work`` on every item, on several threads that take the next item as they come free.

    A future for each of many small tensors costs more than the tensor (measured: a third of the
    speed at 64 KB), a shared iterator does not.

    Args:
        work: What to do.
        items: With what. An iterator is asked for the next item when a thread comes free, by one
            thread at a time.
        threads: How many threads work, this one included.

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
) -> Iterator[Callable[[], None]]:
    """Like `for_each`, with time for something else: the other threads begin at once.

    Args:
        work: What to do.
        items: With what.
        threads: How many threads work, this one included, once it calls what this gives.

    Yields:
        A call that takes part in the work, and returns when all of it is done. Without that call,
        or after an error, items not yet begun are left out when the context ends.

    Raises:
        BaseException: By that call: the first error of any thread.
    """
    end: Any = object()
    remaining = iter(items)
    lock = threading.Lock()
    errors: list[BaseException] = []
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
            helper.join()
        if errors:
            raise errors[0]

    helpers = [threading.Thread(target=run, daemon=True) for _ in range(threads - 1)]
    for helper in helpers:
        helper.start()
    try:
        yield finish
    finally:  # Ctrl-C, too: the helpers take no further item
        over = True
        for helper in helpers:
            helper.join()
