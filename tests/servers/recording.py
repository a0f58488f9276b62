"""A web server within the test's process: ranges done right, every request and byte recorded."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from tests.servers.ports import HOST
from tests.servers.replies import CHUNK, Before, Piece, Record, Reply, Source, etag_of, serve

__all__ = ["Record", "RecordingServer", "Reply", "serve"]


class RecordingServer:
    """Serves files by name, from a dict (bytes or paths) or a folder, and records it all.

    ``before`` sees each request first; a `Reply` from it is sent instead of the file, None lets
    the file be served. It runs in the connection's thread, and may sleep or wait.
    """

    def __init__(
        self,
        files: Mapping[str, Source] | Path | None = None,
        before: Before | None = None,
        ranges: bool = True,
        tls: ssl.SSLContext | None = None,
        host: str = HOST,
    ) -> None:
        self.host = host
        self.files = files if isinstance(files, Path) else dict(files or {})
        self.before = before
        self.ranges = ranges
        self._lock = Lock()
        self._records: list[Record] = []
        self._connections = 0
        self._open: dict[int, socket.socket] = {}
        self._etags: dict[str, tuple[Source, str]] = {}
        self._http = _Server(self, tls)
        self.port: int = self._http.server_address[1]
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self._thread = Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> RecordingServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def requests(self) -> list[Record]:
        """The requests since the start or the last `reset`, in the order of their arrival."""
        with self._lock:
            return list(self._records)

    @property
    def bytes_sent(self) -> int:
        """The bytes of all bodies."""
        return sum(record.bytes_sent for record in self.requests)

    @property
    def connections(self) -> int:
        """The number of connections accepted since the start or the last `reset`."""
        with self._lock:
            return self._connections

    def reset(self) -> None:
        """Forget what was recorded; open connections stay open."""
        with self._lock:
            self._records = []
            self._connections = 0

    def drop(self) -> None:
        """Close all open connections, also in the middle of a reply."""
        with self._lock:
            for connection in self._open.values():
                with suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop: no more connections, and those that are open end."""
        self._http.shutdown()
        self._http.server_close()
        self.drop()
        self._thread.join(5)
        end = time.monotonic() + 2
        while self._open and time.monotonic() < end:
            time.sleep(0.002)

    def _answer(self, record: Record) -> Reply:
        if self.before is not None and (reply := self.before(record)) is not None:
            return reply
        if record.method not in ("GET", "HEAD"):
            return Reply(405)
        if (found := self._find(record.name)) is None:
            return Reply(404, body=b"not found\n")
        return serve(record, found, self._etag(record.name, found), self.ranges)

    def _find(self, name: str) -> Source | None:
        if not isinstance(self.files, Path):
            return self.files.get(name)
        path = self.files / name
        return path if path.is_file() and ".." not in path.parts else None

    def _etag(self, name: str, source: Source) -> str:
        if not isinstance(source, bytes):
            return etag_of(source)
        with self._lock:
            known, etag = self._etags.get(name, (None, ""))
        if known is not source:
            etag = etag_of(source)
            with self._lock:
                self._etags[name] = source, etag
        return etag


class _Log:
    """The record of one request under way."""

    def __init__(self, owner: RecordingServer, record: Record) -> None:
        self._owner = owner
        with owner._lock:
            self._records = owner._records  # after a reset, this one counts nowhere
            self._at = len(self._records)
            self._records.append(record)

    def update(self, **changes: Any) -> None:
        with self._owner._lock:
            self._records[self._at] = replace(self._records[self._at], **changes)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def __init__(self, owner: RecordingServer, tls: ssl.SSLContext | None) -> None:
        self.owner = owner
        super().__init__((owner.host, 0), _Handler)
        self.tls = tls

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)  # without HTTPServer's look-up of the host's name
        self.server_address = self.socket.getsockname()

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls is not None:  # here, in the connection's thread, not where it is accepted
            try:
                request = self.tls.wrap_socket(request, server_side=True)
            except OSError:
                return
        super().finish_request(request, client_address)
        if self.tls is not None:
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what tests do."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        owner = self.server.owner
        with owner._lock:
            owner._connections += 1
            self.number = owner._connections
            owner._open[id(self)] = self.connection

    def finish(self) -> None:
        with self.server.owner._lock:
            self.server.owner._open.pop(id(self), None)
        super().finish()

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        record = Record(self.command, self.path, headers, self.number, body)
        log = _Log(self.server.owner, record)
        reply = self.server.owner._answer(record)
        log.update(status=reply.status)
        self.close_connection = self.close_connection or reply.close
        chunked = self._send_head(reply)
        if self.command != "HEAD" and reply.status not in (204, 304):
            self._send_body(reply, chunked, log)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = do_CONNECT = answer  # noqa: N815

    def _send_head(self, reply: Reply) -> bool:
        """Send status and headers; tell whether the body goes out in chunks."""
        names = {name.lower() for name in reply.headers}
        body, chunked = reply.body, False
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if "content-length" not in names and "transfer-encoding" not in names:
            if isinstance(body, bytes | Piece):
                self.send_header("Content-Length", str(len(body)))
            else:
                chunked = True
                self.send_header("Transfer-Encoding", "chunked")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        return chunked

    def _send_body(self, reply: Reply, chunked: bool, log: _Log) -> None:
        parts = (reply.body,) if isinstance(reply.body, bytes) else reply.body
        sent = 0
        for part in parts:
            if chunked:
                self.wfile.write(b"%x\r\n" % len(part))
            view = memoryview(part)
            while view:
                piece = view[:CHUNK]
                # Counted before, so that who has the bytes finds them counted; corrected below.
                log.update(bytes_sent=sent + len(piece))
                try:
                    done = self.connection.send(piece)
                except OSError:
                    log.update(bytes_sent=sent)
                    raise
                sent += done
                log.update(bytes_sent=sent)
                view = view[done:]
            if chunked:
                self.wfile.write(b"\r\n")
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
