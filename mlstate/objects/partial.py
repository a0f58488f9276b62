"""A large object that arrives in segments, in any order, over several runs of a program.

The bytes go to their places in ``tmp/<name>.partial``; beside it ``<name>.partial.done`` has a byte
for each block, set when all of the block is there. A process that is killed loses the blocks that
were under way, no more. Nobody trusts the two files: the whole is hashed before it is used.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from mlstate.digests import Bytes, Digest, Hasher
from mlstate.files import LACKING, UnfitFileError, open_folder, open_own
from mlstate.format import layout
from mlstate.locks import FileLock
from mlstate.parallel import THREADS
from mlstate.system import (
    OPEN_FILES_MOVE,
    Place,
    open_at,
    pread,
    pwrite,
    remove_at,
    replace,
    stat_at,
)

__all__ = ["BLOCK", "SEGMENT", "Partial"]

SEGMENT = 16 << 20
"""The most bytes that are asked for at once."""
BLOCK = 1 << 20
"""Bytes that are marked as done together: what each stream of a killed process may lose."""

_WINDOW = 64 << 20


class Partial:
    """One large object of a known size that is being put together in a store's tmp/.

    A later run finds it by its name, 64 hex digits. Where another process is at work on the same
    object, the file system knows no locks, or something else than a file of one's own has the name,
    this one works on a copy of its own, which no later run finds: slower, and right.

    Attributes:
        resumed: Whether something of an earlier run is in it.
    """

    def __init__(self, folder: Path, name: str, size: int) -> None:
        self.size = size
        self._lock = Lock()
        with open_folder(folder) as place:
            own = _open_found(f"{name}{layout.PARTIAL_SUFFIX}", place)
            kept = own is not None
            if own is None:
                own = _open_private(uuid.uuid4().hex, place)
        self.descriptor, self._marks, self._file_lock = own.descriptor, own.marks, own.lock
        self.path = folder / own.name
        self._marks_path = folder / _marks_name(own.name)
        self._remove: tuple[Path, ...] = () if kept else (self._marks_path, self.path)
        count = -(-size // BLOCK)
        done = pread(self._marks, count, 0)
        found = os.fstat(self.descriptor).st_size
        if found != size or len(done) != count:
            # What is empty is not emptied: ext4 then writes the file to the disk at its close.
            if done:
                _resize(self._marks, 0)
            if found:
                _resize(self.descriptor, 0, needed=found > size)
            done = bytes(count)
            pwrite(self._marks, done, 0)
            _resize(self.descriptor, size)
        self._done = bytearray(done)
        self.resumed = any(self._done)
        self._left = self._done.count(0)
        self._claimed = False

    def missing(self) -> list[tuple[int, int]]:
        """The ranges that are not there yet: start and stop in bytes, at most `SEGMENT` each."""
        found: list[tuple[int, int]] = []
        for index, done in enumerate(self._done):
            start = index * BLOCK
            if done:
                continue
            if found and found[-1][1] == start and start + BLOCK - found[-1][0] <= SEGMENT:
                start = found.pop()[0]
            found.append((start, min((index + 1) * BLOCK, self.size)))
        return found

    def write(self, position: int, data: Bytes) -> None:
        """Put bytes in their place; called from several threads."""
        view = memoryview(data).cast("B")
        while view:
            count = pwrite(self.descriptor, view, position)
            view, position = view[count:], position + count

    def mark(self, start: int, stop: int) -> int:
        """Note that all bytes of a range are there, which begins at the beginning of a block.

        A block at the end that is not complete is not marked. Returns where the last marked block
        ends: the next ``start``.
        """
        first, last = start // BLOCK, stop // BLOCK if stop < self.size else len(self._done)
        if last > first:
            marks = b"\x01" * (last - first)
            pwrite(self._marks, marks, first)
            with self._lock:  # last: whoever finds that nothing is left may close the files
                self._left -= self._done.count(0, first, last)
                self._done[first:last] = marks
        return last * BLOCK

    def claim(self) -> bool:
        """Whether all is there; true once, for the thread that completes the object."""
        with self._lock:
            first, self._claimed = not self._left and not self._claimed, not self._left
            return first

    def digest(self) -> Digest:
        """The digest of the whole, read once from front to back."""
        hasher = Hasher(THREADS)
        for window in self._windows():
            hasher.update(window)
        return hasher.digest()

    def crc(self, start: int = 0) -> int:
        """The CRC-32 from some byte of the first 64 MiB on."""
        found = 0
        for window in self._windows():
            with memoryview(window) as view, view[start:] as rest:
                found = zlib.crc32(rest, found)
                start = max(0, start - len(view))
        return found

    def _windows(self) -> Iterator[mmap.mmap | bytes]:
        """All of it from front to back; of the file so much is mapped at once."""
        for start in range(0, self.size, _WINDOW):
            length = min(_WINDOW, self.size - start)
            try:
                window = mmap.mmap(self.descriptor, length, access=mmap.ACCESS_READ, offset=start)
            except OSError:  # a file system without maps
                yield from self._pieces(start, length)
            else:
                with window:
                    yield window

    def _pieces(self, start: int, size: int) -> Iterator[bytes]:
        while size and (piece := pread(self.descriptor, min(size, BLOCK), start)):
            yield piece
            start, size = start + len(piece), size - len(piece)

    def move(self, target: Path) -> None:
        """Give the object another name; its marks are removed."""
        if not OPEN_FILES_MOVE:
            self._close_files()
        replace(self.path, target)
        self._remove = (self._marks_path,)  # under the old name there may be another process's
        self.close()

    def discard(self) -> None:
        """Remove it."""
        self._remove = (self._marks_path, self.path)
        self.close()

    def forget(self) -> None:
        """Take away its names: no later run finds it. A thread that writes to it may go on.

        Where open files cannot be removed, `close` does it.
        """
        if not OPEN_FILES_MOVE:
            self._remove = (self._marks_path, self.path)
            return
        for path in (self._marks_path, self.path):
            path.unlink(missing_ok=True)
        self._remove = ()

    def close(self) -> None:
        """Close it; a later run may go on, if it can find it."""
        remove, self._remove = self._remove, ()
        if not OPEN_FILES_MOVE:
            self._close_files()
        for path in remove:
            path.unlink(missing_ok=True)
        self._close_files()
        if self._file_lock is not None:
            self._file_lock.closed()

    def _close_files(self) -> None:
        descriptors, self.descriptor, self._marks = (self.descriptor, self._marks), -1, -1
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)


@dataclass(frozen=True)
class _Files:
    """The open files of a partial object, the name of the first, and the lock on it."""

    name: str
    descriptor: int
    marks: int
    lock: FileLock | None = None


def _resize(descriptor: int, size: int, *, needed: bool = False) -> None:
    """Give a file its size. Where it cannot be had before the bytes are there, they will do it."""
    try:
        os.ftruncate(descriptor, size)
    except OSError as error:
        if needed or error.errno not in LACKING:
            raise


_MODE = 0o644
"""Nobody else may write: of a file that became shorter, the map that is hashed would be lost."""


def _marks_name(name: str) -> str:
    return f"{name}{layout.DONE_SUFFIX}"


def _open_found(name: str, folder: Place) -> _Files | None:
    """Open the files of this name, to go on with them.

    None if another process works on them, if nobody can tell, and if anything but files of one's
    own has their names: then a private name is used.
    """
    found = _open_unused(name, folder)
    if found is None:
        return None
    descriptor, lock = found
    try:
        marks = open_own(_marks_name(name), folder=folder, mode=_MODE)
        return _Files(name, descriptor, marks, lock)
    except BaseException as error:
        # It was made just now, or is of no use to anybody.
        _close(descriptor, name, folder, remove=not os.fstat(descriptor).st_size)
        lock.closed()
        if isinstance(error, UnfitFileError | PermissionError):
            return None
        raise


def _open_private(name: str, folder: Place) -> _Files:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    descriptor = open_at(name, flags, _MODE, folder=folder)
    try:
        return _Files(name, descriptor, open_at(_marks_name(name), flags, _MODE, folder=folder))
    except BaseException:
        _close(descriptor, name, folder, remove=True)
        raise


def _close(descriptor: int, name: str, folder: Place, *, remove: bool) -> None:
    """Close a file, and remove it: before that where it can be, as long as its lock is held."""
    with contextlib.suppress(FileNotFoundError):
        if remove and OPEN_FILES_MOVE:
            remove_at(name, folder)
    os.close(descriptor)
    if remove and not OPEN_FILES_MOVE:
        remove_at(name, folder)


def _open_unused(name: str, folder: Place) -> tuple[int, FileLock] | None:
    """Open a file that no other process works on; None if one does, or nobody can tell."""
    try:
        descriptor = open_own(name, folder=folder, mode=_MODE)
    except (UnfitFileError, PermissionError):  # another member's, or no file
        return None
    lock, useless = FileLock(descriptor, name, folder), False
    locked = lock.take()
    # Who held the lock before may have published the file meanwhile: then it is an object.
    with contextlib.suppress(FileNotFoundError):
        there = stat_at(name, folder)
        if locked and os.path.samestat(os.fstat(descriptor), there):
            return descriptor, lock
        useless = locked is None and not os.fstat(descriptor).st_size  # nobody can ever use it
    _close(descriptor, name, folder, remove=useless)
    lock.closed()
    return None
