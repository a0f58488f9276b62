"""Things in buckets as resources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from mlstate.errors import BucketError, TransportError
from mlstate.transport.interface import CheckedStream, EmptyStream, Stream
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
    """A thing in a bucket, at a path."""

    def __init__(self, client: BucketClient, path: str) -> None:
        self.address = client.locate(path)
        self._client = client
        self._path = path
        self._lock = Lock()
        self._seen: tuple[int, str | None] | None = None

    def __repr__(self) -> str:
        return f"BucketResource({self.address!r})"

    def size(self) -> int:
        """See `Resource.size`."""
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
            self._check_version(item.size, item.etag)
        assert self._seen is not None
        return self._seen[0]

    @contextmanager
    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Stream]:
        """See `Resource.read`."""
        check_range(start, stop)
        if start == stop:  # HTTP has no words for it
            yield EmptyStream(None if self._seen is None else self._seen[0])
            return
        with self._client.reading(self._path, start, stop) as reading:
            self._check_version(reading.item.size, reading.item.etag)
            end = reading.item.size if stop is None else stop
            if (reading.start, reading.stop) != (start, end):
                raise TransportError(
                    "the thing in the bucket is shorter than what is asked of it",
                    path=self.address,
                    expected=f"bytes {start} to {end}",
                    found=f"bytes {reading.start} to {reading.stop}",
                )
            yield _BucketStream(self.address, end - start, reading)

    def _check_version(self, size: int, etag: str | None) -> None:
        """Remember which version this is; another one than before is an error."""
        with self._lock:
            if self._seen is not None and self._seen != (size, etag):
                raise TransportError("the file changed while it was read", path=self.address)
            self._seen = (size, etag)


class _BucketStream(CheckedStream):
    def __init__(self, address: str, length: int, reading: Reading) -> None:
        super().__init__(address, length, reading.item.size)
        self._chunks = reading.chunks
        self._rest = memoryview(b"")

    def _receive(self, buffer: memoryview) -> int:
        while not len(self._rest):
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk).cast("B")
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
