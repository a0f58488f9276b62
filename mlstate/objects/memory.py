"""Objects in memory: for tests, and for states that need no disk."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from mlstate.digests import Bytes, Digest
from mlstate.errors import ObjectNotFoundError
from mlstate.objects.durable import check_written

__all__ = ["MemoryObjectStore"]


class MemoryObjectStore:
    """Objects in a dictionary of this process."""

    def __init__(self) -> None:
        self._objects: dict[Digest, bytes] = {}

    def size(self, digest: Digest) -> int | None:
        """The size of an object in bytes, or None if it is not here."""
        data = self._objects.get(digest)
        return None if data is None else len(data)

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
