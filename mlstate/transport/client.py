"""Requests: one pool of connections for each server, shared by all threads.

Proxies and certificates are found by requests, once for each server. The requests themselves go
straight to urllib3's pools below it: that takes less than half the time for a small file, and no
cookie, no netrc entry and no redirect is ever handled behind our back.
"""

from __future__ import annotations

import http.client
import logging
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import requests
from requests.utils import select_proxy
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, Timeout
from urllib3 import exceptions as problems

from mlstate.digests import Bytes
from mlstate.errors import TransportError
from mlstate.transport.connections import POOLS, Adapter
from mlstate.transport.urls import Url

__all__ = ["Session", "drop", "explained", "let_go"]


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn what urllib3 raises into errors of ours, which never show a whole address.

    Raises:
        TransportError: Instead of urllib3's error.
    """
    try:
        yield
    except (problems.HTTPError, OSError, http.client.HTTPException) as error:
        if isinstance(error, TransportError):
            raise
        found = _explain(error)
        found.path = address
        raise found from None  # urllib3's errors have the whole address in them


def _explain(error: BaseException) -> TransportError:
    cause = _cause(error)
    match error:
        case problems.ProxyError():
            refused = next((code for code in ("407", "403") if code in str(cause)), None)
            return TransportError(
                "the proxy does not let us through",
                transient=refused is None,
                found=None if refused is None else f"HTTP {refused} from the proxy",
                remedy="look at HTTP_PROXY, HTTPS_PROXY and NO_PROXY",
            )
        case problems.NameResolutionError():
            again = getattr(cause, "errno", None) == socket.EAI_AGAIN
            return TransportError("the host name is not known", transient=again)
        case problems.NewConnectionError():
            reason = getattr(cause, "strerror", None)
            return TransportError("the server cannot be reached", transient=True, found=reason)
        case problems.ConnectTimeoutError():
            return TransportError("the server cannot be reached in time", transient=True)
        case problems.TimeoutError() | TimeoutError():
            return TransportError("the server went silent, or is too slow", transient=True)
        case problems.SSLError() | ssl.SSLError():
            return _explain_tls(cause)
        case problems.InvalidHeader():
            return TransportError("the reply makes no sense", found="HTTP headers that disagree")
        case problems.LocationValueError():
            return TransportError("the address cannot be understood")
    reason = getattr(cause, "strerror", None)
    return TransportError("the connection broke", transient=True, found=reason)


def _explain_tls(cause: BaseException) -> TransportError:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return TransportError(
            "the server's certificate cannot be verified",
            found=cause.verify_message,
            remedy="name the certificates to trust in REQUESTS_CA_BUNDLE",
        )
    return TransportError("the secure connection failed", transient=True)


def _cause(error: BaseException) -> BaseException:
    """The innermost error of those that urllib3 wraps into one another."""
    for _ in range(8):
        inner = error.__cause__ or next(
            (value for value in reversed(error.args) if isinstance(value, BaseException)), None
        )
        if inner is None:
            break
        error = inner
    return error


SERVERS = 64  # whose connections are kept alive
SMALL = 1 << 14  # a body up to here is read to its end, so that its connection can be used again


@dataclass(frozen=True)
class _Route:
    """How a server is reached."""

    pool: HTTPConnectionPool
    absolute: bool  # a proxy is told the whole address


class Session:
    """Sends requests, from any thread. Follows nothing, retries nothing, keeps no cookies."""

    def __init__(self, *, connections: int, connect_timeout: float, read_timeout: float) -> None:
        self._session = requests.Session()
        self._adapter = Adapter(pool_connections=SERVERS, pool_maxsize=connections)
        for scheme in POOLS:
            self._session.mount(f"{scheme}://", self._adapter)
        self._timeout = Timeout(connect=connect_timeout, read=read_timeout)
        self._routes: dict[tuple[str, str, int], _Route] = {}
        self._lock = threading.Lock()

    def get(self, url: Url, headers: Mapping[str, str], address: str) -> BaseHTTPResponse:
        """Send a GET request; see `send`."""
        return self.send("GET", url, headers, address)

    def send(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        address: str,
        *,
        body: bytes | Iterable[Bytes] | None = None,
        patience: float | None = None,
    ) -> BaseHTTPResponse:
        """Send a request and wait for the headers of its reply.

        Args:
            method: What to do.
            url: Where to.
            headers: All of them; with a body of parts its Content-Length, too.
            address: What an error calls the resource.
            body: What to send along. Parts are asked for one by one, as the network takes them.
            patience: The seconds to wait for the reply, if not the usual.

        Raises:
            TransportError: There is no reply.
        """
        route = self._route(url, address)
        timeout = self._timeout
        if patience is not None:
            timeout = Timeout(connect=timeout.connect_timeout, read=patience)
        with explained(address), _discreet():
            return route.pool.urlopen(
                method,
                url.secret_text if route.absolute else url.target,
                body=body,  # type: ignore[arg-type]  # views are sent, too
                headers=headers,
                timeout=timeout,
                retries=False,
                redirect=False,
                assert_same_host=False,
                preload_content=False,
                decode_content=False,
            )

    def close(self) -> None:
        """Close all connections that are not in use."""
        self._session.close()
        with self._lock:
            for route in self._routes.values():
                route.pool.close()
            self._routes.clear()

    def _route(self, url: Url, address: str) -> _Route:
        with self._lock:
            route = self._routes.get(url.origin)
            if route is None:
                route = self._routes[url.origin] = self._find_route(url, address)
            return route

    def _find_route(self, url: Url, address: str) -> _Route:
        root = url.root + "/"
        try:
            request = requests.Request("GET", root).prepare()
            found = self._session.merge_environment_settings(root, {}, True, None, None)
            proxies, verify, cert = found["proxies"], found["verify"], found["cert"]
            pool = self._adapter.get_connection_with_tls_context(request, verify, proxies, cert)
            self._adapter.cert_verify(pool, root, verify, cert)
            proxy = select_proxy(root, proxies)
            absolute = proxy is not None and self._adapter.request_url(request, proxies) == root
        except (requests.RequestException, problems.HTTPError, OSError, ValueError):
            # What they say is not repeated: a proxy's address may have a password in it.
            raise TransportError(
                "the proxy or the certificates that the environment names cannot be used",
                path=address,
                remedy="look at HTTP_PROXY, HTTPS_PROXY, NO_PROXY and REQUESTS_CA_BUNDLE",
            ) from None
        return _Route(pool, absolute)


def drop(reply: BaseHTTPResponse) -> None:
    """Be done with a reply: its connection is closed unless all of it was read."""
    if not reply.closed:
        reply.close()
    reply.release_conn()


def let_go(reply: BaseHTTPResponse) -> None:
    """Be done with a reply that is of no interest: its connection stays open if that is cheap."""
    length = reply.length_remaining
    if length is not None and length <= SMALL:
        with suppress(problems.HTTPError, OSError, http.client.HTTPException):
            while reply.read(SMALL):
                pass
    drop(reply)


_own = threading.local()


@contextmanager
def _discreet() -> Iterator[None]:
    _own.request = True
    try:
        yield
    finally:
        _own.request = False


def _without_query(record: logging.LogRecord) -> bool:
    """Take the query, which may be a signature, out of what urllib3 logs of our requests."""
    if getattr(_own, "request", False) and isinstance(record.args, tuple):
        record.args = tuple(
            value.partition("?")[0] if isinstance(value, str) else value for value in record.args
        )
    return True


for _name in ("urllib3.connectionpool", "urllib3.connection"):
    logging.getLogger(_name).addFilter(_without_query)
