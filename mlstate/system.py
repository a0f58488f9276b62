"""What systems differ in: each capability is asked for once, here, and all else calls this.

POSIX opens files relative to an open folder, reads and writes at a position, has users with rights,
locks an open file, and moves and removes one while it is open. Windows has none of these. There a
folder is held by its path, so that what others put into its place meanwhile is not noticed; whom a
file belongs to is for its folder to say; and a file is closed before it gets its name.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

__all__ = [
    "FLUSHED",
    "FOLDERS_OPEN",
    "LINUX",
    "NONBLOCK",
    "OPEN",
    "OPEN_FILES_MOVE",
    "WINDOWS",
    "Place",
    "close_place",
    "is_own",
    "joined",
    "make_at",
    "may_be_written_by_others",
    "move_from",
    "open_at",
    "open_place",
    "pread",
    "pwrite",
    "readinto_at",
    "remove_at",
    "replace",
    "replace_in",
    "set_mode",
    "set_time",
    "stat_at",
    "user",
    "write_views",
]

StrPath = str | os.PathLike[str]
Place = int | str
"""A folder that is held open: its descriptor; where folders are not opened (Windows), its path."""

LINUX, WINDOWS = sys.platform.startswith("linux"), os.name == "nt"
FOLDERS_OPEN = os.open in os.supports_dir_fd
"""Whether folders can be opened, and files relative to them."""
_USERS = hasattr(os, "geteuid")
_TIMES_OF_OPEN = os.utime in os.supports_fd
_TIMES_OF_LINKS = os.utime in os.supports_follow_symlinks
OPEN_FILES_MOVE = not WINDOWS
"""Whether a file can be renamed and removed while it is open."""
OPEN = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOINHERIT", "O_BINARY"))
"""Every file is opened so: no child inherits it, and no line end of it is changed."""
FLUSHED = os.O_RDONLY if FOLDERS_OPEN else os.O_RDWR
"""To flush a file it is opened so: Windows flushes none that may not be written."""
NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | OPEN
"""A folder to open things in: by O_PATH neither its file system nor its list is asked for that."""

_PATIENCE = 2.0
"""Seconds for which Windows may refuse to replace a file: a virus scanner reads what is new."""
_POLL = 0.05


# Folders, and what is in them.


def open_place(
    path: StrPath, *, folder: Place | None = None, follow: bool = True, listed: bool = False
) -> Place:
    """Hold a folder open, for `open_at` and the others; `close_place` closes it.

    Args:
        path: The folder.
        folder: The open folder that a relative path begins at.
        follow: Whether the last part of the path may be a symbolic link.
        listed: Whether its names are to be listed; otherwise no right to read it is needed.

    Raises:
        NotADirectoryError: It is no folder; or a link, and ``follow`` is False.
    """
    if FOLDERS_OPEN:
        flags = os.O_RDONLY | os.O_DIRECTORY | OPEN if listed else _FOLDER
        return os.open(path, flags if follow else flags | _NOFOLLOW, dir_fd=_descriptor(folder))
    whole = joined(path, folder)
    mode = (os.stat if follow else os.lstat)(whole).st_mode
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), whole)
    return whole


def close_place(place: Place) -> None:
    """Close what `open_place` gave."""
    if isinstance(place, int):
        os.close(place)


def open_at(
    path: StrPath,
    flags: int,
    mode: int = 0o666,
    *,
    folder: Place | None = None,
    follow: bool = True,
) -> int:
    """Open a file as `os.open` does, and as `OPEN` says; a relative path begins at the folder.

    Raises:
        OSError: Of ELOOP, if the last part of the path is a symbolic link, and ``follow`` is False.
        IsADirectoryError: It is a folder, where these are not opened.
    """
    if FOLDERS_OPEN:
        flags |= OPEN if follow else OPEN | _NOFOLLOW
        return os.open(path, flags, mode, dir_fd=_descriptor(folder))
    whole = joined(path, folder)
    if not follow and os.path.islink(whole):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), whole)
    try:  # what may not be written could not be removed there, either
        return os.open(whole, flags | OPEN, mode | stat.S_IWUSR)
    except PermissionError:
        if not os.path.isdir(whole):
            raise
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), whole) from None


def stat_at(name: StrPath, folder: Place | None = None, *, follow: bool = False) -> os.stat_result:
    """What a name in an open folder stands for; a link itself, unless it is followed."""
    if FOLDERS_OPEN:
        return os.stat(name, dir_fd=_descriptor(folder), follow_symlinks=follow)
    return os.stat(joined(name, folder), follow_symlinks=follow)


def make_at(name: str, folder: Place) -> None:
    """Make a folder in an open one."""
    if FOLDERS_OPEN:
        os.mkdir(name, dir_fd=_descriptor(folder))
    else:
        os.mkdir(joined(name, folder))


def remove_at(name: str, folder: Place | None) -> None:
    """Remove a file of an open folder."""
    if FOLDERS_OPEN:
        os.unlink(name, dir_fd=_descriptor(folder))
    else:
        os.unlink(joined(name, folder))


def move_from(name: str, folder: Place, target: StrPath) -> None:
    """Move a file out of an open folder, to a new name."""
    if FOLDERS_OPEN:
        os.rename(name, target, src_dir_fd=_descriptor(folder))
    else:
        os.rename(joined(name, folder), target)


def replace_in(source: StrPath, name: str, folder: Place) -> None:
    """Move a file into an open folder, as `replace` does."""
    if FOLDERS_OPEN:
        os.replace(source, name, dst_dir_fd=_descriptor(folder))
    else:
        replace(source, joined(name, folder))


def replace(source: StrPath, target: StrPath) -> None:
    """Rename a file, over whatever bears the name.

    Where a file that somebody reads cannot be replaced, this waits a moment for them.
    """
    if OPEN_FILES_MOVE:
        os.replace(source, target)
        return
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if time.monotonic() > end or os.path.isdir(target):
                raise
            time.sleep(_POLL)


def _descriptor(folder: Place | None) -> int | None:
    if isinstance(folder, str):
        raise TypeError(f"a folder that is held by its path, {folder!r}, and not open")
    return folder


def joined(path: StrPath, folder: Place | None) -> str:
    """The path of a file in a folder that is held by its path; a TypeError of one that is open."""
    if isinstance(folder, int):
        raise TypeError("an open folder, where these are not opened")
    return os.fspath(path) if folder is None else os.path.join(folder, path)


# Users and their rights.


def user() -> int:
    """The number of the user whose rights this process has; 0 where users have no numbers."""
    return os.geteuid() if _USERS else 0


def is_own(found: os.stat_result) -> bool:
    """Whether a file is this user's or root's: nobody else has written it, if none may."""
    return not _USERS or found.st_uid in (0, os.geteuid())


def may_be_written_by_others(found: os.stat_result) -> bool:
    """Whether the mode of a file lets others write to it; where there are no modes, False."""
    return _USERS and bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def set_mode(descriptor: int, mode: int) -> None:
    """Set the mode of an open file, where files have one."""
    if _USERS:
        os.fchmod(descriptor, mode)


def set_time(path: StrPath, descriptor: int | None = None) -> None:
    """Set the time of a file to now; of a symbolic link itself, or of what is open, if it can be.

    Raises:
        OSError: A link, where the time of what it names would be set.
    """
    if descriptor is not None and _TIMES_OF_OPEN:
        os.utime(descriptor)
    elif _TIMES_OF_LINKS:
        os.utime(path, follow_symlinks=False)
    elif os.path.islink(path):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), os.fspath(path))
    else:
        os.utime(path)


# Bytes at a position. Where a call cannot take one, the position of the file is set and put back,
# by one thread at a time.

_seeking = tuple(Lock() for _ in range(16))


@contextmanager
def _at(descriptor: int, position: int) -> Iterator[None]:
    with _seeking[descriptor % len(_seeking)]:
        before = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, position, os.SEEK_SET)
        try:
            yield
        finally:
            os.lseek(descriptor, before, os.SEEK_SET)


def pread(descriptor: int, size: int, position: int) -> bytes:
    """Read at a position, on any thread; see `os.pread`."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, position)
    with _at(descriptor, position):
        return os.read(descriptor, size)


def pwrite(descriptor: int, data: bytes | bytearray | memoryview, position: int) -> int:
    """Write at a position, on any thread; see `os.pwrite`."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, position)
    with _at(descriptor, position):
        return os.write(descriptor, data)


def readinto_at(descriptor: int, buffer: memoryview, position: int) -> int:
    """Read into memory at a position, on any thread; see `os.preadv`."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], position)
    data = pread(descriptor, len(buffer), position)
    buffer[: len(data)] = data
    return len(data)


def write_views(descriptor: int, views: Sequence[memoryview]) -> int:
    """Write several pieces of memory by one call; it may write fewer bytes than they have."""
    if hasattr(os, "writev"):
        return os.writev(descriptor, views)
    return os.write(descriptor, b"".join(views))
