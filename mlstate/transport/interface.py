"""The interfaces of a transport: a `Resource` has an address, and gives ranges of it as `Stream`s.

A resource knows bytes and an address, nothing of digests, tensors or manifests. What it gives is
never trusted. Retries wrap this interface (`mlstate.transport.resuming`).
"""

from __future__ import annotations

import abc
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from mlstate.errors import TransportError

__all__ = ["CheckedStream", "EmptyStream", "Resource", "Stream"]

CHUNK = 1 << 20
"""The most bytes that `Stream.read` gives at once, whatever is asked for."""


class Stream(abc.ABC):
    """The bytes of a resource as they arrive; made by `Resource.read`, good within its context."""

    length: int | None  # the number of bytes that this stream gives in all, or None if nobody says
    total: int | None  # the bytes of the whole resource, as far as the reply says

    @abc.abstractmethod
    def readinto(self, buffer: memoryview) -> int:
        """Put the next bytes into a buffer, at least one of them, and at most `length` in all.

        Returns how many bytes came; 0 at the end. An end before `length` is an error, not an end: a
        `TransportError` says that the stream broke, stalled, ended early, or went on too long.
        """

    def read(self, size: int) -> bytes:
        """The next bytes, at most ``size``; otherwise as `readinto`."""
        if size < 1:
            raise ValueError("size is at least 1")
        buffer = memoryview(bytearray(min(size, CHUNK)))
        return bytes(buffer[: self.readinto(buffer)])


class CheckedStream(Stream):
    """A stream that raises an error unless as many bytes come as were promised."""

    def __init__(self, address: str, length: int | None, total: int | None) -> None:
        self.length = length
        self.total = total
        self._address = address
        self._given = 0
        self._ended = False

    @abc.abstractmethod
    def _receive(self, buffer: memoryview) -> int:
        """Put what comes next into a buffer, and return how many bytes that is; 0 at the end."""

    def readinto(self, buffer: memoryview) -> int:
        """See `Stream.readinto`."""
        if self._ended:
            return 0
        left = None if self.length is None else self.length - self._given
        # At the end one byte more is asked for: a server that gives it gives too much.
        count = self._receive(buffer if left is None else buffer[: max(left, 1)])
        self._ended = not count
        if left and not count:
            raise TransportError(
                "the reply ended early",
                transient=True,
                path=self._address,
                expected=f"{self.length} bytes",
                found=f"{self._given} bytes",
            )
        if count and left == 0:
            raise TransportError(
                "the server gives more than it was asked for",
                path=self._address,
                expected=f"{self.length} bytes",
            )
        self._given += count
        return count


class EmptyStream(Stream):
    """A stream of no bytes."""

    def __init__(self, total: int | None) -> None:
        self.length = 0
        self.total = total

    def readinto(self, buffer: memoryview) -> int:
        """See `Stream.readinto`."""
        return 0


@runtime_checkable
class Resource(Protocol):
    """A file somewhere: on a web server, on a hub, on this machine."""

    @property
    def address(self) -> str:
        """The address for people and errors: without credentials and without a signed query."""

    def size(self) -> int | None:
        """The size in bytes, None if the server does not say. Asked once; raises as `read`."""

    def read(self, start: int = 0, stop: int | None = None) -> AbstractContextManager[Stream]:
        """Begin to read: bytes ``start`` up to ``stop`` (exclusive), or all from ``start`` on.

        Without arguments the whole resource is asked for, which needs no ranges of the server.
        Raises a `NoRangesError` if the server gives the whole only, a `TransportError` if it cannot
        be had or the reply is not what was asked for, and an `OfflineError` if this needs a socket.
        """
