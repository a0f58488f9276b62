"""A recording proxy of HTTP: it notes every request, and can answer or change some on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import urllib3

from tests.servers.recording import RecordingServer
from tests.servers.replies import Record, Reply

__all__ = ["Forwarding"]

_OWN = frozenset({"connection", "transfer-encoding", "content-length", "server", "date"})


class Forwarding(RecordingServer):
    """Forwards to another server, with the Host header as it came, so that signatures hold.

    Attributes:
        answer: Sees each request first; a `Reply` from it is sent and nothing is forwarded.
        change: Gives the body that is forwarded in place of the one that came.
        cut: Whether the connection breaks once the request was served, without an answer.
        back: Gives the answer that is sent in place of the server's.
    """

    def __init__(self, upstream: str) -> None:
        self.answer: Callable[[Record], Reply | None] = lambda record: None
        self.change: Callable[[Record], bytes] = lambda record: record.body
        self.cut: Callable[[Record], bool] = lambda record: False
        self.back: Callable[[Record, Reply], Reply] = lambda record, reply: reply
        self._upstream = upstream
        self._pool = urllib3.PoolManager(maxsize=32, retries=False, timeout=60)
        super().__init__(before=self._forward)

    def close(self) -> None:
        super().close()
        self._pool.clear()

    def asked(self, method: str = "") -> list[str]:
        """What was asked for so far: ``METHOD path``, of one method or of all."""
        return [f"{r.method} {r.path}" for r in self.requests if method in ("", r.method)]

    def _forward(self, record: Record) -> Reply:
        if (reply := self.answer(record)) is not None:
            return reply
        body = self.change(replace(record))
        answer = self._pool.request(
            record.method,
            self._upstream + record.path,
            body=body if body or record.method in ("PUT", "POST") else None,
            headers={n: v for n, v in record.headers.items() if n not in ("connection",)},
            decode_content=False,
            redirect=False,
        )
        if self.cut(record):
            raise ConnectionAbortedError
        headers = {n: v for n, v in answer.headers.items() if n.lower() not in _OWN}
        if record.method == "HEAD":
            headers["Content-Length"] = answer.headers.get("Content-Length", "0")
        return self.back(record, Reply(answer.status, headers, answer.data))
