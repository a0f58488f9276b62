"""The traits of a file system, found out by trying them in a folder that is removed."""

from __future__ import annotations

import errno
import mmap
import os
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlstate.locks import FileLock
from mlstate.objects.durable import rename_exclusively
from mlstate.objects.mapped import may_map
from mlstate.objects.reflink import clone_range
from mlstate.system import FLUSHED, LINUX, OPEN, set_time
from mlstate.weights.folder import remove_temporaries

__all__ = ["Traits", "file_system_of", "probe"]

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")
_BLOCKS = 1 << 16
"""A multiple of every block size that is usual."""


@dataclass(frozen=True)
class Traits:
    """What a file system can do."""

    shares_blocks: bool  # files can share blocks (btrfs, XFS): a copy for nothing
    hard_links: bool  # a file can have a second name, on the condition that it is free
    exclusive_rename: bool  # a file can be renamed on the same condition
    case_sensitive: bool  # "a" and "A" are two names
    locks: bool  # a lock keeps others out
    maps: bool  # large files are mapped; otherwise they are read into memory
    flushes: bool  # what a file holds can be made durable
    flushes_folders: bool  # so can the names in a folder
    sets_times: bool  # the time of a file can be set
    read_only_files: bool  # files keep it that they are not to be written
    replaces_open_files: bool  # a file can be replaced while somebody reads it
    flush_seconds: float  # what it took to make a small file durable


def probe(folder: Path) -> Traits:
    """Find out what the file system of a folder can do; an OSError if it cannot be written.

    Nothing stays in the folder, whatever happens.
    """
    trial = Path(tempfile.mkdtemp(prefix=".mlstate-probe-", dir=folder))
    try:
        first, second = trial / "first", trial / "second"
        first.write_bytes(os.urandom(_BLOCKS))
        begun = time.perf_counter()
        flushes = _works(_flush, first)
        flush_seconds = time.perf_counter() - begun
        second.write_bytes(b"")
        with first.open("rb") as file:
            maps = may_map(file)
        return Traits(
            shares_blocks=_shares_blocks(first, trial / "clone"),
            hard_links=_names_exclusively(os.link, trial),
            exclusive_rename=_names_exclusively(rename_exclusively, trial),
            case_sensitive=not (trial / "FIRST").exists(),
            locks=_locks(second),
            maps=maps and _works(_map, first),
            flushes=flushes,
            flushes_folders=_works(_flush, trial),
            sets_times=_works(set_time, second),
            read_only_files=_keeps_read_only(trial / "kept"),
            replaces_open_files=_works(_replace_open, trial / "open"),
            flush_seconds=flush_seconds,
        )
    finally:
        remove_temporaries(trial)


def _works(call: Callable[[Path], object], path: Path) -> bool:
    try:
        call(path)
    except OSError:
        return False
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, FLUSHED | OPEN)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _map(path: Path) -> None:
    with path.open("rb") as file:
        mmap.mmap(file.fileno(), _BLOCKS, access=mmap.ACCESS_READ).close()


def _keeps_read_only(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | OPEN, 0o444))
        return not path.stat().st_mode & 0o222
    except OSError:
        return False
    finally:
        with suppress(OSError):
            path.chmod(0o666)  # Windows would not remove it


def _replace_open(path: Path) -> None:
    new = path.with_name("replacing")
    for name in (path, new):
        name.write_bytes(os.fsencode(name))
    with path.open("rb") as file:
        os.replace(new, path)
        if file.read() != os.fsencode(path):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def _shares_blocks(source: Path, target: Path) -> bool:
    with source.open("rb") as file, target.open("wb") as clone:
        return clone_range(file, 0, _BLOCKS, clone.fileno(), 0)


def _names_exclusively(way: Callable[[Path, Path], None], trial: Path) -> bool:
    """Whether a way to name a file works, and works only if the name is free."""
    for name in ("old", "taken"):
        (trial / name).write_text(name)
    try:
        way(trial / "old", trial / "new")
    except OSError:
        return False
    finally:
        for name in ("old", "new"):
            (trial / name).unlink(missing_ok=True)
    (trial / "old").write_text("old")
    try:
        way(trial / "old", trial / "taken")
    except FileExistsError:
        return (trial / "taken").read_text() == "taken"
    except OSError:
        pass
    return False


def _locks(path: Path) -> bool:
    """Whether who comes second is refused: locks that everybody gets are none."""
    with path.open("rb+") as first, path.open("rb+") as second:
        locks = [FileLock(file.fileno(), path) for file in (first, second)]
        try:
            return locks[0].take() is True and locks[1].take() is False
        finally:
            locks[0].give_back()


def file_system_of(folder: Path, mounts: Path = _MOUNTS) -> str | None:
    """The type of a folder's file system as the kernel names it (``ext4``), None if it does not.

    `mounts` is the kernel's list of what is mounted where.
    """
    if not LINUX:
        return None
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    # By path: the device numbers that btrfs gives for its files are in no list.
    where, found, deepest = folder.resolve(), None, -1
    for line in lines:
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        mount = Path(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4]))
        depth = len(mount.parts)
        if where.is_relative_to(mount) and depth >= deepest:  # of two in one place the later hides
            found, deepest = after.split(" ")[0], depth
    return found
