"""The lies of a web server, one function each: about lengths, ranges, bytes, or without an end."""

from __future__ import annotations

import gzip
import re
import socket
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Event

__all__ = ["LIES", "Asked", "Hangup", "Plan", "Talk"]

HUGE = 1 << 60
HTML = b"<!DOCTYPE html><html><body><h1>Please log in</h1></body></html>\n"
BLOCK = bytes(range(256)) * 256
TURNED = bytes(value ^ 1 for value in range(256))
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class Asked:
    """A request that was lied to."""

    lie: str
    method: str
    path: str
    range: str | None
    headers: Mapping[str, str]  # by their names in lower case


@dataclass(frozen=True)
class Plan:
    """What a server lies about, and how much."""

    content: bytes
    wrong_from: int  # offset from which bytes are wrong
    drip_seconds: float
    cap: int  # bytes after which the endless ends
    closing: Event  # set when the server is to end
    count: Callable[[str, int], None]  # told of a lie's bytes


class Hangup(Exception):  # noqa: N818 (no error, but the end of a connection)
    """The connection ends here."""


class Talk:
    """One request and what is said to it."""

    def __init__(self, plan: Plan, connection: socket.socket, asked: Asked) -> None:
        self.plan, self.content, self.asked = plan, plan.content, asked
        self._connection = connection
        self.start, self.stop, self.total = 0, len(self.content), len(self.content)
        self.ranged = RANGE.fullmatch(asked.range or "")
        if self.ranged:
            self.start = min(int(self.ranged[1]), self.total)
            self.stop = min(int(self.ranged[2] or self.total) + 1, self.total)

    @property
    def piece(self) -> bytes:
        return self.content[self.start : self.stop]

    def head(self, status: str, *lines: str) -> None:
        self._connection.sendall("\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode())
        if self.asked.method == "HEAD":
            raise Hangup

    def honest_head(self, *, length: int | None = None, shift: int = 0, more: int = 0) -> None:
        """The right head for what was asked, but for what is given here."""
        length = self.stop - self.start if length is None else length
        first, last = self.start + shift, self.stop + shift - 1
        ranged = [f"Content-Range: bytes {first}-{last}/{self.total + more}"] if self.ranged else []
        status = "206 Partial Content" if self.ranged else "200 OK"
        self.head(status, f"Content-Length: {length}", "Accept-Ranges: bytes", *ranged)

    def body(self, data: bytes) -> None:
        """Send and count; counted before, so that who has the bytes finds them counted."""
        for at in range(0, len(data), 1 << 14):
            part = data[at : at + (1 << 14)]
            self.plan.count(self.asked.lie, len(part))
            try:
                self._connection.sendall(part)
            except OSError:
                self.plan.count(self.asked.lie, -len(part))
                raise

    def endless(self, frame: Callable[[bytes], bytes] = bytes, block: bytes = BLOCK) -> None:
        """Send for ever; that is, until the client leaves or the cap is reached."""
        for _ in range(self.plan.cap // len(block)):
            self.body(frame(block))
        raise Hangup


def length_too_large(talk: Talk) -> None:
    talk.honest_head(length=2 * len(talk.piece))
    talk.body(talk.piece)
    raise Hangup


def length_too_small(talk: Talk) -> None:  # the rest spoils the kept connection
    talk.honest_head(length=len(talk.piece) // 2)
    talk.body(talk.piece)


def length_huge(talk: Talk) -> None:
    talk.total = talk.stop = HUGE
    talk.honest_head()
    talk.endless()


def length_garbage(talk: Talk) -> None:
    talk.head("200 OK", "Content-Length: plenty")
    talk.body(talk.content)
    raise Hangup


def two_lengths(talk: Talk) -> None:
    talk.head("200 OK", f"Content-Length: {len(talk.content)}", "Content-Length: 7")
    talk.body(talk.content)
    raise Hangup


def range_shifted(talk: Talk) -> None:
    talk.honest_head(shift=1)
    talk.body(talk.piece)


def range_other_total(talk: Talk) -> None:
    talk.honest_head(more=1000)
    talk.body(talk.piece)


def range_unnamed(talk: Talk) -> None:
    talk.head("206 Partial Content", f"Content-Length: {len(talk.piece)}")
    talk.body(talk.piece)


def range_ignored(talk: Talk) -> None:  # 206 is claimed, but everything is sent
    talk.honest_head(length=len(talk.content))
    talk.body(talk.content)


def wrong_bytes(talk: Talk) -> None:  # from the offset `wrong_from` on
    right = max(0, talk.plan.wrong_from - talk.start)
    talk.honest_head()
    talk.body(talk.piece[:right] + talk.piece[right:].translate(TURNED))


def header_huge(talk: Talk) -> None:  # a .safetensors file whose header has 2^60 bytes
    talk.content = HUGE.to_bytes(8, "little") + talk.content[8:]
    talk.honest_head()
    talk.body(talk.piece)


def endless_body(talk: Talk) -> None:
    talk.head("200 OK", "Connection: close")
    talk.endless()


def endless_chunks(talk: Talk) -> None:
    talk.head("200 OK", "Transfer-Encoding: chunked")
    talk.endless(lambda data: b"%x\r\n%s\r\n" % (len(data), data))


def chunk_negative(talk: Talk) -> None:  # http.client reads on as if there were no chunks
    talk.head("200 OK", "Transfer-Encoding: chunked")
    talk.body(b"-1\r\n" + talk.content)
    raise Hangup


def endless_headers(talk: Talk) -> None:
    talk.body(b"HTTP/1.1 200 OK\r\n")
    talk.endless(block=b"X-More: %s\r\n" % (b"more" * 1000))


def endless_gzip(talk: Talk) -> None:  # a thousand times as much once it is unpacked
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    talk.head("200 OK", "Content-Encoding: gzip", "Connection: close")
    talk.body(start)
    talk.endless(block=packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH))


def gzip_anyway(talk: Talk) -> None:
    packed = gzip.compress(talk.content, 1)
    talk.head("200 OK", f"Content-Length: {len(packed)}", "Content-Encoding: gzip")
    talk.body(packed)


def html(talk: Talk) -> None:
    talk.head("200 OK", f"Content-Length: {len(HTML)}", "Content-Type: text/html; charset=utf-8")
    talk.body(HTML)


def redirect_loop(talk: Talk) -> None:
    talk.head("302 Found", f"Location: {talk.asked.path}", "Content-Length: 0")


def redirect_file(talk: Talk) -> None:
    talk.head("302 Found", "Location: file:///etc/passwd", "Content-Length: 0")


def drip(talk: Talk) -> None:  # a byte every `drip_seconds`
    talk.honest_head()
    for at in range(len(talk.piece)):
        talk.body(talk.piece[at : at + 1])
        if talk.plan.closing.wait(talk.plan.drip_seconds):
            raise Hangup


def silence(talk: Talk) -> None:
    talk.plan.closing.wait()


def hangup(talk: Talk) -> None:
    raise Hangup


def garbage(talk: Talk) -> None:
    talk.body(BLOCK)
    raise Hangup


LIES: dict[str, Callable[[Talk], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(length_too_large, length_too_small, length_huge, length_garbage, two_lengths),
        *(range_shifted, range_other_total, range_unnamed, range_ignored),
        *(wrong_bytes, header_huge, html, gzip_anyway, redirect_loop, redirect_file),
        chunk_negative,
        *(endless_body, endless_chunks, endless_headers, endless_gzip),
        *(drip, silence, hangup, garbage),
    )
}
