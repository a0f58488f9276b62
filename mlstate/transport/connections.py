"""HTTP connections that know whom they are connected to, and whose replies have a deadline.

No drip of bytes keeps a reader for ever, and nothing is sent to an address where it must not go,
whatever name it has.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from urllib3 import BaseHTTPResponse, HTTPConnectionPool

from mlstate.errors import TransportError
from mlstate.limits import Limits, SpeedLimit
from mlstate.transport.errors import translated_errors
from mlstate.transport.interface import CheckedStream

__all__ = ["Body", "prepare", "soon_over"]


class _DeadlineReader(io.RawIOBase):
    """The bytes that a socket receives, until a deadline.

    A socket's own timeout begins anew with every byte.
    """

    def __init__(self, raw: io.RawIOBase, seconds: float) -> None:
        self._raw = raw
        self.deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Receive once; raises a `TimeoutError` after the deadline."""
        count = self._raw.readinto(buffer)
        if time.monotonic() > self.deadline:
            raise TimeoutError("too slow")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A reply whose headers have to be there within the read timeout; `Body` sets what follows."""

    def __init__(self, sock: Any, *args: Any, **named: Any) -> None:
        super().__init__(sock, *args, **named)
        self.reader = _DeadlineReader(self.fp.detach(), sock.gettimeout() or 60)
        self.fp = io.BufferedReader(self.reader)

    def receive_into(self, buffer: memoryview) -> int:
        """Receive once, of a body of known length.

        `readinto` fills the buffer before it returns, and loses what came if that fails.
        """
        if self.isclosed():
            return 0
        assert self.length is not None
        count = self.fp.readinto1(buffer[: self.length])
        self.length -= count
        if not self.length:
            self.close()  # the reply alone: its connection can be used again
        return count


def prepare(pool: HTTPConnectionPool, admit: Callable[[str], None]) -> None:
    """Make the connections of a pool give replies that have a deadline, and look at their peers.

    Args:
        pool: The pool, of which no connection was made yet.
        admit: Called with the numeric address of each peer before anything is sent to it. What it
            raises, which is no OSError, ends the connection.
    """
    kind: Any = pool.ConnectionCls  # of a proxy by SOCKS, it is another than urllib3's usual

    def connect(self: Any) -> socket.socket:
        made: socket.socket = kind._new_conn(self)
        try:
            admit(made.getpeername()[0])
        except BaseException:
            made.close()
            raise
        return made

    changed = {"response_class": _Response, "_new_conn": connect}
    pool.ConnectionCls = type(kind.__name__, (kind,), changed)


@contextmanager
def soon_over(reply: BaseHTTPResponse, seconds: float) -> Iterator[None]:
    """Within this, reading a reply of such a pool is a `TimeoutError` after so many seconds."""
    sock = getattr(reply.connection, "sock", None)
    plain = getattr(reply, "_original_response", None)
    if sock is None or not isinstance(plain, _Response):
        yield
        return
    usual = sock.gettimeout()
    plain.reader.deadline = min(plain.reader.deadline, time.monotonic() + seconds)
    sock.settimeout(seconds if usual is None else min(usual, seconds))
    try:
        yield
    finally:
        sock.settimeout(usual)


class Body(CheckedStream):
    """The body of a reply, one receive at a time; a server that is too slow is an error.

    Args:
        reply: The reply, of a pool that `prepare` has changed.
        address: What errors call the resource.
        limits: How slow is too slow.
        length: The number of bytes that were promised, or None.
        total: The size of the whole resource, or None.
    """

    def __init__(
        self,
        reply: BaseHTTPResponse,
        address: str,
        limits: Limits,
        length: int | None,
        total: int | None = None,
    ) -> None:
        super().__init__(address, length, total)
        plain = getattr(reply, "_original_response", None)
        assert isinstance(plain, _Response)
        self._reply, self._plain = reply, plain
        self._speed = SpeedLimit(limits)

    def _receive(self, buffer: memoryview) -> int:
        self._speed.resume()
        self._plain.reader.deadline = self._speed.deadline
        with translated_errors(self._address):
            if self._plain.length is not None and not self._plain.chunked:
                count = self._plain.receive_into(buffer)
            else:
                data = self._reply.read1(len(buffer))
                count = len(data)
                if count > len(buffer):  # http.client takes a chunk of less than no bytes for one
                    raise TransportError("the reply makes no sense", found="a chunk's length")
                buffer[:count] = data
        self._speed.count(count)
        return count
