"""A bucket, and what can be asked of it: one interface over obstore, with errors of our own.

What obstore cannot do is asked by way of boto3 (`mlstate.buckets.control`). Nothing here makes sure
that what was written is what was sent: see `mlstate.buckets.upload`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mlstate.buckets.control import BucketControl
from mlstate.buckets.errors import (
    ALREADY,
    DAMAGED,
    NO_CREDENTIALS,
    NOT_FOUND,
    PRECONDITION,
    is_missing,
    status_of,
    translated_errors,
)
from mlstate.buckets.values import Connection, Item, Reading, Written
from mlstate.digests import Bytes
from mlstate.errors import BucketAccessError, BucketError, OfflineError, TransportError
from mlstate.limits import Limits, SpeedLimit, read_limited
from mlstate.parallel import ProcessLock
from mlstate.phrases import Phrase
from mlstate.retries import Retries, retried

__all__ = ["PART", "PARTS_AT_ONCE", "RETRIES", "BucketClient"]

PART = 8 << 20
"""The bytes of one part of a large upload. With 4 at once larger ones are no faster (measured)."""
PARTS_AT_ONCE = 4
RETRIES = Retries(attempts=4, first=0.2)
"""How often something is written, where obstore does not try again by itself."""
_PAGE = 1000


class BucketClient:
    """A bucket. It is used by many threads at once; pickled, it is opened anew.

    Each method raises a `BucketError` if the bucket cannot be asked, and an `OfflineError` if
    sockets are forbidden. ``connect`` opens it when it is first asked for something. In a process
    that was forked from one that had used a bucket, each raises a `BucketError`: the threads that
    obstore works with are not there, and it would wait for them for ever.
    """

    def __init__(
        self, address: str, connect: Callable[[], Connection], *, offline: bool, limits: Limits
    ) -> None:
        self.address = address
        self._connect = connect
        self._offline = offline
        self._limits = limits
        self._lock = ProcessLock()
        self._opened: Connection | None = None
        self._control: BucketControl | None = None
        self._bare_etags = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None, "_control": None}

    def __repr__(self) -> str:
        return f"BucketClient({self.address!r})"

    def locate(self, path: str) -> str:
        """The address of an item in the bucket."""
        return f"{self.address}/{path}"

    @property
    def control(self) -> BucketControl:
        """What needs boto3, and a bucket of S3: copies within it, unfinished uploads."""
        opened = self._open()
        with self._lock:
            if self._control is None:
                self._control = BucketControl.open(self.address, opened.control)
            return self._control

    @property
    def anonymous(self) -> bool:
        """Whether a bucket of S3 is asked without credentials."""
        return self._open().anonymous

    # Reading.

    def head(self, path: str) -> Item | None:
        """An item in the bucket, or None if it is not there."""
        store = self._open().reading
        try:
            with self._errors("read", path):
                return Item.of(store.head(path))
        except BucketError as error:
            if is_missing(error):
                return None
            if error.code is None and error.status in (400, 401, 403):
                self.read_small(path, 0)  # unlike this reply, that one says why
            raise

    def read_small(self, path: str, most: int) -> tuple[bytes, str | None] | None:
        """The bytes of a small item and its ETag, or None; see `read_limited` for ``most``."""
        try:
            with self.reading(path) as reading:
                return read_limited(reading.chunks, most), reading.item.etag
        except BucketError as error:
            if not is_missing(error):
                raise
            return None

    @contextmanager
    def reading(self, path: str, start: int = 0, stop: int | None = None) -> Iterator[Reading]:
        """Begin to read an item, or bytes ``start`` up to ``stop`` of it.

        Raises a `NoRangesError` if the server gives the whole only, and a `BucketError` if it
        cannot be had; of what is not there `status` is 404.
        """
        options: dict[str, Any] = {}
        if stop is not None:
            options["range"] = (start, stop)
        elif start:
            options["range"] = {"offset": start}
        store = self._open().reading
        with self._errors("read", path):
            result = store.get(path, options=options)
        first, end = result.range
        yield Reading(Item.of(result.meta), first, end, self._chunks(result, path))

    def items(self, folder: str, after: str | None = None) -> Iterator[Item]:
        """All items below a folder, however deep, or those of them that come after a path.

        A folder is a path without a slash at its end; the empty one is the whole bucket.
        """
        store = self._open().reading
        pages = iter(store.list(folder or None, offset=after, chunk_size=_PAGE))
        while True:
            with self._errors("list", folder):
                page = next(pages, None)
            if page is None:
                return
            yield from map(Item.of, page)

    def children(self, folder: str) -> tuple[list[str], list[Item]]:
        """The names of the folders that are directly in a folder, and the items."""
        store = self._open().reading
        with self._errors("list", folder):
            found = store.list_with_delimiter(folder or None)
        names = [path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"]]
        return names, [Item.of(meta) for meta in found["objects"]]

    # Writing.

    def put(self, path: str, data: Bytes) -> Written:
        """Write an item in one request, whatever is there.

        The request is signed over the SHA-256 of the data: servers that look at it refuse what was
        damaged on the way, and then it is sent again.
        """
        return self._write(path, lambda: data, use_multipart=False)

    def put_large(self, path: str, chunks: Callable[[], Iterator[Bytes]]) -> Written:
        """Write a large item in parts, several at once. It is there when all are, or not at all.

        For each attempt ``chunks`` gives the bytes anew; if it raises, nothing is written.
        """
        parts = {"chunk_size": PART, "max_concurrency": PARTS_AT_ONCE}
        return self._write(path, chunks, use_multipart=True, **parts)

    def create(self, path: str, data: bytes) -> Written | None:
        """Write a small item unless one is there; None if so. Servers may ignore the condition."""
        return self._write_if(path, data, "create", ALREADY)

    def replace(self, path: str, data: bytes, etag: str) -> Written | None:
        """Write a small item in place of one exact version; None if that is not there any more."""
        for bare in (self._bare_etags, not self._bare_etags):
            form = etag.strip('"') if bare else etag
            written = self._write_if(path, data, {"e_tag": form}, PRECONDITION | NOT_FOUND)
            if written is not None:
                return written
            # Some servers compare it without its quotation marks, and never find it with them.
            now = self.head(path)
            if now is None or now.etag != etag:
                return None
            self._bare_etags = not bare
        return None

    def delete(self, path: str) -> None:
        """Remove an item; one that is not there is no error."""
        store = self._open().writing
        try:
            with self._errors("delete", path):
                store.delete(path)
        except BucketError as error:
            if not is_missing(error):
                raise

    def _write(self, path: str, data: Callable[[], Any], **options: Any) -> Written:
        """Write, again if the server says that it was damaged on the way."""
        store = self._open().writing

        def write() -> Written:
            with self._errors("write", path):
                return Written.of(store.put(path, data(), **options))

        return retried(write, RETRIES, worth_it=_is_damage)

    def _write_if(
        self, path: str, data: bytes, condition: Any, refusals: frozenset[str]
    ) -> Written | None:
        """Write under a condition; None if the server says that it is not met."""
        store = self._open().writing

        def write() -> Written | None:
            try:
                with self._errors("write", path, *refusals):
                    return Written.of(store.put(path, data, mode=condition, use_multipart=False))
            except Exception as error:
                if type(error).__name__ not in refusals:
                    raise
                if status_of(error)[1] != 409:
                    return None
                raise _UndecidedError("another request is under way", transient=True) from None

        try:
            # Unlike other uploads, obstore does not try it again when a connection breaks.
            return retried(write, RETRIES)
        except _UndecidedError:
            return None

    def _open(self) -> Connection:
        if self._offline:
            raise OfflineError(
                "a bucket is on the network, which may not be used",
                path=self.address,
                remedy=Phrase(
                    "unset MLSTATE_OFFLINE, or leave out offline=True", "unset MLSTATE_OFFLINE"
                ),
            )
        if _FORKED:
            raise BucketError(
                "buckets cannot be asked in a process that was forked from one which used them",
                bucket=self.address,
                operation="open",
                path=self.address,
                remedy='start processes by "spawn" or "forkserver" (of a DataLoader: its '
                "multiprocessing_context), or fetch what they load before they are forked",
            )
        with self._lock:
            if self._opened is None:
                self._opened = self._connect()
            return self._opened

    @contextmanager
    def _errors(self, operation: str, path: str, *passing: str) -> Iterator[None]:
        """The errors of a client; see `translated_errors`."""
        try:
            with translated_errors(self.address, operation, path, *passing):
                yield
        except BucketAccessError as error:
            if self._opened is not None and self._opened.anonymous and error.status:
                error.message = "this bucket does not let everybody do this"
                error.found = f"{error.found}; no credentials were sent along"
                error.remedy = f"{NO_CREDENTIALS}; {error.remedy}"
            raise

    def _chunks(self, result: Any, path: str) -> Iterator[Bytes]:
        """The bytes as they arrive; a server that is too slow is an error."""
        stream = iter(result.stream(min_chunk_size=1))  # larger chunks are no faster (measured)
        speed = SpeedLimit(self._limits)
        while True:
            speed.resume()
            with self._errors("read", path):
                chunk = next(stream, None)
            if chunk is None:
                return
            if not speed.count(len(chunk)):
                raise BucketError(
                    "the server is too slow",
                    bucket=self.address,
                    operation="read",
                    path=self.locate(path),
                    transient=True,
                )
            yield chunk


_FORKED: list[int] = []
"""This process, and those before it, if it was forked from one in which obstore was at work."""


def _note_fork() -> None:
    if "obstore" in sys.modules:
        _FORKED.append(os.getpid())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


class _UndecidedError(TransportError):
    """A server does not say whether a condition is met, since others write there, too."""


def _is_damage(error: TransportError) -> bool:
    """Whether a server says that bytes were damaged; a gateway may say so with a bare 400."""
    code = error.code if isinstance(error, BucketError) else None
    return code in DAMAGED or (code is None and error.status == 400)
