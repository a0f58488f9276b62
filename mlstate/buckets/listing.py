"""Lists of large folders, many at once: one after the other, ten million objects take 25 minutes.

The names in such a folder are digests, evenly spread: where the first page ends says how many there
are, and where others may begin. Of a small folder nothing is asked beyond what one list takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice, pairwise
from queue import Empty, Queue
from threading import Event, Thread

from mlstate.buckets.client import BucketClient
from mlstate.buckets.values import Item
from mlstate.parallel import for_each

__all__ = ["AT_ONCE", "spread_items"]

AT_ONCE = 64
"""So many lists at most."""
PAGE = 1000
"""The items that one request lists."""
_PAGES_EACH = 8
"""A list has about so many pages, of which a part of the last one is for nothing."""
_DIGITS = 8
_ALL = 16**_DIGITS
_SPREADS = ("s3://", "gs://")
"""Services that begin a list where they are told to. For others the client reads all before it."""


def spread_items(client: BucketClient, folder: str) -> Iterator[Item]:
    """All items below a folder whose items are ``ab/cdef...``, in no order.

    Args:
        client: The bucket.
        folder: Its path, without a slash at its end.

    Raises:
        BucketError: The bucket cannot be asked.
    """
    items = client.items(folder)
    first = list(islice(items, PAGE))
    yield from first
    starts = _starts(folder, [item.path for item in first])
    if not client.address.startswith(_SPREADS) or not _begins_there(client, folder, starts):
        yield from items
        return
    ranges = [*pairwise(starts), (starts[-1], None)]
    for page in _Lists(client, folder, ranges).pages():
        yield from page


def _starts(folder: str, paths: list[str]) -> list[str]:
    """The paths after which lists begin, the first of them at the end of the first page.

    There are none if there are few pages, or the names are not in order.
    """
    if len(paths) < PAGE or paths != sorted(paths):
        return []
    digits = "".join(paths[-1].removeprefix(f"{folder}/").split("/"))[:_DIGITS]
    try:
        until = int(digits, 16)
    except ValueError:
        return []
    count = min(AT_ONCE, _ALL // max(until, 1) // _PAGES_EACH) if len(digits) == _DIGITS else 0
    if count < 2:
        return []
    places = [until + (_ALL - until) * part // count for part in range(1, count)]
    texts = [f"{place:0{_DIGITS}x}" for place in places]
    return [paths[-1], *(f"{folder}/{text[:2]}/{text[2:]}" for text in texts)]


def _begins_there(client: BucketClient, folder: str, starts: list[str]) -> bool:
    """Whether there are several lists, and the server begins one where it is told to."""
    if not starts:
        return False
    found = next(client.items(folder, starts[-1]), None)
    return found is None or found.path > starts[-1]


class _Lists:
    """The items of all ranges, page by page as they come: after its start, not after its stop."""

    def __init__(
        self, client: BucketClient, folder: str, ranges: list[tuple[str, str | None]]
    ) -> None:
        self._client = client
        self._folder = folder
        self._ranges = ranges
        self._queue: Queue[list[Item] | BaseException | None] = Queue(2 * len(ranges))
        self._stopped = Event()

    def pages(self) -> Iterator[list[Item]]:
        """The pages; all lists have ended when this has."""
        reader = Thread(target=self._read_all, daemon=True)
        reader.start()
        try:
            while (found := self._queue.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            self._stopped.set()
            while reader.is_alive():  # threads may wait for room in the queue
                with suppress(Empty):
                    self._queue.get_nowait()
                reader.join(0.001)

    def _read_all(self) -> None:
        try:
            for_each(self._read, self._ranges, len(self._ranges))
        except BaseException as error:
            self._queue.put(error)
        else:
            self._queue.put(None)

    def _read(self, bounds: tuple[str, str | None]) -> None:
        start, stop = bounds
        items = self._client.items(self._folder, start)
        while not self._stopped.is_set() and (page := list(islice(items, PAGE))):
            inside = [item for item in page if stop is None or item.path <= stop]
            self._queue.put(inside)
            if len(inside) < len(page):
                return
