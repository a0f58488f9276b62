"""The progress of a fetch: bytes counted from many threads, told now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

from mlstate.log import info
from mlstate.units import format_size

__all__ = ["Meter", "OnProgress", "Progress", "listener"]


def listener(progress: OnProgress | bool | None) -> OnProgress | None:
    """The function to call with progress: the caller's own; for True, a bar.

    It is on the terminal of standard error, or below the cell of a notebook; elsewhere there is
    none.
    """
    if isinstance(progress, bool):
        return (_notebook_line() or _terminal_bar()) if progress else None
    return progress


def _notebook_line() -> OnProgress | None:
    """A line below the cell of a notebook that runs; None elsewhere."""
    # A kernel has imported both. rich's bars need a package more in a notebook, and leave lines.
    ipython, kernel = sys.modules.get("IPython"), sys.modules.get("ipykernel")
    shell = None if ipython is None or kernel is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    shown: dict[str, Any] = {}

    def show(progress: Progress) -> None:
        of = "" if progress.total is None else f" of {format_size(progress.total)}"
        rate = "" if progress.ended else f", {format_size(int(progress.rate))}/s"
        line = _Line(f"{progress.what}: {format_size(progress.done)}{of}{rate}")
        if progress.ended and progress.what not in shown:
            return
        if progress.what not in shown:
            shown[progress.what] = display(line, display_id=True)  # type: ignore[no-untyped-call]
        else:
            shown[progress.what].update(line)
        if progress.ended:
            del shown[progress.what]

    return show


class _Line:
    """A text that a notebook shows as it is."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _terminal_bar() -> OnProgress | None:
    """A bar on the terminal of standard error; None if that is no terminal."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars
    from rich.table import Column

    # A long key gives way to the numbers: it has what is left of the line.
    what = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    bars = Bars(
        TextColumn("{task.description}", table_column=what),
        BarColumn(bar_width=12),
        DownloadColumn(table_column=Column(no_wrap=True)),
        TransferSpeedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        console=Console(stderr=True),
        expand=True,
    )

    def show(progress: Progress) -> None:
        if not bars.task_ids and not progress.ended:
            bars.add_task(progress.what, total=None)
            bars.start()
        for task in bars.task_ids:
            what = f"{progress.what}: {progress.waiting}" if progress.waiting else progress.what
            bars.update(task, description=what, completed=progress.done, total=progress.total)
        if progress.ended:
            bars.stop()
            for task in bars.task_ids:
                bars.remove_task(task)

    return show


_INTERVAL = 0.1


@dataclass(frozen=True)
class Progress:
    """How far a fetch is.

    Attributes:
        done: Bytes that came.
        total: Bytes that will have come at the end, as far as known; or None.
        rate: Bytes a second, since the first came: what is done before, an import of torch say,
            does not count.
        what: What is being fetched: a state's key.
        ended: Whether this is the last time: all came, or it failed.
        waiting: What it waits for, if nothing comes because another process brings it.
    """

    done: int
    total: int | None
    rate: float
    what: str
    ended: bool = False
    waiting: str = ""


OnProgress = Callable[[Progress], None]
"""Told now and then, at most ten times a second, and at the end; from any thread, one at a time."""


class Meter:
    """Counts bytes and tells of them."""

    def __init__(self, what: str, on_progress: OnProgress | None = None) -> None:
        self._what = what
        self._on_progress = on_progress
        self._alive: Callable[[], object] | None = None
        self._lock = Lock()
        self._began = time.monotonic()
        self._first: int | None = None  # bytes that came at once when the clock began
        self._told = 0.0
        self._waiting = ""
        self.total: int | None = None
        self.done = 0

    def begin(self, alive: Callable[[], object]) -> None:
        """Call ``alive`` now and then from now on, while bytes come or are waited for."""
        self._alive = alive
        alive()

    def add(self, count: int) -> None:
        """Bytes came."""
        with self._lock:
            self.done += count
            self._waiting = ""
            now = time.monotonic()
            if self._first is None:
                self._began, self._first = now, count
            if now - self._told >= _INTERVAL:
                self._told = now
                self._tell(now)

    @property
    def rate(self) -> float:
        """Bytes a second, since the first came."""
        passed = time.monotonic() - self._began
        return (self.done - (self._first or 0)) / passed if passed > 0 else 0.0

    def wait(self, reason: str) -> None:
        """Say that nothing comes now, and why; called again and again meanwhile."""
        with self._lock:
            if reason != self._waiting:
                info("%s: %s", self._what, reason)
            self._waiting, now = reason, time.monotonic()
            if now - self._told >= _INTERVAL:
                self._told = now
                self._tell(now)

    def expect(self, total: int | None) -> None:
        """Say how many bytes are still to come; None if nobody knows, as of small files."""
        if total is not None:
            self.total = self.done + total

    def spare(self, count: int) -> None:
        """Say that so many bytes need not come: an earlier run has brought them."""
        with self._lock:
            if self.total is not None:
                self.total -= count

    def end(self) -> None:
        """Tell for the last time."""
        with self._lock:
            self._tell(time.monotonic(), ended=True)

    def _tell(self, now: float, *, ended: bool = False) -> None:
        if self._alive is not None:
            self._alive()
        if self._on_progress is not None:
            total = self.total and max(self.total, self.done)
            waiting = "" if ended else self._waiting
            self._on_progress(Progress(self.done, total, self.rate, self._what, ended, waiting))
