"""Bytes of a checkpoint, read by ranges: never one that the file does not hold."""

from __future__ import annotations

import os
from typing import BinaryIO, Protocol

from mlstate.errors import FormatError
from mlstate.pickled.caps import MAX_LINE, MAX_PICKLE, capped
from mlstate.system import pread

__all__ = ["BytesSource", "Cursor", "FileSource", "Part", "Source", "check_range"]

_WINDOW = 64 << 10


class Source(Protocol):
    """Something with bytes that can be read by ranges."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    def read(self, start: int, size: int) -> bytes:
        """Read a range; a FormatError if it is not there, whole."""


def check_range(start: int, size: int, most: int) -> None:
    """Refuse, by a FormatError, a range that is not within so many bytes."""
    if start < 0 or size < 0 or start + size > most:
        raise FormatError(
            "this checkpoint ends too early, or names bytes that it does not hold",
            expected=f"{size} bytes from byte {start} on",
            found=f"{most} bytes in all",
        )


class FileSource:
    """An open file, or its descriptor. Any thread may read; the position does not change."""

    def __init__(self, file: BinaryIO | int) -> None:
        self._descriptor = file if isinstance(file, int) else file.fileno()
        self.size = os.fstat(self._descriptor).st_size

    def read(self, start: int, size: int) -> bytes:
        """See `Source.read`."""
        check_range(start, size, self.size)
        data = pread(self._descriptor, size, start)
        while len(data) < size:
            more = pread(self._descriptor, size - len(data), start + len(data))
            if not more:
                raise FormatError("a file became shorter while it was read")
            data += more
        return data


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, start: int, size: int) -> bytes:
        """See `Source.read`."""
        check_range(start, size, self.size)
        return self._data[start : start + size]


class Part:
    """A range of a source, as a source."""

    def __init__(self, source: Source, start: int, size: int) -> None:
        check_range(start, size, source.size)
        self._source = source
        self._start = start
        self.size = size

    def read(self, start: int, size: int) -> bytes:
        """See `Source.read`."""
        check_range(start, size, self.size)
        return self._source.read(self._start + start, size)


class Cursor:
    """Reads a source from front to back, a window at a time.

    Attributes:
        position: The position of the next byte.
    """

    def __init__(self, source: Source, start: int = 0, most: int = MAX_PICKLE) -> None:
        self._source = source
        self._window = b""
        self._window_start = start
        self._end = min(source.size, start + most)
        self.position = start

    @property
    def left(self) -> int:
        """How many bytes follow."""
        return self._end - self.position

    def take(self, size: int) -> bytes:
        """Read so many bytes; a FormatError if there are fewer, and then nothing is allocated."""
        at = self.position - self._window_start
        data = self._window[at : at + size]
        if len(data) < size:
            self._fill(size)
            data = self._window[:size]
        self.position += size
        return data

    def line(self) -> bytes:
        """Read up to a line feed, which is not part of the answer."""
        at = self.position - self._window_start
        end = self._window.find(b"\n", at, at + MAX_LINE)
        if end < 0:
            self._fill(min(MAX_LINE, self._end - self.position))
            at, end = 0, self._window.find(b"\n", 0, MAX_LINE)
            if end < 0:
                if self._end - self.position < MAX_LINE:
                    self._missing(MAX_LINE)
                raise capped("a line in its pickle that is too long", MAX_LINE)
        self.position = self._window_start + end + 1
        return self._window[at:end]

    def skip(self, size: int) -> None:
        """Pass over bytes, which need not fit into the cap of what is read."""
        check_range(self.position, size, self._source.size)
        self.position += size
        self._end = min(self._source.size, self._end + size)
        self._window, self._window_start = b"", self.position

    def _fill(self, size: int) -> None:
        if self.position + size > self._end:
            self._missing(size)
        length = min(max(size, _WINDOW), self._end - self.position)
        self._window = self._source.read(self.position, length)
        self._window_start = self.position

    def _missing(self, size: int) -> None:
        check_range(self.position, size, self._source.size)
        raise capped("a pickle that is too long", MAX_PICKLE)
