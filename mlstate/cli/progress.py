"""Progress of a command: bars on a terminal, plain lines in a log, both on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from mlstate.cli.output import human_size, is_lively, is_quiet, note

if TYPE_CHECKING:
    from mlstate.fetch.progress import OnProgress, Progress
    from mlstate.stores.read import StateStore

__all__ = ["progress", "progress_of"]

_INTERVAL = 10.0


def progress() -> OnProgress | bool:
    """The `progress` for a store: True, which is a bar, or what prints a line now and then."""
    if is_quiet():
        return False
    return True if is_lively(sys.stderr) else _lines()


def progress_of(store: StateStore) -> OnProgress | bool | None:
    """The `progress` for reading a store: None if the store shows its own, since one is enough."""
    return progress() if store.fetcher is None else None


def _lines() -> OnProgress:
    told = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal told
        now = time.monotonic()
        if progress.ended or now - told < _INTERVAL:
            return
        told = now
        of = "" if progress.total is None else f" of {human_size(progress.total)}"
        rate = f"{human_size(int(progress.rate))}/s"
        waiting = f", {progress.waiting}" if progress.waiting else ""
        note(f"{progress.what}: {human_size(progress.done)}{of}, {rate}{waiting}")

    return tell
