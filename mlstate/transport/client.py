"""HTTP requests, by one pool of connections for each server, and where redirects lead.

Proxies and certificates are found by requests, once for each server. The requests themselves go
straight to urllib3's pools below it: that takes less than half the time for a small file, and no
cookie, no netrc entry and no redirect is ever handled behind our back.
"""

from __future__ import annotations

import http.client
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import requests
from requests.adapters import HTTPAdapter
from requests.utils import select_proxy
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, Timeout
from urllib3 import exceptions as problems

from mlstate.digests import Bytes
from mlstate.errors import TransportError
from mlstate.limits import Limits
from mlstate.transport.connections import Body, prepare, soon_over
from mlstate.transport.errors import translated_errors
from mlstate.transport.reach import is_allowed
from mlstate.transport.urls import Url
from mlstate.transport.zones import Zone, ZoneOf, most_public, zone_by_name, zone_of

__all__ = ["Session", "Target", "discard", "follow", "release"]

SERVERS = 64  # whose connections are kept alive
REDIRECTS = 10
_REDIRECTED = frozenset({301, 302, 303, 307, 308})
SMALL = 1 << 14  # a body up to here is read to its end, so that its connection can be used again
DISCARD_SECONDS = 2.0  # that this may take: a new connection takes less


def _user_agent() -> str:
    try:
        return f"mlstate/{version('mlstate')}"
    except PackageNotFoundError:  # run from a folder that was only copied
        return "mlstate"


HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": _user_agent()}
"""The headers of every request."""


@dataclass(frozen=True)
class _Route:
    """How a server is reached."""

    pool: HTTPConnectionPool
    proxied: bool
    absolute: bool  # a proxy is told the whole address, and sees all that is sent
    zones: set[Zone]  # of all that were connected to


class _StrangePeerError(Exception):
    """A server's address is not in the zone that it has to be in. No OSError, which urllib3 wraps.

    Args:
        peer: The address, and its zone.
    """

    def __init__(self, peer: str) -> None:
        super().__init__(peer)
        self.peer = peer


class Session:
    """Sends requests, from any thread. It follows nothing, retries nothing, keeps no cookies."""

    def __init__(self, limits: Limits, classify: ZoneOf = zone_of) -> None:
        self.limits = limits
        self.connect_timeout = limits.connect_timeout  # seconds; may be changed at any time
        self._classify = classify
        self._session = requests.Session()
        # What may only go to some addresses has connections of its own.
        self._adapters: dict[Zone | None, HTTPAdapter] = {}
        self._routes: dict[tuple[tuple[str, str, int], Zone | None], _Route] = {}
        self._lock = threading.Lock()
        self._closed = False

    def send(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        address: str,
        *,
        body: bytes | Iterable[Bytes] | None = None,
        reply_timeout: float | None = None,
        confined: Zone | None = None,
    ) -> BaseHTTPResponse:
        """Send a request and wait for the headers of its reply.

        Args:
            method: The HTTP method.
            url: Where to.
            headers: Those beside the usual; with a body of parts its Content-Length, too.
            address: What an error calls the resource.
            body: What to send along. Parts are asked for one by one, as the network takes them.
            reply_timeout: The seconds to wait for the reply, if not the read timeout.
            confined: The zone that the server has to be in, if it is not public; None: any.

        Raises:
            TransportError: There is no reply; or the server is in another zone, or a credential
                would pass a proxy in clear, and then nothing was sent.
        """
        route = self._route(url, confined, address)
        if route.absolute and "Authorization" in headers:
            raise TransportError(
                "a credential would go through a proxy in clear",
                path=address,
                remedy="use an https address, or name the host in NO_PROXY",
            )
        with (
            translated_errors(address),
            _without_queries_in_logs(),
            _known_peers(url, confined, address),
        ):
            return route.pool.urlopen(
                method,
                url.secret_text if route.absolute else url.target,
                body=body,  # type: ignore[arg-type]  # views are sent, too
                headers={**HEADERS, **headers},
                timeout=Timeout(
                    connect=self.connect_timeout,
                    read=reply_timeout or self.limits.read_timeout,
                ),
                retries=False,
                redirect=False,
                assert_same_host=False,
                preload_content=False,
                decode_content=False,
            )

    def body(
        self, reply: BaseHTTPResponse, address: str, length: int | None, total: int | None = None
    ) -> Body:
        """The body of a reply of this session; for the arguments see `Body`."""
        return Body(reply, address, self.limits, length, total)

    def close(self) -> None:
        """Close all connections. Nothing is sent after this."""
        self._session.close()
        with self._lock:
            self._closed = True
            for adapter in self._adapters.values():
                adapter.close()
            for route in self._routes.values():
                route.pool.close()
            self._routes.clear()

    def zone_after(self, url: Url, confined: Zone | None, address: str) -> Zone:
        """The zone of a server that has answered a request with these arguments."""
        route = self._route(url, confined, address)
        return zone_by_name(url, self._classify) if route.proxied else most_public(route.zones)

    def _route(self, url: Url, confined: Zone | None, address: str) -> _Route:
        with self._lock:
            if self._closed:
                raise ValueError("these transports are closed")
            route = self._routes.get((url.origin, confined))
            if route is None:
                route = self._find_route(url, confined, address)
                self._routes[url.origin, confined] = route
            return route

    def _adapter(self, confined: Zone | None) -> HTTPAdapter:
        if confined not in self._adapters:
            connections = self.limits.connections
            self._adapters[confined] = HTTPAdapter(SERVERS, connections)
        return self._adapters[confined]

    def _find_route(self, url: Url, confined: Zone | None, address: str) -> _Route:
        root, adapter = url.root + "/", self._adapter(confined)
        try:
            request = requests.Request("GET", root).prepare()
            found = self._session.merge_environment_settings(root, {}, True, None, None)
            verify, cert = found["verify"], found["cert"]
            # No proxy reaches this machine, and none is to see what is sent to it in clear.
            proxies = {} if url.is_loopback else found["proxies"]
            pool = adapter.get_connection_with_tls_context(request, verify, proxies, cert)
            adapter.cert_verify(pool, root, verify, cert)
            proxy = select_proxy(root, proxies)
            absolute = proxy is not None and adapter.request_url(request, proxies) == root
        except (requests.RequestException, problems.HTTPError, OSError, ValueError, TypeError):
            # What they say is not repeated: a proxy's address may have a password in it.
            raise TransportError(
                "the proxy or the certificates that the environment names cannot be used",
                path=address,
                remedy="look at HTTP_PROXY, HTTPS_PROXY, NO_PROXY and REQUESTS_CA_BUNDLE",
            ) from None
        route = _Route(pool, proxy is not None, absolute, set())
        if route.proxied and confined is not None:
            zone = zone_by_name(url, self._classify)
            if zone not in (Zone.PUBLIC, confined):
                raise _wrong_zone(url, f"{url.host} ({zone.value})", confined, address)

        def admit(peer: str) -> None:
            if route.proxied:
                return
            zone = self._classify(peer)
            if confined is not None and zone not in (Zone.PUBLIC, confined):
                raise _StrangePeerError(f"{peer} ({zone.value})")
            route.zones.add(zone)

        prepare(pool, admit)
        return route


