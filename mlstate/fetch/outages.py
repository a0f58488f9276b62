"""Servers that cannot be reached: remembered for a while, so that each is waited for once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mlstate.parallel import ProcessLock

__all__ = ["REMEMBERED", "Outages", "server_of"]

REMEMBERED = 300.0
"""The seconds for which a server that could not be reached is asked last."""


@dataclass(frozen=True)
class _Outage:
    reason: str
    until: float  # of the clock
    waited_for: bool  # with all attempts, pauses included


class Outages:
    """The servers that could not be reached lately. Used by many threads.

    A state whose first mirror is down must not wait for it when another mirror has its bytes, and
    a hundred states must not wait a hundred times. So such a server is asked last: when no other
    mirror gives what is missing. After a while it is asked in its turn again, for a process may run
    for weeks.

    Attributes:
        tell: Called with a server and the reason, each time that one turns out to be down.

    Args:
        seconds: How long a server is asked last.
        clock: Tells the time, in seconds.
    """

    def __init__(
        self, seconds: float = REMEMBERED, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tell: Callable[[str, str], None] | None = None
        self._seconds = seconds
        self._clock = clock
        self._lock = ProcessLock()
        self._down: dict[str, _Outage] = {}
        self._refused: dict[str, float] = {}  # until when, by the clock

    def is_down(self, server: str) -> bool:
        """Whether a server could not be reached lately."""
        return self._outage(server) is not None

    def was_waited_for(self, server: str) -> bool:
        """Whether it was tried lately with all attempts: one more will do."""
        outage = self._outage(server)
        return outage is not None and outage.waited_for

    def add(self, server: str, reason: str, *, waited_for: bool) -> None:
        """Remember a server that could not be reached; the reason is told, once."""
        with self._lock:
            known = self._down.get(server)
            told = known is not None and known.until > self._clock()
            waited_for |= told and known is not None and known.waited_for
            self._down[server] = _Outage(reason, self._clock() + self._seconds, waited_for)
        if not told and self.tell is not None:
            self.tell(server, reason)

    def refuse(self, place: str) -> None:
        """Remember a place that refuses what is asked of it: other places are asked first."""
        with self._lock:
            self._refused[place] = self._clock() + self._seconds

    def comes_last(self, server: str, place: str) -> bool:
        """Whether others are asked before a place: its server is down, or it refused lately."""
        with self._lock:
            refused = self._refused.get(place, 0.0) > self._clock()
        return refused or self.is_down(server)

    def remove(self, server: str, place: str = "") -> None:
        """Forget that a server was down, and that a place refused: they answer."""
        with self._lock:
            self._down.pop(server, None)
            self._refused.pop(place, None)

    def known(self) -> list[tuple[str, str]]:
        """The servers that are down as far as is known, each with the reason."""
        with self._lock:
            return [(server, outage.reason) for server, outage in sorted(self._down.items())]

    def _outage(self, server: str) -> _Outage | None:
        with self._lock:
            outage = self._down.get(server)
            if outage is not None and outage.until <= self._clock():
                del self._down[server]
                return None
            return outage


def server_of(address: str) -> str | None:
    """The server of an address, as its scheme and host; None for one of this machine.

    Example:
        >>> server_of("https://cdn.example.org/a.safetensors"), server_of("weights/a.safetensors")
        ('https://cdn.example.org', None)
    """
    scheme, colon, rest = address.partition("://")
    scheme = scheme.lower()
    if not colon or scheme == "file":
        return None
    if scheme == "hf":
        return "hf://"
    host = rest.partition("/")[0].partition("?")[0].rpartition("@")[2]
    return f"{scheme}://{host.lower()}"
