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
    "EncodedFile",
    "EncodedObjectStore",
    "EncodedReuser",
    "EncodingObjectStore",
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


@runtime_checkable
class EncodedReuser(Protocol):
    """A writer whose ``reuse`` takes objects in encoded form, too.

    Attributes:
        took_encoded: Whether it has taken one that is in no other form.
    """

    took_encoded: bool


class EncodedFile(Protocol):
    """The encoded form of an object, opened: `mlstate.encoded.Source`, to be closed."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    def read(self, start: int, size: int) -> bytes:
        """Read a range, from any thread; an `MlstateError` if it is not there, whole."""

    def close(self) -> None:
        """Give it back. What was opened stays readable until then, whatever others do."""


@runtime_checkable
class EncodedObjectStore(ObjectStore, Protocol):
    """An object store that may have tensor objects in encoded form, too, or only.

    ``size`` then says what the plain object would have, and None if a base is missing; ``open``
    finds none: `mlstate.objects.verified.open_tensor`, which is told the type and shape, decodes.
    """

    def plain_size(self, digest: Digest) -> int | None:
        """The size in bytes of an object that is here as it is; None if it is not."""

    def encoded_size(self, digest: Digest) -> int | None:
        """The size of the encoded form of an object in bytes; None if there is none."""

    def open_encoded(self, digest: Digest) -> EncodedFile:
        """Open the encoded form of an object; one in trash/ is read there, as by ``open``.

        Raises:
            ObjectNotFoundError: There is none.
        """

    def encoded_digests(self) -> Iterator[Digest]:
        """Every object that has an encoded form here, in no order."""


@runtime_checkable
class EncodingObjectStore(EncodedObjectStore, WritableObjectStore, Protocol):
    """An object store that takes encoded forms, in the place of objects or beside them.

    To encode an object: `put_encoded`, decode and verify what was written, `say_encoded`, and only
    then `retire_plain`. To undo it: write the plain object, `flush`, `drop_encoded`, and when no
    encoded form is left that is needed, `say_plain`.
    """

    def put_encoded(self, digest: Digest, parts: Iterable[Bytes], *, replace: bool = True) -> bool:
        """Write the encoded form of an object; it is durable then.

        With ``replace`` one that is here is replaced. Otherwise it stays, and the result is False:
        another process may rely on it by now.
        """

    def put_encoded_index(self, state: Digest, data: bytes | None) -> None:
        """Write which objects of a state are encoded (`EncodedIndex`), for who copies it.

        None removes what is there.
        """

    def encoded_index(self, state: Digest) -> bytes | None:
        """What `put_encoded_index` wrote; None if there is nothing, or more than anybody reads."""

    def retire_plain(self, digest: Digest) -> bool:
        """Move an object that has an encoded form to trash/; False if it is not here.

        Raises:
            FormatError: The store does not say that it has encoded objects, or there is no encoded
                form of this one. Nothing was moved.
        """

    def drop_encoded(self, digest: Digest) -> bool:
        """Move the encoded form of an object that is here plainly to trash/; False without one.

        Raises:
            FormatError: The object is not here plainly. Nothing was moved.
        """

    def say_encoded(self) -> None:
        """Let the store's settings require readers that know encoded objects; durable then."""

    def say_plain(self) -> None:
        """Let the store's settings not require such readers any more."""

    def compacts(self) -> bool:
        """Whether the store's settings say that what is saved is encoded at once."""