@contextmanager
def _known_peers(url: Url, confined: Zone | None, address: str) -> Iterator[None]:
    try:
        yield
    except _StrangePeerError as error:
        assert confined is not None
        raise _wrong_zone(url, error.peer, confined, address) from None


def _wrong_zone(url: Url, peer: str, confined: Zone, address: str) -> TransportError:
    return TransportError(
        "this leads into a network where it must not lead",
        path=address,
        expected="a public address"
        if confined is Zone.PUBLIC
        else f"a public address, or a {confined.value} one as that which leads there",
        found=f"{url.root}, which is at {peer}",
        remedy=f"if you trust it, add {url.root} to MLSTATE_ALLOWED_HOSTS",
    )


def release(reply: BaseHTTPResponse) -> None:
    """Give back the connection of a reply; it is closed unless the whole reply was read."""
    if not reply.closed:
        reply.close()
    reply.release_conn()


def discard(reply: BaseHTTPResponse) -> None:
    """Release a reply whose body nobody reads; its connection stays open if that is cheap."""
    length = reply.length_remaining
    if length is not None and length <= SMALL:
        with (
            suppress(problems.HTTPError, OSError, http.client.HTTPException),
            soon_over(reply, DISCARD_SECONDS),
        ):
            while reply.read(SMALL):
                pass
    release(reply)


@dataclass(frozen=True)
class Target:
    """Where a request goes.

    Attributes:
        url: The address.
        via: The addresses that redirected to it, from the first on.
        confined: The zone that its server has to be in, if it is not public; None: any.
    """

    url: Url
    via: tuple[Url, ...] = ()
    confined: Zone | None = None

    def redirected(self, location: str | None, zone: Zone, address: str) -> Target:
        """The target that a redirect from here leads to.

        A redirect into the internet is followed from anywhere. One that does not lead there stays
        in the zone where it comes from: a stranger's server must not make this machine ask what
        only this machine can.

        Args:
            location: The header of that name.
            zone: Where this target is.
            address: What an error calls the resource.

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
        return Target(url, (*self.via, self.url), None if is_allowed(url) else zone)


def follow(
    session: Session,
    send: Callable[[Target], BaseHTTPResponse],
    start: Target,
    address: str,
    *,
    other_servers: bool = True,
) -> tuple[BaseHTTPResponse, Target]:
    """Send a request, and again wherever a redirect leads.

    Args:
        session: What it is sent with.
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
    while (reply := send(target)).status in _REDIRECTED:
        discard(reply)
        zone = session.zone_after(target.url, target.confined, address)
        target = target.redirected(reply.headers.get("Location"), zone, address)
        if not other_servers and target.url.origin != start.url.origin:
            raise TransportError(
                "a redirect leads to another server", path=address, found=target.url.shown
            )
    return reply, target


def _utf8(location: str) -> str:
    """Decode a header as UTF-8: http.client takes every byte for a character."""
    try:
        return location.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return location


_thread = threading.local()


@contextmanager
def _without_queries_in_logs() -> Iterator[None]:
    _thread.sends = True
    try:
        yield
    finally:
        _thread.sends = False


def _without_query(record: logging.LogRecord) -> bool:
    """Take the query, which may be a signature, out of what urllib3 logs of our requests."""
    if getattr(_thread, "sends", False) and isinstance(record.args, tuple):
        record.args = tuple(
            value.partition("?")[0] if isinstance(value, str) else value for value in record.args
        )
    return True


for _name in ("urllib3.connectionpool", "urllib3.connection"):
    logging.getLogger(_name).addFilter(_without_query)
