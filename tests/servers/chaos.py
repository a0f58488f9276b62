"""A TCP proxy between a test and a server that cuts, stalls, delays, limits and flips."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

from tests.servers.chaos_program import Counts, Faults
from tests.servers.ports import HOST

__all__ = ["Chaos", "Counts", "Faults"]

PROGRAM = Path(__file__).with_name("chaos_program.py")


class Chaos:
    """A proxy before ``upstream`` (a URL), in a process of its own.

    What `set` orders holds for the connections that open from then on, and replaces what was
    ordered before. Those that are open keep what they have, `drop` ends them.

    Example::

        with Chaos(nginx.url("x"), cut_after=1000) as chaos:
            requests.get(chaos.url)
    """

    def __init__(self, upstream: str, **faults: float | bool | None) -> None:
        parts = urlsplit(upstream)
        if parts.scheme != "http" and not (parts.scheme == "https" and parts.port):
            raise ValueError("a URL of http, or of https with a port, is needed")
        self._lock = Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", PROGRAM, parts.hostname or HOST, str(parts.port or 80)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self.port = int(self._answer())
            if faults:
                self.set(**faults)
        except BaseException:
            self.close()
            raise
        self.url = parts._replace(netloc=f"{HOST}:{self.port}").geturl()

    def __enter__(self) -> Chaos:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The proxy's process id."""
        return self._process.pid

    def via(self, url: str) -> str:
        """The same URL, but by way of this proxy."""
        return urlsplit(url)._replace(netloc=f"{HOST}:{self.port}").geturl()

    def set(self, **faults: float | bool | None) -> None:
        """Order `Faults` by their names; those that are not named are none."""
        self._order("set", **asdict(Faults(**faults)))  # type: ignore[arg-type]

    def clear(self) -> None:
        """No faults from now on."""
        self.set()

    def drop(self) -> None:
        """Reset all open connections."""
        self._order("drop")

    def counts(self) -> Counts:
        """What went through since the start or the last `reset`."""
        return Counts(**self._order("counts"))

    def reset(self) -> None:
        """Count from 0 again."""
        self._order("reset")

    def close(self) -> None:
        """End the proxy, and with it all its connections."""
        self._process.terminate()
        self._process.communicate()

    def _order(self, do: str, **fields: object) -> dict[str, int]:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
            self._process.stdin.flush()
            answer: dict[str, int] = json.loads(self._answer())
            return answer

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("the proxy has ended; its last words are above")
        return line
