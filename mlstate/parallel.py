"""Work spread over a few threads. Hashing and copying release the GIL, so threads do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

__all__ = ["THREADS", "for_each"]

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
    end: Any = object()
    remaining = iter(items)
    lock = threading.Lock()
    errors: list[BaseException] = []

    def run() -> None:
        while not errors:
            try:
                with lock:
                    item = next(remaining, end)
                if item is end:
                    return
                work(item)
            except BaseException as error:
                errors.append(error)

    helpers = [threading.Thread(target=run, daemon=True) for _ in range(threads - 1)]
    for helper in helpers:
        helper.start()
    try:
        run()
        for helper in helpers:
            helper.join()
    except BaseException as error:  # Ctrl-C: the helpers take no further item
        errors.append(error)
        for helper in helpers:
            helper.join()
        raise
    if errors:
        raise errors[0]
