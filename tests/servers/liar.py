"""A web server that lies: about lengths, ranges and bytes, or that never comes to an end."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from threading import Event, Lock, Thread
from urllib.parse import urlsplit

from tests.servers.lies import LIES, Asked, Hangup, Plan, Talk
from tests.servers.ports import HOST

__all__ = ["LIES", "Asked", "Liar"]


class Liar:
    """Lies about ``content``: at ``/<lie>/...`` in that way, elsewhere in the way of ``lie``.

    What has no end, ends after ``cap`` bytes, so that a client that believes it fails soon.
    """

    def __init__(
        self,
        content: bytes,
        lie: str = "html",
        *,
        wrong_from: int = 0,
        drip_seconds: float = 1,
        cap: int = 1 << 30,
    ) -> None:
        self.lie = lie
        self.requests: list[Asked] = []
        self._sent: dict[str, int] = dict.fromkeys(LIES, 0)
        self._lock, self._closing = Lock(), Event()
        self._plan = Plan(content, wrong_from, drip_seconds, cap, self._closing, self._count)
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((HOST, 0), backlog=128)
        # Little waits in the kernel, so that what was sent is about what the client read.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        self.port: int = self._listener.getsockname()[1]
        self._thread = Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Liar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, lie: str | None = None, name: str = "model.safetensors") -> str:
        """Where one of the `LIES` is told."""
        if (lie := lie or self.lie) not in LIES:
            raise ValueError(f"{lie!r} is none of {', '.join(LIES)}")
        return f"http://{HOST}:{self.port}/{lie}/{name}"

    def sent(self, lie: str | None = None) -> int:
        """The bytes of bodies that were sent with a lie, or with all; little more than was read."""
        with self._lock:
            return sum(self._sent.values()) if lie is None else self._sent[lie]

    def close(self) -> None:
        """End all connections."""
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _count(self, lie: str, size: int) -> None:
        with self._lock:
            self._sent[lie] += size

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                with self._lock:
                    self._open.add(connection)
                Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with suppress(OSError, Hangup), connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for asked in self._questions(connection):
                with self._lock:
                    self.requests.append(asked)
                LIES[asked.lie](Talk(self._plan, connection, asked))
        with self._lock:
            self._open.discard(connection)

    def _questions(self, connection: socket.socket) -> Iterator[Asked]:
        with connection.makefile("rb") as lines:
            while line := lines.readline().decode("latin-1").split():
                headers = {}
                while header := lines.readline().decode("latin-1").strip():
                    name, _, value = header.partition(":")
                    headers[name.strip().lower()] = value.strip()
                method, path = line[0], line[1]
                lie = urlsplit(path).path.split("/")[1]
                chosen = lie if lie in LIES else self.lie
                yield Asked(chosen, method, path, headers.get("range"), headers)
