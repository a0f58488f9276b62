"""Content on its way into a new file, with the digest of exactly the bytes that the file then has.

A tensor can be changed by another thread at any time, and a file whose bytes are not those of its
name would spoil every later state that shares the object. So it is never the source that is hashed
while something else is written: it is what was written, or a copy that nobody else can change.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from mmap import PROT_READ, mmap

from mlstate.digests import Bytes, Digest, Hasher
from mlstate.objects.mapped import MAP_FROM, may_map

__all__ = ["write_all", "write_hashed"]

_BLOCK = 2 << 20
"""Written at once, at multiples of it: the kernel can then keep it in one piece, which makes
mapping it cheaper (docs/performance.md)."""
_PIECE = 1 << 18
"""Copied and hashed at once, while it is in the core's own cache."""
_MOST_VIEWS = 1024
"""So many pieces of memory the system takes by one call."""
_SPARE = 8
_spare: list[bytearray] = []
"""Buffers for the next files: new memory costs a page fault for every 4 KB."""


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all of it, however many calls that takes."""
    while len(data):
        data = data[os.write(descriptor, data) :]


def write_hashed(
    descriptor: int, parts: Iterable[Bytes], devices: dict[int, bool] | None = None
) -> tuple[Digest, int]:
    """Write a new file.

    Args:
        descriptor: The empty file, open for reading and writing.
        parts: Its content, one part after the other.
        devices: As for `may_map`.

    Returns:
        The digest of the bytes that it has now, whatever happened to the parts meanwhile; and how
        many these are.
    """
    views = [memoryview(part).cast("B") for part in parts]
    size = sum(map(len, views))
    hasher = Hasher()
    if size < MAP_FROM:
        content = b"".join(views)
        hasher.update(content)
        write_all(descriptor, memoryview(content))
    else:
        whole = _mapped(descriptor, size, devices)
        if whole is None:
            _write_copied(descriptor, views, hasher)
        else:
            with whole:
                _write_mapped(descriptor, views, whole, hasher)
    return hasher.digest(), size


def _mapped(descriptor: int, size: int, devices: dict[int, bool] | None) -> mmap | None:
    """The file that is to be written, as memory; or None where that is not safe or not possible."""
    if not may_map(descriptor, devices):
        return None
    os.ftruncate(descriptor, size)
    try:
        return mmap(descriptor, size, prot=PROT_READ)
    except OSError:  # the process may not map any more, say
        return None


def _write_mapped(
    descriptor: int, views: Sequence[memoryview], whole: mmap, hasher: Hasher
) -> None:
    """Hash each block where it was written to: that takes no copy, and it is in the cache still."""
    position = 0
    with memoryview(whole) as written:
        for block in _blocks(views):
            end = position + _write_block(descriptor, block)
            with written[position:end] as piece:
                hasher.update(piece)
            position = end


def _write_copied(descriptor: int, views: Sequence[memoryview], hasher: Hasher) -> None:
    """Through a buffer of our own: what is hashed is what is written."""
    try:
        whole = _spare.pop()
    except IndexError:
        whole = bytearray(_BLOCK)
    buffer = memoryview(whole)
    for block in _blocks(views):
        filled = 0
        for view in block:
            for start in range(0, len(view), _PIECE):
                source = view[start : start + _PIECE]
                piece = buffer[filled : filled + len(source)]
                piece[:] = source
                hasher.update(piece)
                filled += len(source)
        write_all(descriptor, buffer[:filled])
    if len(_spare) < _SPARE:
        _spare.append(whole)


def _blocks(views: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The content in blocks, each of which may be made of several parts."""
    block: list[memoryview] = []
    room = _BLOCK
    for view in views:
        position = 0
        while position < len(view):
            piece = view[position : position + room]
            block.append(piece)
            position += len(piece)
            room -= len(piece)
            if not room:
                yield block
                block, room = [], _BLOCK
    if block:
        yield block


def _write_block(descriptor: int, block: list[memoryview]) -> int:
    """Write a block, by one call if the system takes all of it at once."""
    size = sum(map(len, block))
    if len(block) > _MOST_VIEWS:
        block = [memoryview(b"".join(block))]
    written = os.writev(descriptor, block)
    if written < size:
        for view in block:
            write_all(descriptor, view[written:])
            written = max(0, written - len(view))
    return size
