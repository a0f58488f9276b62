"""What a transport is: a resource somewhere, of which ranges can be read as streams.

A resource knows bytes and an address, nothing of digests, tensors or manifests. What it gives is
never trusted. Retries wrap this interface (`mlstate.transport.retry`), they do not live inside.
"""

from __future__ import annotations

import abc
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

__all__ = ["BaseStream", "Resource", "Stream"]

CHUNK = 1 << 20
"""The most bytes that `BaseStream.read` gives at once, whatever is asked for."""


@runtime_checkable
class Stream(Protocol):
    """Bytes of a resource as they arrive; made by `Resource.read`, good within its context."""

    @property
    def length(self) -> int | None:
        """The number of bytes that this stream gives in all, or None if nobody says."""

    @property
    def total(self) -> int | None:
        """The size of the whole resource in bytes, as far as the reply says; or None."""

    def read(self, size: int) -> bytes:
        """The next bytes, at least one and at most ``size``; none at the end.

        Never gives more than `length` in all. An end before `length` is an error, not an end.

        Raises:
            TransportError: The stream broke, stalled, ended early, or went on too long.
        """

    def readinto(self, buffer: memoryview) -> int:
        """Put the next bytes into a buffer: as `read`, for who has one to use again and again.

        Args:
            buffer: Where they go; at least one byte long.

        Returns:
            How many bytes came; 0 at the end.

        Raises:
            TransportError: As `read`.
        """


class BaseStream(abc.ABC):
    """What a stream is made of: its `readinto`."""

    @abc.abstractmethod
    def readinto(self, buffer: memoryview) -> int:
        """Put the next bytes into a buffer; see `Stream.readinto`."""

    def read(self, size: int) -> bytes:
        """The next bytes; see `Stream.read`."""
        if size < 1:
            raise ValueError("size is at least 1")
        buffer = memoryview(bytearray(min(size, CHUNK)))
        return bytes(buffer[: self.readinto(buffer)])


@runtime_checkable
class Resource(Protocol):
    """A file somewhere: on a web server, on a hub, on this machine."""

    @property
    def address(self) -> str:
        """Where it is, for people and errors: without credentials and without a signed query."""

    def size(self) -> int | None:
        """The size in bytes, or None if the server does not say. Asked once, and remembered.

        Raises:
            TransportError: It cannot be had.
        """

    def read(self, start: int = 0, stop: int | None = None) -> AbstractContextManager[Stream]:
        """Begin to read: bytes ``start`` up to ``stop`` (exclusive), or all from ``start`` on.

        Without arguments the whole resource is asked for, which needs no ranges of the server.

        Raises:
            NoRangesError: The server gives the whole resource only.
            TransportError: It cannot be had, or the reply is not what was asked for.
            OfflineError: Sockets are not allowed, and this needs one.
        """
