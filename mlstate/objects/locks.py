"""Locks that save work, and never decide what is right: where they fail, work is done twice."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["one_at_a_time", "try_lock"]

_POLL = 0.05
_PATIENCE = 60.0


def try_lock(descriptor: int) -> bool | None:
    """Lock a file for this process, without waiting.

    Returns:
        False if another process has it; None if no locks are to be had here.
    """
    try:
        import fcntl
    except ImportError:  # not on this platform
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nobody is worth waiting for
        return None
    return True


@contextmanager
def one_at_a_time(path: Path, *, patience: float = _PATIENCE) -> Iterator[Callable[[], None]]:
    """Let one process after the other do a piece of work, as long as each gets on with it.

    Whoever comes second waits while the first shows that it is alive, and then most likely finds
    everything done. If nothing is heard of the first for a while, or locks do not work here, the
    second begins too.

    Args:
        path: The lock file; its folder is there.
        patience: The seconds without a sign of life after which nobody waits longer.

    Yields:
        What to call now and then, to show that the work goes on.
    """
    descriptor = _open(path)
    if descriptor is None:
        yield lambda: None
        return
    try:
        _wait(descriptor, patience)
        last = [0.0]

        def alive() -> None:
            if time.monotonic() - last[0] > patience / 20:
                last[0] = time.monotonic()
                with contextlib.suppress(OSError):  # another member's file: then without
                    os.utime(descriptor)

        alive()
        try:
            yield alive
        finally:
            # Who waits for this very file goes on; who comes now makes a new one. Should both
            # then work at once, work is done twice, which is all that can go wrong.
            with contextlib.suppress(OSError):
                os.unlink(path)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int | None:
    """Open a lock file. Another member's may be there to read alone, or not at all."""
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        with contextlib.suppress(PermissionError, FileNotFoundError):
            return os.open(path, flags | os.O_CLOEXEC, 0o666)
    return None


def _wait(descriptor: int, patience: float) -> None:
    heard, sign = time.monotonic(), os.fstat(descriptor).st_mtime_ns
    while try_lock(descriptor) is False:
        time.sleep(_POLL)
        now = os.fstat(descriptor).st_mtime_ns
        if now != sign:
            heard, sign = time.monotonic(), now
        elif time.monotonic() - heard > patience:
            return
