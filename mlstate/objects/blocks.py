"""Content on its way to a file: copied, hashed and handed on in one pass, in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mlstate.digests import Bytes, Hasher

__all__ = ["private_blocks"]

_BLOCK = 2 << 20
"""Written at once, at multiples of it: the kernel can then keep it in one piece, which makes
mapping it cheaper (docs/performance.md)."""
_PIECE = 1 << 18
"""Copied and hashed at once, while it is in the core's own cache."""
_SPARE = 8
_spare: list[bytearray] = []
"""Buffers for the next files: new memory costs a page fault for every 4 KB."""


def private_blocks(parts: Iterable[Bytes], hasher: Hasher) -> Iterator[memoryview]:
    """The content through a buffer of our own, so that what is hashed is what is written.

    A tensor can be changed by another thread at any time; a file whose bytes are not those of
    its name would spoil every later state that shares the object.
    """
    try:
        whole = _spare.pop()
    except IndexError:
        whole = bytearray(_BLOCK)
    try:
        buffer = memoryview(whole)
        filled = 0
        for part in parts:
            view = memoryview(part).cast("B")
            position = 0
            while position < len(view):
                count = min(_PIECE, len(view) - position, _BLOCK - filled)
                piece = buffer[filled : filled + count]
                piece[:] = view[position : position + count]
                hasher.update(piece)
                position += count
                filled += count
                if filled == _BLOCK:
                    yield buffer
                    filled = 0
        if filled:
            yield buffer[:filled]
    finally:
        if len(_spare) < _SPARE:
            _spare.append(whole)
