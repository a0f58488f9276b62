"""A file of weights that is open: any range of it, read or mapped."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

from mlstate.digests import Bytes
from mlstate.errors import FormatError
from mlstate.objects.mapped import MAP_FROM, may_map

__all__ = ["PIECE", "OpenFile", "pieces_at"]

PIECE = 1 << 20
"""How many bytes are read and hashed at a time."""


@dataclass
class OpenFile:
    """An open file; any thread may read ranges of it."""

    file: BinaryIO
    path: str

    def pieces(self, start: int, size: int) -> Iterator[Bytes]:
        """A range, piece by piece; raises a FormatError if the file ends before."""
        for piece in pieces_at(self.file.fileno(), start, size):
            yield piece
            size -= len(piece)
        if size:
            raise FormatError("a file became shorter while it was read", path=self.path)

    @cached_property
    def mapped(self) -> memoryview | None:
        """The whole file, or None if it may not be mapped."""
        size = os.fstat(self.file.fileno()).st_size
        if size < MAP_FROM or not may_map(self.file):
            return None
        try:
            return memoryview(mmap.mmap(self.file.fileno(), size, access=mmap.ACCESS_READ))
        except OSError:  # a file system without maps, or the process may not map any more
            return None


def pieces_at(descriptor: int, start: int, size: int) -> Iterator[bytes]:
    """A range of a file, piece by piece; fewer bytes if the file ends."""
    while size and (piece := os.pread(descriptor, min(PIECE, size), start)):
        yield piece
        start, size = start + len(piece), size - len(piece)
