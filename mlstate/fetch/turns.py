"""How many streams read at once: few from nearby, many from far away."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from mlstate.fetch.progress import Meter

__all__ = ["Turns"]

_FEW = 4
"""So many streams bring all that two cores can hash and write (docs/performance.md)."""
_LOOK = 0.01
"""The seconds between looks at how much came."""
_FAST = 2e8
"""Bytes a second. A network that brings fewer is what is waited for, not this machine."""
_REQUEST = 400_000
"""For so many bytes a request counts: it keeps this machine busy for as long."""


class Turns:
    """Lets few streams read at once where the network is faster than this machine.

    More of them would only wait for each other there. As often as little came for a moment, twice
    as many may read, and never fewer again. Each reads within its turn: ``with turns: ...``.

    Args:
        connections: How many streams there are.
        meter: Counts what comes.
    """

    def __init__(self, connections: int, meter: Meter) -> None:
        self._meter = meter
        self._free: SimpleQueue[None] = SimpleQueue()  # Ctrl-C within `put` leaves it usable
        self._given, self._held_back = 0, connections
        self._ended = 0  # about: threads add to it without a lock
        self._give(_FEW)

    def _give(self, more: int) -> None:
        for _ in range(min(more, self._held_back)):
            self._held_back -= 1
            self._given += 1
            self._free.put(None)

    def give_all(self) -> None:
        """Let all streams read."""
        self._give(self._held_back)

    def watch(self, work: threading.Thread) -> None:
        """Look at what comes, until the work ends or all streams may read."""
        done = self._done()
        while self._held_back and work.is_alive():
            work.join(_LOOK)
            before, done = done, self._done()
            if done - before < _FAST * _LOOK:
                self._give(self._given)

    def _done(self) -> int:
        return self._meter.done + self._ended * _REQUEST

    def __enter__(self) -> None:
        self._free.get()

    def __exit__(self, *error: object) -> None:
        self._ended += 1
        self._free.put(None)
