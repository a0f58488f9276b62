"""What can be read of a bucket: one small interface over the clients, with our errors.

What moves data is obstore. What it cannot do is asked by way of boto3; see `bucketcontrol`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from mlstate.buckets.control import BucketControl
from mlstate.buckets.errors import NOT_FOUND, bucket_error, explained, status_of
from mlstate.buckets.values import Connection, Item, Reading
from mlstate.digests import Bytes
from mlstate.errors import BucketError, NoRangesError, OfflineError

__all__ = ["BucketReader"]

_PAGE = 1000
_MISSING = {
    404: "there is nothing of this name in the bucket",
    416: "the thing in the bucket is shorter than what is asked of it",
}


class BucketReader:
    """A bucket, as far as it is read. Used by many threads at once, but not across a fork.

    Args:
        address: ``s3://bucket``, say; for errors.
        connect: Opens it, when it is first asked for something.
        offline: Whether sockets are forbidden.
        low_speed: The bytes a second that a server must give on average...
        low_speed_seconds: ...over so many seconds.
    """

    def __init__(
        self,
        address: str,
        connect: Callable[[], Connection],
        *,
        offline: bool = False,
        low_speed: float = 1024.0,
        low_speed_seconds: float = 60.0,
    ) -> None:
        self.address = address
        self._connect = connect
        self._offline = offline
        self._low_speed = low_speed
        self._low_speed_seconds = low_speed_seconds
        self._lock = threading.Lock()
        self._opened: Connection | None = None
        self._control: BucketControl | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def locate(self, path: str) -> str:
        """The address of a thing in the bucket."""
        return f"{self.address}/{path}"

    def head(self, path: str) -> Item | None:
        """A thing in the bucket, or None if it is not there.

        Raises:
            BucketError: The bucket cannot be asked.
            OfflineError: Sockets are not allowed.
        """
        import obstore

        store = self._open().reading
        try:
            with explained(self.address, "read", path, *NOT_FOUND):
                return _item(obstore.head(store, path))
        except BucketError as error:
            if error.status is not None and error.code is None and error.status in (400, 401, 403):
                self.read_small(path, 0)  # unlike this reply, that one says why
            raise
        except Exception as error:
            if type(error).__name__ not in NOT_FOUND:
                raise
            return None

    def read_small(self, path: str, most: int) -> tuple[bytes, str | None] | None:
        """The bytes of a small thing and its ETag, or None if it is not there.

        Args:
            path: Which.
            most: If it has more bytes, the first of them; the caller refuses it.
        """
        try:
            with self.reading(path) as reading:
                data = bytearray()
                for chunk in reading.chunks:
                    data += chunk
                    if len(data) > most:
                        break
                return bytes(data[: most + 1]), reading.item.etag
        except BucketError as error:
            if error.code == "NoSuchBucket" or error.status != 404:
                raise
            return None

    @contextmanager
    def reading(self, path: str, start: int = 0, stop: int | None = None) -> Iterator[Reading]:
        """Begin to read a thing, or bytes ``start`` up to ``stop`` of it.

        Raises:
            NoRangesError: The server gives the whole only.
            BucketError: It cannot be had; of what is not there `status` is 404.
        """
        import obstore

        options: Any = {}  # a TypedDict of its own, put together key by key
        if stop is not None:
            options["range"] = (start, stop)
        elif start:
            options["range"] = {"offset": start}
        store = self._open().reading
        try:
            with explained(self.address, "read", path, *NOT_FOUND, "GenericError"):
                result = obstore.get(store, path, options=options)
        except Exception as error:
            raise self._unreadable(error, path) from None
        first, end = result.range
        item = _item(result.meta)
        yield Reading(item, first, end, self._chunks(result, path))

    def items(self, folder: str, after: str | None = None) -> Iterator[Item]:
        """Everything below a folder, however deep.

        Args:
            folder: A path without a slash at its end; the empty one is the whole bucket.
            after: Only what comes after this path.
        """
        import obstore

        store = self._open().reading
        stream = obstore.list(store, folder or None, offset=after, chunk_size=_PAGE)
        while True:
            with explained(self.address, "list", folder):
                page = next(iter(stream), None)
            if page is None:
                return
            for meta in page:
                yield _item(meta)

    def children(self, folder: str) -> tuple[list[str], list[Item]]:
        """The names of the folders that are directly in a folder, and the things."""
        import obstore

        store = self._open().reading
        with explained(self.address, "list", folder):
            found = obstore.list_with_delimiter(store, folder or None)
        names = [path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"]]
        return names, [_item(meta) for meta in found["objects"]]

    @property
    def control(self) -> BucketControl:
        """What needs boto3: copies within the bucket, uploads that nobody finished.

        Raises:
            BucketError: There is no boto3, or this is no bucket of S3.
        """
        opened = self._open()
        with self._lock:
            if self._control is None:
                if opened.control is None:
                    raise BucketError(
                        "this needs boto3, and a bucket of S3",
                        bucket=self.address,
                        operation="open",
                        path=self.address,
                        remedy="pip install 'mlstate[s3]'",
                    )
                self._control = BucketControl(self.address, opened.control())
            return self._control

    @property
    def anonymous(self) -> bool:
        """Whether a bucket of S3 is asked without credentials.

        Raises:
            BucketError: The credentials that there are cannot be used.
            OfflineError: Sockets are not allowed.
        """
        return self._open().anonymous

    def _open(self) -> Connection:
        if self._offline:
            raise OfflineError(
                "a bucket is on the network, which may not be used",
                path=self.address,
                remedy="unset MLSTATE_OFFLINE, or leave out offline=True",
            )
        with self._lock:
            if self._opened is None:
                self._opened = self._connect()
            return self._opened

    def _unreadable(self, error: Exception, path: str) -> Exception:
        if isinstance(error, BucketError):
            return error
        if "non-partial response" in str(error):
            return NoRangesError(
                "the server gives the whole thing only, no range of it",
                path=self.locate(path),
                status=200,
            )
        code, status = status_of(error)
        if type(error).__name__ in NOT_FOUND:
            status = 404
        message = _MISSING.get(status or 0)
        found = bucket_error(self.address, "read", path, str(error), code=code, status=status)
        if message is not None:
            found.message = message
        return found

    def _chunks(self, result: Any, path: str) -> Iterator[Bytes]:
        """The bytes as they arrive, under a watch for servers that drip."""
        stream = iter(result.stream(min_chunk_size=1))  # larger chunks are no faster (measured)
        begun, received = time.monotonic(), 0
        while True:
            with explained(self.address, "read", path):
                chunk = next(stream, None)
            if chunk is None:
                return
            now = time.monotonic()
            received += len(chunk)
            if received >= self._low_speed * self._low_speed_seconds:
                begun, received = now, 0
            elif now - begun > self._low_speed_seconds:
                raise BucketError(
                    "the server is too slow",
                    bucket=self.address,
                    operation="read",
                    path=self.locate(path),
                    transient=True,
                )
            yield chunk
            begun += time.monotonic() - now  # the time of whoever takes it is not the server's


def _item(meta: Any) -> Item:
    modified: datetime = meta["last_modified"]
    return Item(meta["path"], meta["size"], modified.timestamp(), meta.get("e_tag") or None)
