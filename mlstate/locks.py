"""Locks that one process has at a time: on an open file, or on a file beside it.

The kernel gives a lock back when a process ends, however it ends. Where there is no `fcntl`
(Windows), filelock knows how files are locked.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlstate.system import FOLDERS_OPEN, OPEN, Place, joined

__all__ = ["SUFFIX", "FileLock", "locked_folder", "try_lock", "unlock"]

SUFFIX = ".lock"

_POLL = 0.01

StrPath = str | os.PathLike[str]


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file or folder for this process, without waiting.

    Returns False if another process has it, and None if there are no locks here.
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


def unlock(descriptor: int) -> None:
    """Give back the lock of `try_lock`, before the file is closed.

    To close it is not enough if the process was forked meanwhile: the child has it open, too.
    """
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)


class FileLock:
    """A lock on an open file; where none can be locked (Windows), on a file beside it.

    Args:
        descriptor: The file.
        path: Its name.
        folder: The open folder that a relative path begins at.
    """

    def __init__(self, descriptor: int, path: StrPath, folder: Place | None = None) -> None:
        self._descriptor = descriptor
        self._beside: Any = None
        try:
            import fcntl  # noqa: F401
        except ImportError:
            import filelock

            name = f"{joined(path, folder)}{SUFFIX}"
            self._beside = filelock.FileLock(name, timeout=0, thread_local=False)

    def take(self) -> bool | None:
        """Take it for this process, without waiting; results as those of `try_lock`."""
        if self._beside is None:
            return try_lock(self._descriptor)
        import filelock

        try:
            self._beside.acquire()
        except filelock.Timeout:
            return False
        except (OSError, NotImplementedError):
            return None
        return True

    def give_back(self) -> None:
        """Let others have it, before the file is closed."""
        if self._beside is None:
            unlock(self._descriptor)
        self.closed()

    def closed(self) -> None:
        """Let others have it, now that the file is closed, with which a lock on itself has gone."""
        if self._beside is not None:
            self._beside.release()


@contextmanager
def locked_folder(folder: StrPath, patience: float = 60.0) -> Iterator[None]:
    """Hold a lock on a folder; after so many seconds, or where there are no locks, go on without.

    A change takes far less: a process that holds the lock for longer is stopped. The lock is on the
    folder itself, so that no file is left, where folders can be opened.
    """
    try:
        descriptor = os.open(folder if FOLDERS_OPEN else os.devnull, os.O_RDONLY | OPEN)
    except OSError:  # some file systems open no folders, and some folders are not to be read
        yield
        return
    lock = FileLock(descriptor, os.path.join(folder, ".mlstate"))
    try:
        end = time.monotonic() + patience
        while lock.take() is False and time.monotonic() < end:
            time.sleep(_POLL)
        yield
    finally:
        lock.give_back()
        os.close(descriptor)
