"""Files on web servers as resources."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from urllib3 import BaseHTTPResponse

from mlstate.errors import NoRangesError, TransportError
from mlstate.parallel import OneFirst
from mlstate.transport.client import Session, Target, discard, follow, release
from mlstate.transport.credentials import Credentials
from mlstate.transport.interface import EmptyStream, Stream
from mlstate.transport.local import check_range
from mlstate.transport.replies import (
    Extent,
    check_form,
    content_length,
    extent,
    status_error,
    unsatisfied_total,
)
from mlstate.transport.urls import Url
from mlstate.transport.zones import Zone

__all__ = ["HttpResource"]

EXPIRED = frozenset({401, 403, 404, 410})  # what a signed address answers after its time


class HttpResource:
    """A file on a web server. Where its address redirects to is found once, and remembered."""

    def __init__(
        self,
        session: Session,
        credentials: Credentials,
        url: Url,
        address: str | None = None,
        confined: Zone | None = None,
    ) -> None:
        self.address = url.shown if address is None else address
        self._session = session
        self._credentials = credentials
        self._start = Target(url, confined=confined)
        self._lock = threading.Lock()
        self._finding = OneFirst()
        self._end: Target | None = None  # where the address leads, once that is known
        self._size: int | None = None
        self._size_asked = False
        self._seen: _Version | None = None

    def __repr__(self) -> str:
        return f"HttpResource({self.address!r})"

    def size(self) -> int | None:
        """See `Resource.size`."""
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
        """See `Resource.read`."""
        check_range(start, stop)
        if start == stop:  # HTTP has no words for it
            yield EmptyStream(self._size)
            return
        whole = start == 0 and stop is None
        headers = {} if whole else {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
        reply, target = self._request(headers)
        try:
            if whole:
                found = self._check_whole(reply, target)
            else:
                found = self._check_range(reply, target, start, stop)
            yield self._session.body(reply, self.address, found.length, found.total)
        finally:
            release(reply)

    def _request(self, headers: dict[str, str]) -> tuple[BaseHTTPResponse, Target]:
        """Ask the server where the file is known to be, or find it; again if that has expired."""
        reply, target, remembered = self._request_once(headers)
        if remembered is not None and remembered.via and reply.status in EXPIRED:
            discard(reply)
            with self._lock:
                if self._end is remembered:
                    self._end = None
            reply, target, _ = self._request_once(headers)
        return reply, target

    def _request_once(
        self, headers: dict[str, str]
    ) -> tuple[BaseHTTPResponse, Target, Target | None]:
        """The reply, the target that gave it, and the target that was remembered."""
        # A hub allows so many resolved addresses only: one thread finds it for all.
        with nullcontext() if self._end is not None else self._finding.turn():
            remembered = self._end
            send = partial(self._send, headers)
            start = remembered or self._start
            reply, target = follow(self._session, send, start, self.address)
            if reply.status < 400:
                self._end = target
            return reply, target, remembered

    def _send(self, headers: dict[str, str], target: Target) -> BaseHTTPResponse:
        # Looked up for each server that is asked, so that none is told another's.
        credential = self._credentials.find(target.url, target.via)
        sent = {} if credential is None else {"Authorization": credential.header}
        every = {**headers, **sent}
        return self._session.send("GET", target.url, every, self.address, confined=target.confined)

    def _check_whole(self, reply: BaseHTTPResponse, target: Target) -> Extent:
        if reply.status != 200:
            raise self._refused(reply, target)
        check_form(reply.headers, self.address, target.url, page=True)
        length = content_length(reply.headers, self.address)
        self._check_version(reply, target, length)
        return Extent(length, length)

    def _check_range(
        self, reply: BaseHTTPResponse, target: Target, start: int, stop: int | None
    ) -> Extent:
        if reply.status == 416 and start == 0:
            self._check_version(reply, target, unsatisfied_total(reply.headers))
        if reply.status not in (200, 206):
            raise self._refused(reply, target)
        check_form(reply.headers, self.address, target.url, page=True)
        if reply.status == 200:
            self._check_version(reply, target, content_length(reply.headers, self.address))
            raise NoRangesError(
                "the server gives the whole file only, no range of it",
                path=self.address,
                status=200,
            )
        found = extent(reply, start, stop, self.address)
        self._check_version(reply, target, found.total)
        return found

    def _refused(self, reply: BaseHTTPResponse, target: Target) -> TransportError:
        discard(reply)
        credential = self._credentials.find(target.url, target.via)
        source = None if credential is None else credential.source
        return status_error(reply.status, reply.headers, self.address, target.url, source)

    def _check_version(self, reply: BaseHTTPResponse, target: Target, total: int | None) -> None:
        """Remember which version of the file this is; another one than before is an error."""
        etag = reply.headers.get("ETag")
        version = _Version(
            origin=target.url.origin,
            etag=None if etag is None or etag.startswith("W/") else etag,
            modified=reply.headers.get("Last-Modified"),
        )
        with self._lock:
            before = self._seen
            changed = before is not None and before.differs(version)
            resized = None not in (self._size, total) and self._size != total
            if changed or resized:
                raise TransportError(
                    "the file changed while it was read",
                    path=self.address,
                    relabelled=not resized,
                )
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
