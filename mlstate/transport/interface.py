"""What a transport is: a resource somewhere, of which ranges can be read as streams.

A resource knows bytes and an address, nothing of digests, tensors or manifests. What it gives is
never trusted. Retries wrap this interface (`mlstate.transport.retry`), they do not live inside.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

__all__ = ["Resource", "Stream"]


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
