"""Files on web servers as resources."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from urllib3 import BaseHTTPResponse

from mlstate.errors import NoRangesError, TransportError
from mlstate.transport.client import drop, explained, let_go
from mlstate.transport.connections import receive, watch_of
from mlstate.transport.interface import BaseStream, Stream
from mlstate.transport.local import check_range
from mlstate.transport.redirects import Place, Web
from mlstate.transport.replies import (
    Extent,
    check_form,
    content_length,
    extent,
    status_error,
    unsatisfied_total,
)
from mlstate.transport.urls import Url

__all__ = ["HttpResource"]

EXPIRED = frozenset({401, 403, 404, 410})  # what a signed address answers after its time


class HttpResource:
    """A file on a web server. Where its address redirects to is found out once, and remembered."""

    def __init__(self, web: Web, url: Url, address: str | None = None) -> None:
        self.address = url.shown if address is None else address
        self._web = web
        self._start = Place(url)
        self._lock = threading.Lock()
        self._first = threading.Lock()  # held by the one thread that finds the end
        self._end: Place | None = None  # where the address leads, once that is known
        self._size: int | None = None
        self._size_asked = False
        self._seen: _Version | None = None

    def __repr__(self) -> str:
        return f"HttpResource({self.address!r})"

    def size(self) -> int | None:
        """The size in bytes, or None if the server does not say. Asked once, and remembered.

        Raises:
            TransportError: It cannot be had.
        """
        if self._size is None and not self._size_asked:
            # Not HEAD, which servers refuse more often, and which a signature may not cover.
            try:
                with self.read(0, 1) as stream:
                    while stream.read(1):
                        pass
            except NoRangesError:
                pass
            except TransportError as error:
                if error.status != 416 or self._size is None:
                    raise
            self._size_asked = True
        return self._size

    @contextmanager
    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Stream]:
        """Begin to read a range, or all.

        Raises:
            NoRangesError: The server gives the whole file only. Nothing of it was read.
            TransportError: It cannot be had, or the reply is not what was asked for.
        """
        check_range(start, stop)
        if start == stop:  # HTTP has no words for it
            yield _Nothing(self._size)
            return
        whole = start == 0 and stop is None
        headers = {} if whole else {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
        reply, place = self._ask(headers)
        try:
            if whole:
                found = self._check_whole(reply, place)
            else:
                found = self._check_range(reply, place, start, stop)
            yield _HttpStream(self._web, self.address, reply, found)
        finally:
            drop(reply)

    def _ask(self, headers: dict[str, str]) -> tuple[BaseHTTPResponse, Place]:
        reply, place, remembered = self._request(headers)
        if remembered is not None and remembered.via and reply.status in EXPIRED:
            let_go(reply)
            with self._lock:
                if self._end is remembered:
                    self._end = None
            reply, place, _ = self._request(headers)
        return reply, place

    def _request(self, headers: dict[str, str]) -> tuple[BaseHTTPResponse, Place, Place | None]:
        """Ask where the file is known to be, or find out; gives that with the reply, too."""
        with self._turn():
            remembered = self._end
            reply, place = self._web.follow(remembered or self._start, headers, self.address)
            if reply.status < 400:
                self._end = place
            return reply, place, remembered

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """While it is not known where the address leads, one thread asks and the others wait.

        A hub allows so many resolved addresses only. If the one fails, all others try at once.
        """
        if self._end is not None:
            yield
        elif self._first.acquire(blocking=False):
            try:
                yield
            finally:
                self._first.release()
        else:
            with self._first:
                pass
            yield

    def _check_whole(self, reply: BaseHTTPResponse, place: Place) -> Extent:
        if reply.status != 200:
            raise self._refused(reply, place)
        check_form(reply.headers, self.address)
        length = content_length(reply.headers, self.address)
        self._note(reply, place, length)
        return Extent(length, length)

    def _check_range(
        self, reply: BaseHTTPResponse, place: Place, start: int, stop: int | None
    ) -> Extent:
        if reply.status == 416 and start == 0:
            self._note(reply, place, unsatisfied_total(reply.headers))
        if reply.status not in (200, 206):
            raise self._refused(reply, place)
        check_form(reply.headers, self.address)
        if reply.status == 200:
            self._note(reply, place, content_length(reply.headers, self.address))
            raise NoRangesError(
                "the server gives the whole file only, no range of it",
                path=self.address,
                status=200,
            )
        found = extent(reply, start, stop, self.address)
        self._note(reply, place, found.total)
        return found

    def _refused(self, reply: BaseHTTPResponse, place: Place) -> TransportError:
        let_go(reply)
        source = self._web.credential_source(place)
        return status_error(reply.status, reply.headers, self.address, place.url, source)

    def _note(self, reply: BaseHTTPResponse, place: Place, total: int | None) -> None:
        """Remember which version of the file this is; another one than before is an error."""
        etag = reply.headers.get("ETag")
        version = _Version(
            origin=place.url.origin,
            etag=None if etag is None or etag.startswith("W/") else etag,
            modified=reply.headers.get("Last-Modified"),
        )
        with self._lock:
            before = self._seen
            changed = before is not None and before.differs(version)
            if changed or (None not in (self._size, total) and self._size != total):
                raise TransportError("the file changed while it was read", path=self.address)
            self._seen = version
            if total is not None:
                self._size = total


@dataclass(frozen=True)
class _Version:
    """What tells one version of a file from another, on one server."""

    origin: tuple[str, str, int]
    etag: str | None
    modified: str | None

    def differs(self, other: _Version) -> bool:
        if self.origin != other.origin:  # each server has its own way to make them up
            return False
        if None not in (self.etag, other.etag):
            return self.etag != other.etag
        return None not in (self.modified, other.modified) and self.modified != other.modified


class _Nothing(BaseStream):
    """A stream of no bytes."""

    length = 0

    def __init__(self, total: int | None) -> None:
        self.total = total

    def readinto(self, buffer: memoryview) -> int:
        return 0


class _HttpStream(BaseStream):
    """The body of a reply, one receive at a time, under a watch for servers that drip."""

    def __init__(self, web: Web, address: str, reply: BaseHTTPResponse, found: Extent) -> None:
        self.length = found.length
        self.total = found.total
        self._web = web
        self._address = address
        self._reply = reply
        self._given = 0
        self._ended = False
        self._watch = watch_of(reply)
        self._window = 0  # bytes since the deadline was set
        self._idle_since = time.monotonic()
        self._renew()

    def readinto(self, buffer: memoryview) -> int:
        if self._ended:
            return 0
        left = None if self.length is None else self.length - self._given
        # At the end one more than is due is asked for: whoever gives it gives too much.
        wanted = len(buffer) if left is None else min(len(buffer), max(left, 1))
        if self._watch is not None:  # the time that was spent on other things is not the server's
            self._watch.deadline += time.monotonic() - self._idle_since
        with explained(self._address):
            count = receive(self._reply, buffer[:wanted])
        self._count(count, left)
        return count

    def _count(self, size: int, left: int | None) -> None:
        if not size:
            self._ended = True
            if left:
                raise TransportError(
                    "the reply ended early",
                    transient=True,
                    path=self._address,
                    expected=f"{self.length} bytes",
                    found=f"{self._given} bytes",
                )
            return
        if left == 0:
            raise TransportError(
                "the server gives more than it was asked for",
                path=self._address,
                expected=f"{self.length} bytes",
            )
        self._given += size
        self._window += size
        if self._window >= self._web.low_speed * self._web.low_speed_seconds:
            self._renew()
        self._idle_since = time.monotonic()

    def _renew(self) -> None:
        self._window = 0
        if self._watch is not None:
            self._watch.deadline = time.monotonic() + self._web.low_speed_seconds
