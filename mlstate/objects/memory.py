"""Objects in memory: for tests, and for states that need no disk."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from mlstate.digests import Bytes, Digest
from mlstate.errors import ObjectNotFoundError
from mlstate.objects.durable import check_written
from mlstate.objects.encoded_forms import (
    BytesFile,
    no_encoded_form,
    no_plain_form,
    size_of_encoded,
)

__all__ = ["MemoryObjectStore"]


class MemoryObjectStore:
    """Objects in a dictionary of this process, and encoded forms in another."""

    def __init__(self) -> None:
        self._objects: dict[Digest, bytes] = {}
        self._encoded: dict[Digest, bytes] = {}
        self._indexes: dict[Digest, bytes] = {}

    def size(self, digest: Digest) -> int | None:
        """The size of an object in bytes, or None if it is not here."""
        size = self.plain_size(digest)
        if size is None and digest in self._encoded:
            return size_of_encoded(self, digest)
        return size

    def plain_size(self, digest: Digest) -> int | None:
        """See `EncodedObjectStore.plain_size`."""
        data = self._objects.get(digest)
        return None if data is None else len(data)

    def encoded_size(self, digest: Digest) -> int | None:
        """See `EncodedObjectStore.encoded_size`."""
        data = self._encoded.get(digest)
        return None if data is None else len(data)

    def open_encoded(self, digest: Digest) -> BytesFile:
        """See `EncodedObjectStore.open_encoded`."""
        try:
            return BytesFile(self._encoded[digest], self.locate(digest))
        except KeyError:
            raise ObjectNotFoundError(
                "an encoded object is missing", path=self.locate(digest), expected=digest
            ) from None

    def encoded_digests(self) -> Iterator[Digest]:
        """See `EncodedObjectStore.encoded_digests`."""
        return iter(list(self._encoded))

    def put_encoded(self, digest: Digest, parts: Iterable[Bytes], *, replace: bool = True) -> bool:
        """See `EncodingObjectStore.put_encoded`."""
        data = b"".join(parts)
        if replace:
            self._encoded[digest] = data
        return self._encoded.setdefault(digest, data) is data

    def put_encoded_index(self, state: Digest, data: bytes | None) -> None:
        """See `EncodingObjectStore.put_encoded_index`."""
        self._indexes.pop(state, None)
        if data is not None:
            self._indexes[state] = data

    def encoded_index(self, state: Digest) -> bytes | None:
        """See `EncodingObjectStore.encoded_index`."""
        return self._indexes.get(state)

    def retire_plain(self, digest: Digest) -> bool:
        """See `EncodingObjectStore.retire_plain`; there is no trash."""
        if digest not in self._encoded:
            raise no_encoded_form(self.locate(digest), digest)
        return self._objects.pop(digest, None) is not None

    def drop_encoded(self, digest: Digest) -> bool:
        """See `EncodingObjectStore.drop_encoded`."""
        if digest not in self._objects:
            raise no_plain_form(self.locate(digest), digest)
        return self._encoded.pop(digest, None) is not None

    def say_encoded(self) -> None:
        """Do nothing: no other program reads this memory."""

    def say_plain(self) -> None:
        """Do nothing."""

    def compacts(self) -> bool:
        """See `EncodingObjectStore.compacts`: there are no settings."""
        return False

    def open(self, digest: Digest) -> BinaryIO:
        """Open an object for reading; ObjectNotFoundError if it is not here."""
        try:
            return io.BytesIO(self._objects[digest])
        except KeyError:
            raise ObjectNotFoundError(
                "an object is missing", path=self.locate(digest), expected=digest
            ) from None

    def locate(self, digest: Digest) -> str:
        """A name for the object's place."""
        return f"memory:{digest}"

    def digests(self) -> Iterator[Digest]:
        """Every object that is here, in no order."""
        return iter(list(self._objects))

    def writer(self) -> MemoryObjectStore:
        """Begin an act of saving; here the store itself is the writer."""
        return self

    def reuse(self, digest: Digest, size: int) -> bool:
        """Take an object that is here; see `ObjectWriter.reuse`."""
        return self.size(digest) == size

    def put(self, digest: Digest, parts: Iterable[Bytes]) -> None:
        """Keep a copy of an object; see `ObjectWriter.put`."""
        data = b"".join(parts)
        check_written(Digest.of(data), digest, self.locate(digest))
        self._objects[digest] = data

    def flush(self) -> None:
        """Do nothing: memory is as durable as it gets at once."""
