"""Redirects: how far a request is sent on, and where to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from urllib3 import BaseHTTPResponse

from mlstate.errors import TransportError
from mlstate.transport.client import discard
from mlstate.transport.urls import Url

__all__ = ["Target", "follow"]

MOST = 10
_STATUSES = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class Target:
    """Where a request goes.

    Attributes:
        url: The address.
        via: The addresses that redirected to it, from the first on.
    """

    url: Url
    via: tuple[Url, ...] = ()

    def redirected(self, location: str | None, address: str) -> Target:
        """The target that a redirect from here leads to.

        Raises:
            TransportError: It leads too far, nowhere, or where it must not.
        """
        if len(self.via) >= MOST:
            raise TransportError(f"more than {MOST} redirects", path=address)
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
        return Target(url, (*self.via, self.url))


def follow(
    send: Callable[[Target], BaseHTTPResponse],
    start: Target,
    address: str,
    *,
    other_servers: bool = True,
) -> tuple[BaseHTTPResponse, Target]:
    """Send a request, and again wherever a redirect leads.

    Args:
        send: Sends the request to a target, with the credentials that are for that server alone.
        start: The first target.
        address: What an error calls the resource.
        other_servers: Whether a redirect may lead to another server.

    Returns:
        The reply, and the target that gave it.

    Raises:
        TransportError: There is no reply, or a redirect is not followed.
    """
    target = start
    while (reply := send(target)).status in _STATUSES:
        discard(reply)
        target = target.redirected(reply.headers.get("Location"), address)
        if not other_servers and target.url.origin != start.url.origin:
            raise TransportError(
                "a redirect leads to another server", path=address, found=target.url.shown
            )
    return reply, target


def _utf8(location: str) -> str:
    """A header as it was meant: http.client takes every byte for a character."""
    try:
        return location.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return location
