"""Requests that follow redirects, and tell each server only what is for it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from urllib3 import BaseHTTPResponse

from mlstate.errors import TransportError
from mlstate.transport.client import Session, let_go
from mlstate.transport.credentials import Credentials
from mlstate.transport.urls import Url

__all__ = ["USUAL", "Place", "Web"]

REDIRECTS = 10
_MOVED = frozenset({301, 302, 303, 307, 308})


def _agent() -> str:
    try:
        return f"mlstate/{version('mlstate')}"
    except PackageNotFoundError:  # run from a folder that was only copied
        return "mlstate"


USUAL = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": _agent()}


@dataclass(frozen=True)
class Place:
    """Where a request goes.

    Attributes:
        url: The address.
        via: The addresses that redirected to it, from the first on.
    """

    url: Url
    via: tuple[Url, ...] = ()

    def redirected(self, location: str | None, address: str) -> Place:
        """The place that a redirect from here leads to.

        Raises:
            TransportError: It leads too far, nowhere, or where it must not.
        """
        if len(self.via) >= REDIRECTS:
            raise TransportError(f"more than {REDIRECTS} redirects", path=address)
        if not location:
            raise TransportError("a redirect leads nowhere", path=address)
        try:
            url = self.url.join(_utf8(location))
        except TransportError as error:
            raise TransportError(
                "a redirect leads to an address that cannot be used",
                path=address,
                found=error.found or error.message,
            ) from None
        if self.url.scheme == "https" and url.scheme != "https":
            raise TransportError(
                "a redirect leads from https to http", path=address, found=url.shown
            )
        return Place(url, (*self.via, self.url))


def _utf8(location: str) -> str:
    """A header as it was meant: http.client takes every byte for a character."""
    try:
        return location.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return location


class Web:
    """The way to all web servers: one session, begun when it is needed.

    Attributes:
        low_speed: The bytes a second below which a server is too slow.
        low_speed_seconds: For how long it may be so.
    """

    def __init__(
        self,
        *,
        connections: int,
        connect_timeout: float,
        read_timeout: float,
        low_speed: float,
        low_speed_seconds: float,
    ) -> None:
        self.low_speed = low_speed
        self.low_speed_seconds = low_speed_seconds
        self._begin = partial(
            Session,
            connections=connections,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
        )
        self._credentials = Credentials()
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._closed = False

    def follow(
        self, place: Place, headers: Mapping[str, str], address: str
    ) -> tuple[BaseHTTPResponse, Place]:
        """Send a request, and again wherever a redirect leads.

        Credentials are looked up for each server that is asked, so none goes on to another.

        Args:
            place: Where to begin.
            headers: What to send beside the usual.
            address: What an error calls the resource.

        Returns:
            The reply, and the place that gave it.

        Raises:
            TransportError: There is no reply, or a redirect is not followed.
        """
        session = self._begun()
        while True:
            sent = {**USUAL, **headers}
            if authorization := self._credentials.authorization(place.url, place.via):
                sent["Authorization"] = authorization
            reply = session.get(place.url, sent, address)
            if reply.status not in _MOVED:
                return reply, place
            let_go(reply)
            place = place.redirected(reply.headers.get("Location"), address)

    def credential_source(self, place: Place) -> str | None:
        """Where the credential is from that a request to this place goes with, if any."""
        found = self._credentials.find(place.url, place.via)
        return None if found is None else found.source

    def close(self) -> None:
        """Close all connections. Nothing is read after this."""
        with self._lock:
            self._closed = True
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def _begun(self) -> Session:
        with self._lock:
            if self._closed:
                raise ValueError("these transports are closed")
            if self._session is None:
                self._session = self._begin()
            return self._session
