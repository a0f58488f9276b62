"""What there is to say of a bucket and of the things in it; values, nothing is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlstate.digests import Bytes

__all__ = ["Connection", "Item", "Reading", "Upload", "Written"]


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
    """A thing in a bucket.

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


@dataclass(frozen=True)
class Written:
    """What the server says of something that it has just taken.

    Attributes:
        etag: What tells this version of it from others, or None if it does not say.
    """

    etag: str | None

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Written:
        """From obstore's own words."""
        return cls(result.get("e_tag") or None)


@dataclass(frozen=True)
class Upload:
    """A large upload that is not finished: nobody sees it, and it takes room."""

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
