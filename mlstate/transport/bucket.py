"""Things in buckets as resources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from mlstate.digests import Bytes
from mlstate.errors import BucketError, TransportError
from mlstate.transport.interface import BaseStream, Stream
from mlstate.transport.local import check_range

if TYPE_CHECKING:
    from mlstate.buckets.client import BucketClient
    from mlstate.buckets.open import BucketOptions
    from mlstate.buckets.values import Reading

__all__ = ["BucketResource", "Buckets"]


class Buckets:
    """Opens addresses of buckets; each bucket is connected to once.

    Args:
        known: Buckets that are open already, with credentials of their own, by address
            (``s3://bucket``).
        options: How to reach all others.
    """

    def __init__(self, known: Mapping[str, BucketClient], options: BucketOptions) -> None:
        self._clients = dict(known)
        self._options = options
        self._lock = Lock()

    def open(self, address: str) -> BucketResource:
        """The resource at an address.

        Raises:
            FormatError: The address is malformed.
            TransportError: The package that is needed is not installed.
        """
        from mlstate.buckets.open import open_bucket, parse_bucket_address

        scheme, bucket, path = parse_bucket_address(address)
        name = f"{scheme}://{bucket}"
        with self._lock:
            if name not in self._clients:
                self._clients[name] = open_bucket(name, self._options)
            return BucketResource(self._clients[name], path)


class BucketResource:
    """A thing in a bucket.

    Args:
        client: The bucket.
        path: Its path.
    """

    def __init__(self, client: BucketClient, path: str) -> None:
        self.address = client.locate(path)
        self._client = client
        self._path = path
        self._lock = Lock()
        self._seen: tuple[int, str | None] | None = None

    def __repr__(self) -> str:
        return f"BucketResource({self.address!r})"

    def size(self) -> int:
        """The size in bytes. Asked once, and remembered.

        Raises:
            BucketError: It cannot be had.
            OfflineError: Sockets are not allowed.
        """
        if self._seen is None:
            item = self._client.head(self._path)
            if item is None:
                raise BucketError(
                    "there is nothing of this name in the bucket",
                    bucket=self._client.address,
                    operation="read",
                    path=self.address,
                    status=404,
                )
            self._note(item.size, item.etag)
        assert self._seen is not None
        return self._seen[0]

    @contextmanager
    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Stream]:
        """Begin to read a range, or all.

        Raises:
            NoRangesError: The server gives the whole thing only.
            BucketError: It cannot be had, or is shorter.
            TransportError: It changed since it was read before.
            OfflineError: Sockets are not allowed.
        """
        check_range(start, stop)
        if start == stop:  # HTTP has no words for it
            yield _BucketStream(
                self.address, None, 0, None if self._seen is None else self._seen[0]
            )
            return
        with self._client.reading(self._path, start, stop) as reading:
            self._note(reading.item.size, reading.item.etag)
            wanted = (start, reading.item.size if stop is None else stop)
            if (reading.start, reading.stop) != wanted:
                raise TransportError(
                    "the thing in the bucket is shorter than what is asked of it",
                    path=self.address,
                    expected=f"bytes {wanted[0]} to {wanted[1]}",
                    found=f"bytes {reading.start} to {reading.stop}",
                )
            yield _BucketStream(self.address, reading, wanted[1] - start, reading.item.size)

    def _note(self, size: int, etag: str | None) -> None:
        """Remember which version this is; another one than before is an error."""
        with self._lock:
            if self._seen is not None and self._seen != (size, etag):
                raise TransportError("the file changed while it was read", path=self.address)
            self._seen = (size, etag)


class _BucketStream(BaseStream):
    """The bytes of a reply as they arrive."""

    def __init__(
        self, address: str, reading: Reading | None, length: int, total: int | None
    ) -> None:
        self.length = length
        self.total = total
        self._address = address
        self._chunks: Iterator[Bytes] = iter(()) if reading is None else reading.chunks
        self._rest = memoryview(b"")
        self._given = 0

    def readinto(self, buffer: memoryview) -> int:
        while not len(self._rest):
            chunk = next(self._chunks, None)
            if chunk is None:
                self._check_end()
                return 0
            self._rest = memoryview(chunk).cast("B")
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._given += count
        if self._given > self.length:
            raise TransportError(
                "the server gives more than it was asked for",
                path=self._address,
                expected=f"{self.length} bytes",
            )
        return count

    def _check_end(self) -> None:
        if self._given != self.length:
            raise TransportError(
                "the reply ended early",
                transient=True,
                path=self._address,
                expected=f"{self.length} bytes",
                found=f"{self._given} bytes",
            )
