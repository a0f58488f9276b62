"""A client for the tests of the servers: it hides nothing, mends nothing, follows nothing."""

from __future__ import annotations

import random
import socket
import time
from urllib.parse import urlsplit

import urllib3

__all__ = ["BIG", "DATA", "get", "raw"]

DATA = random.Random(0).randbytes(100_000)
BIG = DATA * 400  # more than the buffers of a loopback connection hold


def get(
    http: urllib3.PoolManager, url: str, span: str | None = None, **headers: str
) -> urllib3.BaseHTTPResponse:
    if span is not None:
        headers["Range"] = f"bytes={span}"
    return http.request("GET", url, headers=headers, redirect=False, decode_content=False)


def raw(url: str, limit: int, seconds: float = 5, span: str = "") -> tuple[bytes, bytes]:
    """Head and body as they come over the wire, up to so many bytes of body."""
    parts = urlsplit(url)
    lines = [f"GET {parts.path} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"Range: bytes={span}"] if span else []
    received = b""
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        end = time.monotonic() + seconds
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        try:
            while len(received) < 1 << 20 and (left := end - time.monotonic()) > 0:
                head, ended, body = received.partition(b"\r\n\r\n")
                if ended and len(body) >= limit:
                    break
                connection.settimeout(left)
                if not (data := connection.recv(1 << 16)):
                    break
                received += data
        except TimeoutError:
            pass
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body[:limit]
