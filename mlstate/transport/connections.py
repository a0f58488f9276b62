"""Connections whose replies are watched, and can be received without a copy in between."""

from __future__ import annotations

import http.client
import io
import socket
import struct
import sys
import threading
import time
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

__all__ = ["POOLS", "Adapter", "Watch", "receive", "watch_of"]

_MOMENT = 0.05
"""The seconds for which what comes is gathered before it is passed on."""
_BUFFER = io.DEFAULT_BUFFER_SIZE


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
        self.check()
        return count

    def check(self) -> None:
        """Look at the clock.

        Raises:
            TimeoutError: Now it is after the deadline.
        """
        if time.monotonic() > self.deadline:
            raise TimeoutError("too slow")

    def close(self) -> None:
        """Let go of the socket."""
        self._raw.close()
        super().close()


class _Direct:
    """Receives from a socket, by one call of the system, all that comes within a moment.

    Python's own timeouts look at the socket before each receive, and each look and each receive
    lets go of the interpreter's lock, for which all streams then wait.

    Args:
        sock: The socket; this changes how it waits, until `close`.
        watch: The watch over it.
    """

    def __init__(self, sock: socket.socket, watch: Watch) -> None:
        self._sock, self._watch = sock, watch
        self._timeout = sock.gettimeout()
        self._set_moment(_MOMENT)
        sock.settimeout(None)

    def readinto(self, buffer: memoryview) -> int:
        """Receive at least one byte, and then until the buffer is full or a moment has passed.

        Returns:
            How many bytes came; 0 at the end.

        Raises:
            TimeoutError: Nothing came in time.
        """
        until = time.monotonic() + (self._timeout or 60)
        while True:
            try:
                count = self._sock.recv_into(buffer, 0, socket.MSG_WAITALL)
            except BlockingIOError:  # nothing came within a moment
                self._watch.check()
                if time.monotonic() > until:
                    raise TimeoutError("timed out") from None
            else:
                self._watch.check()
                return count

    def close(self) -> None:
        """Be done; the socket waits as before."""
        self._set_moment(0)
        self._sock.settimeout(self._timeout)

    def _set_moment(self, seconds: float) -> None:
        """How long a receive waits until the buffer is full; 0 for ever."""
        whole, fraction = divmod(seconds, 1)
        timeval = struct.pack("@ll", int(whole), int(fraction * 1e6))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)


def _can_be_direct(sock: socket.socket) -> bool:
    return (
        # Others lay out a timeout in another way, and not all of them give what came until then.
        sys.platform == "linux"
        # Those of TLS and of SOCKS receive in a way of their own.
        and type(sock) is socket.socket
        # There a signal lets a receive begin anew, and with it the moment: it may never be over.
        and threading.current_thread() is not threading.main_thread()
    )


class _Response(http.client.HTTPResponse):
    """A reply under a `Watch`: its headers have to be there within the read timeout."""

    def __init__(self, sock: socket.socket, *args: Any, **named: Any) -> None:
        super().__init__(sock, *args, **named)
        self.watch = Watch(self.fp.detach(), sock.gettimeout() or 60)
        self.fp = io.BufferedReader(self.watch, _BUFFER)
        self._broken: OSError | None = None
        self._socket = sock
        self._direct: _Direct | None = None

    def receive_into(self, buffer: memoryview) -> int:
        """Receive of a body of known length: what comes within a moment, at least one byte.

        The network gives a little at a time, under TLS 16 KB; all that is to be done with it takes
        longer than to receive it. The first time it may be what came with the headers alone.

        Returns:
            How many bytes came; none at the end, or if the server closed before it.
        """
        assert self.length is not None
        if self._broken is not None:
            raise self._broken
        if self.isclosed():
            return 0
        wanted = buffer[: self.length]
        if self._direct is not None:
            count = self._direct.readinto(wanted)
        elif len(wanted) > _BUFFER and _can_be_direct(self._socket):
            count = self._take_buffered(wanted)
            self._direct = _Direct(self._socket, self.watch)
        else:
            count = self._receive_some(wanted)
        self.length -= count
        if not self.length:
            if self._direct is not None:
                self._direct.close()
            self.close()  # of the reply alone; its connection can be used again
        return count

    def _take_buffered(self, wanted: memoryview) -> int:
        """What came with the headers, so that all else can come past the buffer."""
        data = self.fp.read1(_BUFFER)
        wanted[: len(data)] = data
        return len(data)

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
