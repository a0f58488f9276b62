"""Values: an opened bucket, an item in it, a reply that is read, an unfinished upload."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlstate.digests import Bytes

__all__ = ["ChunkReader", "Connection", "Item", "Reading", "UnfinishedUpload", "Written"]


@dataclass(frozen=True)
class Connection:
    """An opened bucket: two clients of obstore, and what makes boto3's where there is one."""

    reading: Any  # silence is an error
    writing: Any  # a request may take its time
    control: Callable[[], Any] | None = None
    anonymous: bool = False  # nobody gave credentials


@dataclass(frozen=True)
class Item:
    """An item in a bucket."""

    path: str
    size: int  # in bytes
    modified: float  # seconds since the epoch, by the server's clock
    etag: str | None = None  # tells this version of it from others

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Item:
        """The item that obstore describes."""
        modified = meta["last_modified"].timestamp()
        return cls(meta["path"], meta["size"], modified, meta.get("e_tag") or None)


@dataclass(frozen=True)
class Written:
    """The version of an item that was just written."""

    etag: str | None  # tells it from others; None if the server does not say

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
    """A reply that is being read: bytes ``start`` up to ``stop`` of an item, as they come."""

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
