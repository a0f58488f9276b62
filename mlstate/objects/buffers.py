"""Copies of bytes that may change any moment, in memory that goes back when it is let go.

malloc keeps buffers of megabytes that were freed, for each thread apart: as much again as is in
use, or twice (measured).
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress

from mlstate.digests import Bytes

__all__ = ["chunks", "copied"]

_OWN = 1 << 20
"""From so many bytes on, a copy gets pages of its own."""


def copied(parts: Sequence[Bytes]) -> Bytes:
    """One copy of several parts, one after the other."""
    size = sum(memoryview(part).nbytes for part in parts)
    if size < _OWN:
        return b"".join(parts)
    room = memoryview(_pages(size))
    place = 0
    for part in parts:
        view = memoryview(part).cast("B")
        room[place : place + len(view)] = view
        place += len(view)
    return room


def chunks(parts: Sequence[Bytes], size: int) -> Iterator[Bytes]:
    """Copies of the bytes, in pieces of a size, each made when it is asked for.

    Args:
        parts: The bytes, one part after the other.
        size: The bytes of each piece but the last.
    """
    gathered: list[memoryview] = []
    room = size
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            gathered.append(view[:room])
            view = view[room:]
            room -= len(gathered[-1])
            if not room:
                yield copied(gathered)
                gathered, room = [], size
    if gathered:
        yield copied(gathered)


def _pages(size: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)
    if sys.platform == "linux":
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)  # small ones take thrice the time (measured)
    return pages
