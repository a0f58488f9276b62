"""Connections whose replies are watched, and can be received without a copy in between."""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

__all__ = ["POOLS", "Adapter", "Watch", "receive", "watch_of"]

_MOMENT = 0.05
"""The seconds for which what comes is gathered before it is passed on."""


class Watch(io.RawIOBase):
    """What a connection gives, until a deadline: so that no drip of bytes keeps a reader for ever.

    A socket's own timeout starts anew with every byte.
    """

    def __init__(self, raw: io.RawIOBase, seconds: float) -> None:
        self._raw = raw
        self.deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Receive once.

        Raises:
            TimeoutError: Now it is after the deadline.
        """
        count = self._raw.readinto(buffer)
        if time.monotonic() > self.deadline:
            raise TimeoutError("too slow")
        return count

    def close(self) -> None:
        """Let go of the socket."""
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A reply under a `Watch`: its headers have to be there within the read timeout."""

    def __init__(self, sock: socket.socket, *args: Any, **named: Any) -> None:
        super().__init__(sock, *args, **named)
        self.watch = Watch(self.fp.detach(), sock.gettimeout() or 60)
        self.fp = io.BufferedReader(self.watch)
        self._broken: OSError | None = None

    def receive_into(self, buffer: memoryview) -> int:
        """Receive of a body of known length: what comes within a moment, at least once.

        The network gives a little at a time, under TLS 16 KB; all that is to be done with it takes
        longer than to receive it.

        Returns:
            How many bytes came; none at the end, or if the server closed before it.
        """
        assert self.length is not None
        if self._broken is not None:
            raise self._broken
        if self.isclosed():
            return 0
        wanted = buffer[: self.length]
        count = self._receive_some(wanted)
        self.length -= count
        if not self.length:
            self.close()  # of the reply alone; its connection can be used again
        return count

    def _receive_some(self, wanted: memoryview) -> int:
        filled, until = 0, time.monotonic() + _MOMENT
        while filled < len(wanted) and (not filled or time.monotonic() < until):
            try:
                count = self.fp.readinto1(wanted[filled:])
            except OSError as error:
                if not filled:
                    raise
                self._broken = error  # what came before it counts
                break
            if not count:
                break
            filled += count
        return filled


class _Connection(HTTPConnection):
    response_class = _Response


class _SecureConnection(HTTPSConnection):
    response_class = _Response


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


POOLS = {"http": _Pool, "https": _SecurePool}


class Adapter(HTTPAdapter):
    """What requests does about proxies and certificates, with connections as above."""

    def init_poolmanager(self, *args: Any, **named: Any) -> None:
        """Make a manager whose pools have such connections."""
        super().init_poolmanager(*args, **named)
        self.poolmanager.pool_classes_by_scheme = POOLS

    def proxy_manager_for(self, proxy: str, **named: Any) -> Any:
        """The manager for a proxy, its pools with such connections, too."""
        manager = super().proxy_manager_for(proxy, **named)
        if not proxy.lower().startswith("socks"):  # has pools of its own
            manager.pool_classes_by_scheme = POOLS
        return manager


def watch_of(reply: BaseHTTPResponse) -> Watch | None:
    """The watch over a reply, or None behind a SOCKS proxy."""
    return getattr(getattr(reply, "_original_response", None), "watch", None)


def receive(reply: BaseHTTPResponse, buffer: memoryview) -> int:
    """Receive from the body of a reply, as it is; into the buffer at once where that can be.

    Returns:
        How many bytes came; none at the end, or if the server closed before it.
    """
    plain = getattr(reply, "_original_response", None)
    if isinstance(plain, _Response) and plain.length is not None and not plain.chunked:
        return plain.receive_into(buffer)
    data = reply.read1(len(buffer))
    buffer[: len(data)] = data
    return len(data)
