"""Items in buckets as resources."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from mlstate.buckets.errors import bucket_error
from mlstate.buckets.values import ChunkReader
from mlstate.errors import TransportError
from mlstate.transport.interface import CheckedStream, EmptyStream, Stream
from mlstate.transport.local import check_range

if TYPE_CHECKING:
    from mlstate.buckets.client import BucketClient
    from mlstate.buckets.values import Reading

__all__ = ["BucketResource"]


class BucketResource:
    """An item in a bucket, at a path."""

    def __init__(self, client: BucketClient, path: str) -> None:
        self.address = client.locate(path)
        self._client = client
        self._path = path
        self._lock = Lock()
        self._seen: tuple[int, str | None] | None = None

    def __repr__(self) -> str:
        return f"BucketResource({self.address!r})"

    @property
    def place(self) -> tuple[BucketClient, str]:
        """The bucket, and the path in it."""
        return self._client, self._path

    def size(self) -> int:
        """See `Resource.size`."""
        if self._seen is None:
            item = self._client.head(self._path)
            if item is None:
                address = self._client.address
                raise bucket_error(address, "read", self._path, "", code=None, status=404)
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
                raise TransportError(
                    "the file changed while it was read",
                    path=self.address,
                    relabelled=self._seen[0] == size,
                )
            self._seen = (size, etag)


class _BucketStream(CheckedStream):
    def __init__(self, address: str, length: int, reading: Reading) -> None:
        super().__init__(address, length, reading.item.size)
        self._reader = ChunkReader(reading.chunks)

    def _receive(self, buffer: memoryview) -> int:
        return self._reader.readinto(buffer)
