"""Files of weights that are open, any range of them read or mapped, and the tensors in them."""

from __future__ import annotations

import abc
import mmap
import os
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

from mlstate.digests import Bytes
from mlstate.errors import FormatError
from mlstate.format.tensor_object import TensorSpec
from mlstate.objects.mapped import MAP_FROM, may_map
from mlstate.parallel import ProcessLock
from mlstate.system import pread

__all__ = ["ONE_COPY", "PIECE", "OpenFile", "TensorInFile", "pieces_at"]

PIECE = 1 << 20
"""How many bytes are read and hashed at a time."""
ONE_COPY = ProcessLock()
"""Held while a tensor that had to be copied is in use: one such copy at a time, for memory."""


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
    while size and (piece := pread(descriptor, min(PIECE, size), start)):
        yield piece
        start, size = start + len(piece), size - len(piece)


@dataclass(frozen=True)
class TensorInFile(abc.ABC):
    """A tensor in a file on this machine: a `TensorSource` that can be read piece by piece.

    Attributes:
        name: Its name.
        spec: Its element type and shape, as the format counts it.
    """

    name: str
    spec: TensorSpec

    @property
    @abc.abstractmethod
    def memory(self) -> Hashable:
        """See `TensorSource.memory`."""

    @abc.abstractmethod
    def pieces(self) -> Iterator[Bytes]:
        """Its bytes, piece by piece; a FormatError if the file is damaged or became shorter."""

    @abc.abstractmethod
    def data(self) -> AbstractContextManager[Bytes]:
        """See `TensorSource.data`."""
