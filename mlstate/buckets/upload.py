"""Uploads to a bucket that are sure to have arrived as they were sent.

A server that verifies what it is sent needs no more: obstore signs each request over the SHA-256 of
its bytes, and AWS and Ceph refuse others. Some servers do not look. What they took is compared by
its ETag, which is the MD5 of one request and the MD5 of the MD5s of several parts; an ETag that is
neither says nothing, and the thing is read back. What is wrong is written again, or removed.
"""

from __future__ import annotations

import hashlib
import mmap
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from mlstate.buckets.client import PART, RETRIES, BucketClient
from mlstate.buckets.errors import bucket_error
from mlstate.buckets.values import Written
from mlstate.digests import Bytes
from mlstate.errors import BucketError

__all__ = ["BucketUploads", "chunks", "copied"]

_OWN = 1 << 20
"""From so many bytes on, a copy gets pages of its own."""
_ASK_FROM = 1 << 20
"""So many bytes take as long to hash as a request: below, the ETag is looked at first."""


def copied(parts: Sequence[Bytes]) -> Bytes:
    """One copy of several parts, one after the other."""
    size = sum(memoryview(part).nbytes for part in parts)
    if size < _OWN:
        return b"".join(parts)
    room = memoryview(_pages(size))
    place = 0
    for part in parts:
        view = memoryview(part).cast("B")
        room[place : place + len(view)] = view
        place += len(view)
    return room


def chunks(parts: Sequence[Bytes], size: int) -> Iterator[Bytes]:
    """Copies of the bytes of all parts, in pieces of a size, each made when it is asked for."""
    gathered: list[memoryview] = []
    room = size
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            gathered.append(view[:room])
            view = view[room:]
            room -= len(gathered[-1])
            if not room:
                yield copied(gathered)
                gathered, room = [], size
    if gathered:
        yield copied(gathered)


def _pages(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, size)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)
    if sys.platform == "linux":
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)  # small ones take thrice the time (measured)
    return pages


class BucketUploads:
    """Writes to a bucket, and makes sure that the bytes have arrived.

    Each method raises a `BucketError` if they are damaged on their way again and again; then
    nothing is there. ``verifies`` says whether the server refuses what was damaged; it is called
    when that matters.
    """

    def __init__(self, client: BucketClient, verifies: Callable[[], bool]) -> None:
        self._client = client
        self._verifies = verifies

    def put(self, path: str, data: Bytes) -> None:
        """Write an item in one request, whatever is there."""
        if len(data) >= _ASK_FROM and self._verifies():
            self._client.put(path, data)
            return
        sent = _Etag.of(data)
        self._write_until_right(path, sent, lambda _: self._client.put(path, data))

    def put_large(self, path: str, chunks: Callable[[], Iterator[Bytes]]) -> None:
        """Write a large item in parts; see `BucketClient.put_large`."""
        if self._verifies():
            self._client.put_large(path, chunks)
            return
        sent = _Etag(PART)

        def hashed() -> Iterator[Bytes]:
            sent.begin()
            for chunk in chunks():
                sent.update(chunk)
                yield chunk

        self._write_until_right(path, sent, lambda _: self._client.put_large(path, hashed))

    def create(self, path: str, data: bytes) -> bool:
        """Write a small item unless one is there; False if so. Servers may ignore the condition."""
        return self._verify(path, data, self._client.create(path, data))

    def replace(self, path: str, data: bytes, etag: str) -> bool:
        """Write a small item in place of one exact version; False if that is not there any more."""
        return self._verify(path, data, self._client.replace(path, data, etag))

    def _verify(self, path: str, data: bytes, written: Written | None) -> bool:
        """Write a small item again if it is wrong, unless another has replaced it since."""
        if written is None:
            return False

        def write(wrong: Written | None) -> Written | None:
            if wrong is None:
                return written
            if wrong.etag is None:
                return self._client.put(path, data)
            return self._client.replace(path, data, wrong.etag)

        self._write_until_right(path, _Etag.of(data), write)
        return True

    def _write_until_right(
        self, path: str, sent: _Etag, write: Callable[[Written | None], Written | None]
    ) -> None:
        """Write until what is there is what was sent.

        ``write`` takes what was wrong the last time, and returns None if there is nothing to do any
        more. If it is wrong again and again, or cannot be written, it is removed.
        """
        suspect: Written | None = None
        try:
            for failures in range(1, RETRIES.attempts + 1):
                written = write(suspect)
                if written is None:
                    return
                suspect = written
                if self._is_right(path, sent, written):
                    return
                time.sleep(RETRIES.delay(failures))
            address = self._client.address
            raise bucket_error(address, "write", path, "", code="BadDigest", status=None)
        except BaseException:
            if suspect is not None:  # it is not what its name says
                with suppress(BucketError):
                    self._client.delete(path)
            raise

    def _is_right(self, path: str, sent: _Etag, written: Written) -> bool:
        if written.etag is not None and written.etag.strip('"').lower() == sent.etag():
            return True
        if self._verifies():
            return True  # it has looked already; its ETags are made in another way
        there = _Etag(sent.part)
        try:
            with self._client.reading(path) as reading:
                for chunk in reading.chunks:
                    there.update(chunk)
        except BucketError as error:
            if error.status != 404:
                raise
            return False
        return there.etag() == sent.etag()


class _Etag:
    """The ETag of S3, computed as bytes pass: in parts of ``part`` bytes, or all in one."""

    def __init__(self, part: int | None = None) -> None:
        self.part = part
        self.begin()

    @classmethod
    def of(cls, data: Bytes) -> _Etag:
        """The ETag of what goes in one request."""
        etag = cls()
        etag.update(data)
        return etag

    def begin(self) -> None:
        """Forget what has passed."""
        self._done: list[bytes] = []
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._size = 0

    def update(self, data: Bytes) -> None:
        """Add the next bytes."""
        view = memoryview(data).cast("B")
        while len(view):
            room = len(view) if self.part is None else self.part - self._size
            piece = view[:room]
            self._md5.update(piece)
            self._size += len(piece)
            if self._size == self.part:
                self._done.append(self._md5.digest())
                self._md5, self._size = hashlib.md5(usedforsecurity=False), 0
            view = view[room:]

    def etag(self) -> str:
        """The ETag of what has passed, without quotation marks."""
        if self.part is None:
            return self._md5.hexdigest()
        parts = [*self._done, *([self._md5.digest()] if self._size else [])]
        whole = hashlib.md5(b"".join(parts), usedforsecurity=False)
        return f"{whole.hexdigest()}-{len(parts)}"
