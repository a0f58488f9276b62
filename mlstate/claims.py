"""Claims: which of several processes works on what, by locks on ranges of one file.

Whoever claims a name locks a range of bytes that stands for it. The kernel gives a range back when
a process ends, however it does. Each user of the file has a slot: the length of a range says whose
it is, and at the slot's place in the file stands a number that changes as long as its owner works.

Claims only save work. Where such locks do not work, or nothing is heard of an owner for a while,
everybody has what they ask for, and something is done twice. Nobody waits while they hold a claim
that another one waits for, so that no two wait for each other.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TypeVar

from mlstate.system import NONBLOCK, open_at, pread, pwrite

__all__ = ["PATIENCE", "Claims"]

PATIENCE = 60.0
"""The seconds after which a process of which nothing is heard is no longer waited for."""

_Name = TypeVar("_Name", bound=str)
_SLOT_BITS = 10
_SLOTS = 1 << _SLOT_BITS
_SLOTS_AT = 1 << 62  # beyond the ranges of all names, a byte for each slot
_DIGITS = 13  # of a name, in hex
_SIGN = 8
_FIRST_POLL, _LAST_POLL = 0.01, 0.25
_FLOCK = struct.Struct("hhqqi4x")  # type, whence, start, length, process


class Claims:
    """What this user of a file has claimed; opened with the first claim. Used by several threads.

    Args:
        path: The file, in a folder that is there. It is removed by whoever is the last to use it.
        patience: See `PATIENCE`.
    """

    def __init__(self, path: Path, patience: float = PATIENCE) -> None:
        self._path = path
        self._patience = patience
        self._lock = Lock()
        self._opened = False
        self._file: int | None = None  # None, too, where no claims are possible
        self._slot = 0
        self._held: set[str] = set()
        self._taken_over: set[str] = set()  # of which nothing was heard
        self._signed = 0.0
        self._heard: dict[int, tuple[bytes, float]] = {}  # by slot: the last sign, and when it came

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def take(self, name: str) -> bool:
        """Claim a name, which begins with 13 hex digits; False if another one works on it."""
        with self._lock:
            self._begin()
            if self._file is None or name in self._taken_over:
                return True
            got = _lock(self._file, _place(name), 1 + self._slot)
            if got:
                self._held.add(name)
            return got is not False

    def give(self, name: str) -> None:
        """Give a claim back; one that is not held is no error."""
        with self._lock:
            if self._file is not None and name in self._held:
                self._held.discard(name)
                _unlock(self._file, _place(name), 1 + self._slot)

    def give_all(self) -> None:
        """Give back what is held."""
        for name in list(self._held):
            self.give(name)

    def alive(self) -> None:
        """Show, now and then, that the work goes on."""
        now = time.monotonic()
        if self._file is not None and now - self._signed > self._patience / 20:
            self._signed = now
            with suppress(OSError):
                pwrite(self._file, struct.pack("<d", now), self._slot * _SIGN)

    def wait(
        self,
        names: Collection[_Name],
        is_done: Callable[[_Name], bool],
        waiting: Callable[[list[_Name]], None],
    ) -> None:
        """Wait until all of these are done, or one may be claimed.

        Args:
            names: What others have claimed.
            is_done: Whether it is done.
            waiting: Called again and again, with what is waited for.
        """
        pause = _FIRST_POLL
        while left := [name for name in names if not is_done(name)]:
            owners = {name: self._owner(name) for name in left}
            if None in owners.values():
                return
            self.watch()
            silent = {slot for slot in set(owners.values()) if self._is_silent(slot)}
            if silent:
                self._taken_over |= {name for name, slot in owners.items() if slot in silent}
                return
            waiting(left)
            time.sleep(pause)
            pause = min(2 * pause, _LAST_POLL)

    def watch(self) -> None:
        """Note who shows that they work: also while this process waits for something else."""
        with self._lock:
            self._begin()
            if self._file is None:
                return
            signs = pread(self._file, _SLOTS * _SIGN, 0).ljust(_SLOTS * _SIGN, b"\0")
        now = time.monotonic()
        for slot in range(_SLOTS):
            sign = signs[slot * _SIGN : (slot + 1) * _SIGN]
            if slot not in self._heard or self._heard[slot][0] != sign:
                self._heard[slot] = (sign, now)

    def close(self) -> None:
        """Give everything back."""
        with self._lock:
            file, self._file, self._opened = self._file, None, False
            self._held.clear()
            if file is None:
                return
            if _lock(file, _SLOTS_AT, _SLOTS):  # nobody else uses it, nor can begin to
                with suppress(OSError):
                    if os.path.samestat(os.fstat(file), self._path.lstat()):
                        self._path.unlink()
            _unlock(file, 0, 0)  # which a child that was forked meanwhile has open, too
            os.close(file)

    def _begin(self) -> None:
        if not self._opened:
            self._opened = True
            self._file = self._open()

    def _open(self) -> int | None:
        """Open the file and find a slot; None if that cannot be."""
        flags = os.O_RDWR | os.O_CREAT | NONBLOCK
        with suppress(OSError):
            while _COMMANDS:
                file = open_at(self._path, flags, follow=False)
                found = os.fstat(file)
                good = stat.S_ISREG(found.st_mode) and found.st_nlink <= 1
                slot = next(_free_slots(file), None) if good else None
                with suppress(FileNotFoundError):
                    if slot is None or os.path.samestat(found, self._path.lstat()):
                        if slot is not None:
                            self._slot = slot
                            return file
                        os.close(file)
                        return None
                os.close(file)  # somebody was the last to use it, and has removed it
        return None

    def _owner(self, name: str) -> int | None:
        """The slot of who has claimed a name; None if nobody has."""
        if self._file is None:
            return None
        return _owner(self._file, _place(name))

    def _is_silent(self, slot: int | None) -> bool:
        """Whether nothing was heard of an owner for too long."""
        heard = None if slot is None else self._heard.get(slot)
        return heard is not None and time.monotonic() - heard[1] > self._patience


def _commands() -> tuple[int, int] | None:
    """The calls for locks that belong to an open file; None where there are none."""
    try:
        import fcntl

        return fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK
    except (ImportError, AttributeError):
        return None


_COMMANDS = _commands()


def _place(name: str) -> int:
    return int(name[:_DIGITS], 16) << _SLOT_BITS


def _free_slots(file: int) -> Iterator[int]:
    """Slots that nobody has; each is locked when it is given. None where locks do not work."""
    for slot in range(_SLOTS):
        got = _lock(file, _SLOTS_AT + slot, 1)
        if got is None:
            return
        if got:
            yield slot


def _lock(file: int, start: int, length: int) -> bool | None:
    """Lock a range; False if another one has some of it, None if locks do not work here."""
    import fcntl

    assert _COMMANDS is not None
    try:
        fcntl.fcntl(file, _COMMANDS[0], _FLOCK.pack(fcntl.F_WRLCK, 0, start, length, 0))
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _unlock(file: int, start: int, length: int) -> None:
    import fcntl

    assert _COMMANDS is not None
    with suppress(OSError):
        fcntl.fcntl(file, _COMMANDS[0], _FLOCK.pack(fcntl.F_UNLCK, 0, start, length, 0))


def _owner(file: int, start: int) -> int | None:
    import fcntl

    assert _COMMANDS is not None
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, 0, start, 1, 0)
        kind, _, _, length, _ = _FLOCK.unpack(fcntl.fcntl(file, _COMMANDS[1], asked))
    except OSError:
        return None
    return None if kind == fcntl.F_UNLCK else int(length) - 1
