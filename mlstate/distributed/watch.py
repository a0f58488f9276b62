"""Watching the other ranks: heartbeats through the rendezvous store, processes of this machine."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlstate.distributed.failures import ENDED, LOST, SILENT, Failure

__all__ = ["Process", "Watch", "this_machine"]

_STOPPED = "Tt"
_GONE = "ZX"


@dataclass(frozen=True)
class Process:
    """The process of a rank, as its own machine knows it."""

    machine: str  # equal for processes that see each other's numbers
    pid: int
    started: str

    @classmethod
    def own(cls) -> Process:
        """This process."""
        pid = os.getpid()
        return cls(f"{this_machine()} {_namespace()}", pid, _stat(pid)[1])

    def state(self) -> str:
        """``"gone"``, ``"stopped"``, or ``"there"``, as far as anyone can tell."""
        state, started = _stat(self.pid)
        if state == "?":
            return "there"
        if not state or state in _GONE or started != self.started:
            return "gone"
        return "stopped" if state in _STOPPED else "there"


def this_machine() -> str:
    """A text that is equal for processes of one running kernel, in whatever container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return os.uname().nodename


def _namespace() -> str:
    """The namespace of process numbers."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _stat(pid: int) -> tuple[str, str]:
    """The state of a process (a letter; empty of none, ? of one unknown), and when it began."""
    try:
        parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return parts[0], parts[19]
    except (FileNotFoundError, ProcessLookupError):
        return ("", "") if Path("/proc/self/stat").exists() else ("?", "")
    except OSError:
        return "?", ""


class Watch:
    """A thread that says that this rank is alive, and finds out whether the others are.

    Each rank watches the next one by its heartbeats, and all that run on its own machine by their
    processes, which tells at once of one that was killed. Whoever finds out first says so to all.

    Args:
        store: The store of keys, of which no other thread uses this connection.
        rank: This rank.
        world: How many there are.
        patience: The seconds without a heartbeat after which a rank is given up.
        first: The seconds for a rank to come at all.
        is_over: Whether the others may have gone by now, because all is done: a look at the store.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world: int,
        *,
        patience: float,
        first: float,
        is_over: Callable[[Any], bool],
    ) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._patience, self._first = patience, first
        self._is_over = is_over
        self._interval = min(0.2, patience / 8)
        self._end = threading.Event()
        self._processes: dict[int, Process] = {}
        self._next = (rank + 1) % world
        self._beat: bytes | None = None
        self._heard = self._ticked = time.monotonic()
        self.failed = threading.Event()
        self.failure: Failure | None = None

    def start(self) -> None:
        """Begin; the thread ends with `stop`, or with the first failure."""
        threading.Thread(target=self._run, name="mlstate-watch", daemon=True).start()

    def stop(self) -> None:
        """End it, without waiting: it may be waiting for a store that does not answer."""
        self._end.set()

    def know(self, processes: dict[int, Process]) -> None:
        """Take note of the processes of other ranks; those of this machine are looked at."""
        machine = Process.own().machine
        own = {rank: found for rank, found in processes.items() if found.machine == machine}
        own.pop(self._rank, None)
        self._processes = own

    def look(self) -> None:
        """Give up the store, in the caller's thread, if it has not answered for too long."""
        if not self.failed.is_set() and time.monotonic() - self._ticked > self._patience + 1:
            self._note(self._dead() or self._unanswered())

    def announce(self, failure: Failure) -> Failure:
        """Say to all that it failed; the first word of any rank wins, and is returned."""
        with suppress(Exception):  # then the others find out by themselves
            said = self._store.compare_set("failed", "", failure.to_text())
            failure = Failure.parse(said)
        self._note(failure)
        return failure

    def _note(self, failure: Failure) -> None:
        if self.failure is None:
            self.failure = failure
        self.failed.set()

    def _run(self) -> None:
        count = 0
        try:
            while not self._end.is_set():
                count += 1
                self._store.set(f"beat/{self._rank}", str(count))
                if self._tick():
                    return
                self._ticked = time.monotonic()
                self._end.wait(self._interval)
        except Exception as error:  # the store is gone, and whoever held it with it
            if not self._end.is_set():
                self._note(self._dead() or Failure(None, LOST, message=str(error)[:200]))

    def _tick(self) -> bool:
        """Look once; whether there is nothing to look at any more."""
        if self._store.check(["failed"]):
            self._note(Failure.parse(self._store.get("failed")))
            return True
        found = self._dead() or self._silent()
        if found is None:
            return False
        if not self._is_over(self._store) and not self._end.is_set():
            self.announce(found)
        return self.failed.is_set()

    def _dead(self) -> Failure | None:
        for rank, process in self._processes.items():
            if process.state() == "gone":
                return Failure(rank, ENDED)
        return None

    def _silent(self) -> Failure | None:
        if self._world == 1:
            return None
        key, now = f"beat/{self._next}", time.monotonic()
        beat = self._store.get(key) if self._store.check([key]) else None
        if beat != self._beat:
            self._beat, self._heard = beat, now
            if self._next not in self._processes and self._store.check([f"info/{self._next}"]):
                known = json.loads(self._store.get(f"info/{self._next}"))
                self.know({**self._processes, self._next: Process(*known)})
            return None
        allowed = self._first if beat is None else self._patience
        if now - self._heard <= allowed:
            return None
        return Failure(self._next, SILENT, message=f"nothing for {now - self._heard:.0f} s")

    def _unanswered(self) -> Failure:
        stopped = [rank for rank, one in self._processes.items() if one.state() == "stopped"]
        said = f"the rendezvous store has not answered for {self._patience:.0f} s"
        return Failure(stopped[0] if stopped else 0, SILENT, message=said)
