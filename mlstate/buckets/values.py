"""Values: an opened bucket, an item in it, a reply that is read, an unfinished upload."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlstate.digests import Bytes

__all__ = ["ChunkReader", "Connection", "Item", "Reading", "UnfinishedUpload", "Written"]


@dataclass(frozen=True)
class Connection:
    """An opened bucket.

    Attributes:
        reading: obstore's, for what is read: silence is an error.
        writing: obstore's, for uploads: a request may take its time.
        control: Makes boto3's client, where there is one.
        anonymous: Whether nobody gave credentials.
    """

    reading: Any
    writing: Any
    control: Callable[[], Any] | None = None
    anonymous: bool = False


@dataclass(frozen=True)
class Item:
    """An item in a bucket.

    Attributes:
        path: Its path.
        size: Its bytes.
        modified: When it was written, in seconds since the epoch, by the server's clock.
        etag: What tells this version of it from others, or None.
    """

    path: str
    size: int
    modified: float
    etag: str | None = None

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Item:
        """The item that obstore describes."""
        modified = meta["last_modified"].timestamp()
        return cls(meta["path"], meta["size"], modified, meta.get("e_tag") or None)


@dataclass(frozen=True)
class Written:
    """The version of an item that was just written.

    Attributes:
        etag: What tells this version of it from others, or None if it does not say.
    """

    etag: str | None

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Written:
        """The version that obstore describes."""
        return cls(result.get("e_tag") or None)


@dataclass(frozen=True)
class UnfinishedUpload:
    """A large upload that is not finished: nobody sees it, and it takes space."""

    path: str
    id: str
    begun: float


@dataclass(frozen=True)
class Reading:
    """A reply that is being read.

    Attributes:
        item: What is read.
        start: The first byte of it that comes.
        stop: The byte after the last one.
        chunks: The bytes, as they come.
    """

    item: Item
    start: int
    stop: int
    chunks: Iterator[Bytes]


class ChunkReader:
    """Puts chunks of any sizes into buffers of any sizes."""

    def __init__(self, chunks: Iterator[Bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        """Put the next bytes into a buffer, and return how many these are; 0 at the end."""
        while not len(self._rest):
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk).cast("B")
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
