"""Protocols of object stores: places with bytes, each named by its digest.

Capabilities are types of their own, so that a store that cannot write has no method to write
with. An object store knows bytes and digests, nothing of tensors, states or keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, Protocol, runtime_checkable

from mlstate.digests import Bytes, Digest

__all__ = [
    "AddingWriter",
    "ListedObjectStore",
    "ObjectStore",
    "ObjectWriter",
    "Survey",
    "SurveyedObjectStore",
    "TrashingObjectStore",
    "WritableObjectStore",
]


@runtime_checkable
class ObjectStore(Protocol):
    """A place to read objects from, unverified: `mlstate.objects.verified` verifies them."""

    def size(self, digest: Digest) -> int | None:
        """The size of an object in bytes, or None if it is not here."""

    def open(self, digest: Digest) -> BinaryIO:
        """Open an object for reading: seekable, and a real file where there is one.

        Raises:
            ObjectNotFoundError: It is not here.
        """

    def locate(self, digest: Digest) -> str:
        """Where the object is, or would be: a path or an address, for people."""


@runtime_checkable
class ListedObjectStore(ObjectStore, Protocol):
    """An object store that can list its objects."""

    def digests(self) -> Iterator[Digest]:
        """Every object that is here, in no order; things with other names are passed over."""


class Survey(Protocol):
    """The presence of objects in a store, for many questions."""

    def size(self, digest: Digest) -> int | None:
        """The size of an object in bytes, or None if it is not there."""


@runtime_checkable
class SurveyedObjectStore(ObjectStore, Protocol):
    """An object store that is asked about many objects in fewer steps than one by one."""

    def survey(self) -> Survey:
        """Begin to ask. An answer is true of now or later."""


@runtime_checkable
class TrashingObjectStore(ObjectStore, Protocol):
    """An object store whose prunings move objects to a trash before they delete any."""

    def restore(self, digest: Digest) -> bool:
        """Put an object back from the trash, young and not verified; False if it is not there."""


class ObjectWriter(Protocol):
    """One act of saving objects. Nothing is promised to be durable before `flush` returned."""

    def reuse(self, digest: Digest, size: int) -> bool:
        """Take an object that is here already, and make it young: prunings spare it for a while.

        Presence is judged by name and size; the bytes are not read. Returns False if the object is
        not here, has another size, or cannot be kept: then `put` it.
        """

    def put(self, digest: Digest, parts: Iterable[Bytes]) -> None:
        """Write an object, part after part, replacing whatever bears its name.

        Raises:
            IntegrityError: The bytes turned out to have another digest; nothing was published.
        """

    def flush(self) -> None:
        """Make all that was put and reused durable."""


@runtime_checkable
class AddingWriter(ObjectWriter, Protocol):
    """A writer that hashes and writes in one pass, and waits for the disk in the background."""

    def add(self, parts: Sequence[Bytes], digest: Digest | None = None) -> tuple[Digest, bool]:
        """Write an object; of one whose digest nobody knows yet, only if it is not here.

        If the digest is given, whatever bears its name is replaced. Returns the digest, and whether
        it was written: what was here is taken as by `reuse`. It has its name when `settle` or
        `flush` has returned. Raises an `IntegrityError` if the bytes have another digest (nothing
        is published), and an `OSError` if it cannot be written, or one that was added before could
        not.
        """

    def settle(self) -> None:
        """Wait until all that was added has its name; an OSError if something has not."""


@runtime_checkable
class WritableObjectStore(ObjectStore, Protocol):
    """An object store that takes new objects."""

    def writer(self) -> ObjectWriter:
        """Begin an act of saving; for one thread of control, its `put` for several threads."""
