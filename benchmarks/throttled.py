"""A web server that gives a folder at so many bytes a second, all connections together.

``python -m benchmarks.throttled FOLDER RATE`` prints its port. nginx limits each connection for
itself, and gives all of the first second at once, which is most of what a small object takes.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

__all__ = ["throttled"]

_PIECE = 1 << 16
_BURST = 0.02  # seconds


@contextmanager
def throttled(folder: Path, rate: int) -> Iterator[str]:
    """Serve a folder from a process of its own; yields its address."""
    command = [sys.executable, "-m", "benchmarks.throttled", str(folder), str(rate)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.kill()
        server.communicate()


class _Bucket:
    """Tokens for bytes."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._lock = Lock()
        self._free_at = 0.0

    def take(self, count: int) -> None:
        """Wait until so many bytes may be sent."""
        with self._lock:
            now = time.monotonic()
            begins = max(self._free_at, now - _BURST)
            self._free_at = begins + count / self._rate
            wait = self._free_at - now
        if wait > 0:
            time.sleep(wait)


def _handler(folder: str, bucket: _Bucket) -> type[SimpleHTTPRequestHandler]:
    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=folder)

        def copyfile(self, source: Any, outputfile: Any) -> None:
            while piece := source.read(_PIECE):
                bucket.take(len(piece))
                outputfile.write(piece)

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler


def main() -> None:
    """Serve until killed."""
    folder, rate = sys.argv[1:]
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(folder, _Bucket(int(rate))))
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
