"""What a request was and what it is answered with: files and ranges of them, as HTTP has them."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["Before", "Body", "Piece", "Record", "Reply", "Source", "etag_of", "serve"]

CHUNK = 1 << 18
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
Source = bytes | Path


@dataclass(frozen=True)
class Record:
    """A request, and what it was answered. A request under way has the numbers so far."""

    method: str
    path: str  # as sent, with the query
    headers: Mapping[str, str]  # by their names in lower case
    connection: int  # the number of the connection, from 1
    body: bytes = b""
    status: int | None = None  # None until it is known
    bytes_sent: int = 0  # of the body alone, as handed to the kernel

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")

    @property
    def name(self) -> str:
        """The path without the query, unquoted, without the slash in front."""
        return unquote(urlsplit(self.path).path).lstrip("/")


@dataclass(frozen=True)
class Piece:
    """Bytes ``start`` to ``stop`` of a source, as a reply's body."""

    source: Source
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[bytes | memoryview]:
        if isinstance(self.source, bytes):
            yield memoryview(self.source)[self.start : self.stop]
            return
        with self.source.open("rb") as file:
            file.seek(self.start)
            left = len(self)
            while left and (data := file.read(min(CHUNK, left))):
                left -= len(data)
                yield data


Body = bytes | Piece | Iterable[bytes]


@dataclass(frozen=True)
class Reply:
    """An answer. Content-Length is added for bytes, an iterable goes out chunked without it."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body = b""
    close: bool = False  # the connection, once the body is sent

    @classmethod
    def redirect(cls, url: str, status: int = 302) -> Reply:
        return cls(status, {"Location": url})


Before = Callable[[Record], Reply | None]


def serve(
    record: Record,
    source: Source,
    etag: str | None = None,
    ranges: bool = True,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """A file as the reply to a request: the range that it asks for, or all of it."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    every = {
        "Content-Type": "application/octet-stream",
        "ETag": etag or etag_of(source),
        **({"Accept-Ranges": "bytes"} if ranges else {}),
        **(headers or {}),
    }
    wanted = RANGE.fullmatch(record.range or "")
    fresh = record.headers.get("if-range", every["ETag"]) == every["ETag"]
    if not ranges or wanted is None or not any(wanted.groups()) or not fresh:
        return Reply(200, every, Piece(source, 0, size))
    first, last = wanted.groups()
    if first:
        start, stop = int(first), min(int(last) + 1 if last else size, size)
    else:
        start, stop = max(0, size - int(last)), size
    if start >= stop:
        return Reply(416, {**every, "Content-Range": f"bytes */{size}"})
    every["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Reply(206, every, Piece(source, start, stop))


def etag_of(source: Source) -> str:
    if isinstance(source, bytes):
        return f'"{zlib.crc32(source):08x}-{len(source):x}"'
    status = source.stat()
    return f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
