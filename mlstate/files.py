"""Opening files in folders that others can write to, where anything may bear the name of a file.

A member of a group can put a symbolic link, another name of a foreign file, a pipe, a device, a
socket or a folder where a file is expected. Opening such a thing with `open` follows the link,
waits for a writer of the pipe, or reads without an end. What is opened here is a regular file, and
is looked at once it is open: a file that is put in its place later makes no difference.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mlstate.system import (
    FLUSHED,
    NONBLOCK,
    Place,
    close_place,
    is_own,
    make_at,
    open_at,
    open_place,
    set_mode,
    stat_at,
    user,
)

__all__ = [
    "ABSENT",
    "LACKING",
    "UnfitFileError",
    "check_input",
    "is_trusted_link",
    "kind_of",
    "open_folder",
    "open_folder_of",
    "open_input",
    "open_listed",
    "open_own",
    "open_regular",
    "read_file",
    "read_input",
    "sync_open",
    "sync_path",
]

ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""Errors of a path that leads to nothing: a part of it is missing, a file, or a loop of links."""

LACKING = frozenset(
    {
        *(errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP),
        *(errno.ENOTTY, errno.EBADF, errno.EISDIR, errno.ENODEV, errno.EMLINK, errno.EXDEV),
        *(errno.ENOLCK, errno.ETXTBSY),
    }
)
"""Errors of a call that a file system lacks or forbids: nothing was done, and nothing is broken.

What is broken, full or gone says otherwise (EIO, ENOSPC, EDQUOT, EROFS, ESTALE), and is raised."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_NO_FILE = {errno.ELOOP: "a symbolic link", errno.ENXIO: "a socket", errno.ENODEV: "a device"}
_READ = os.O_RDONLY | NONBLOCK  # a pipe without a writer would be waited for
_HANDED_OVER = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")

_PIECE = 1 << 16
_LEASE = 60.0
"""Seconds: the kernel takes a lease away after 45 (``fs.lease-break-time``)."""

StrPath = str | os.PathLike[str]


class UnfitFileError(OSError):
    """Something else bears the name of a file, or a file that may not be used here."""

    def __init__(self, found: str, path: StrPath) -> None:
        super().__init__(errno.EINVAL, f"not a regular file, but {found}", os.fspath(path))
        self.found = found

    def __reduce__(self) -> tuple[object, ...]:
        return (UnfitFileError, (self.found, self.filename), vars(self))


def kind_of(mode: int) -> str:
    """The kind of a thing in a file system, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "a file")


def open_regular(path: StrPath, *, folder: Place | None = None, follow: bool = True) -> int:
    """Open a regular file for reading, without waiting for anything.

    Args:
        path: The file.
        folder: The open folder that a relative path begins at.
        follow: Whether the last part of the path may be a symbolic link.

    Returns:
        A descriptor.

    Raises:
        UnfitFileError: Something else bears this name.
    """
    descriptor = _open(path, _READ, folder, follow=follow)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise UnfitFileError(kind_of(mode), path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_file(path: StrPath, most: int, *, follow: bool = True) -> bytes:
    """Read a regular file that has at most so many bytes; raises as `open_regular`.

    Raises:
        UnfitFileError: It has more, too.
    """
    with os.fdopen(open_regular(path, follow=follow), "rb") as file:
        return _read(file, most, path)


def _read(file: BinaryIO, most: int, path: StrPath) -> bytes:
    size = os.fstat(file.fileno()).st_size
    data = bytearray(file.read(size + 1) if size <= most else b"")
    while size <= most >= len(data) and (more := file.read(_PIECE)):  # a pipe, or a file that grew
        data += more
    if max(size, len(data)) > most:
        raise UnfitFileError(f"one of more than {most} bytes", path)
    return bytes(data)


def open_input(path: StrPath) -> BinaryIO:
    """Open a file that the user names for reading, without waiting for anything.

    It is a regular file, the null device, or a pipe that the shell has handed to this process:
    ``<(command)``, which is ``/dev/fd/63`` say, has its writer already.

    Raises:
        UnfitFileError: Something else bears this name.
    """
    if os.fspath(path) == os.devnull or os.fspath(path).startswith(_HANDED_OVER):
        return open(path, "rb")
    return os.fdopen(open_regular(path), "rb")


def check_input(path: StrPath, most: int) -> None:
    """Refuse what `read_input` refuses, for another program that reads it, without reading it."""
    with open_input(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise UnfitFileError(f"one of more than {most} bytes", path)


def read_input(path: StrPath, most: int) -> bytes:
    """Read all that `open_input` opens; raises as it does.

    Raises:
        UnfitFileError: There are more bytes than ``most``, too.
    """
    with open_input(path) as file:
        return _read(file, most, path)


def open_own(path: StrPath, *, folder: Place | None = None, mode: int = 0o666) -> int:
    """Open a regular file that is written on; a new one where there is none.

    The file has one name, and belongs to this user or to root: no symbolic link is followed, and no
    other member of a group sees or changes what is written, unless the mode allows it.

    Args:
        path: The file.
        folder: The open folder that a relative path begins at.
        mode: The rights of a new file, less the umask.

    Raises:
        UnfitFileError: Something else bears this name, or a file that may not be continued.
        PermissionError: The file may not be written.
    """
    flags = os.O_RDWR | os.O_CREAT | NONBLOCK
    try:
        descriptor = _open(path, flags, folder, mode, follow=False)
    except PermissionError:
        _make_writable(path, folder)
        descriptor = _open(path, flags, folder, mode, follow=False)
    try:
        check_own(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_own(descriptor: int, path: StrPath) -> None:
    """Refuse an open file that is none to write on; see `open_own`.

    Raises:
        UnfitFileError: It is not regular, has other names, or belongs to another user.
    """
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise UnfitFileError(kind_of(found.st_mode), path)
    if found.st_nlink > 1:  # none at all is a file that another process has just removed
        raise UnfitFileError("one with other names", path)
    if not is_own(found):
        raise UnfitFileError("another user's", path)


def _make_writable(path: StrPath, folder: Place | None) -> None:
    """Allow its owner to write to a file: a run that was killed may have taken the right away.

    Raises:
        UnfitFileError: It is none to write on.
    """
    with contextlib.suppress(FileNotFoundError):
        descriptor = open_regular(path, folder=folder, follow=False)
        try:
            check_own(descriptor, path)
            with contextlib.suppress(OSError):  # then the next attempt says that it may not
                mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
                set_mode(descriptor, mode | stat.S_IWUSR)
        finally:
            os.close(descriptor)


def _open(
    path: StrPath, flags: int, folder: Place | None, mode: int = 0o666, *, follow: bool
) -> int:
    try:
        return _open_soon(path, flags, mode, folder, follow)
    except IsADirectoryError:
        raise UnfitFileError("a folder", path) from None
    except OSError as error:
        if error.errno in _NO_FILE:
            raise UnfitFileError(_NO_FILE[error.errno], path) from None
        raise


def _open_soon(path: StrPath, flags: int, mode: int, folder: Place | None, follow: bool) -> int:
    """Open a file that another process may have a lease on: a file server, for its clients."""
    end = time.monotonic() + _LEASE
    while True:
        try:
            return open_at(path, flags, mode, folder=folder, follow=follow)
        except BlockingIOError:  # the kernel has asked for the lease; without O_NONBLOCK it waits
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


@contextmanager
def open_folder(path: StrPath) -> Iterator[Place]:
    """Hold a folder open, so that what is opened relative to it is in this very folder.

    Raises:
        UnfitFileError: It is a symbolic link that another user has put there.
        NotADirectoryError: It is no folder.
    """
    follow = os.path.islink(path)
    if follow and not is_trusted_link(path):
        raise UnfitFileError("a symbolic link of another user", path)
    place = open_place(path, follow=follow)
    try:
        yield place
    finally:
        close_place(place)


@contextmanager
def open_listed(path: StrPath) -> Iterator[Place]:
    """Hold a folder open to list it and to remove what is in it; a link to one is an OSError."""
    place = open_place(path, follow=False, listed=True)
    try:
        yield place
    finally:
        close_place(place)


@contextmanager
def open_folder_of(
    root: StrPath, name: str, *, make: bool = False, folder: Place | None = None
) -> Iterator[tuple[Place, str]]:
    """Hold the folder of a file below a root open, none of which below the root is a link.

    Args:
        root: The root, which may be a link itself.
        name: The file's path below it, with slashes.
        make: Make the folders that are missing.
        folder: The open folder that a relative root begins at.

    Yields:
        The folder, and the name of the file in it.

    Raises:
        FileNotFoundError: A folder is missing.
        UnfitFileError: Something else bears the name of one.
    """
    *folders, last = name.split("/")
    here = open_place(root, folder=folder)
    try:
        path = os.fspath(root)
        for part in folders:
            path = os.path.join(path, part)
            below = _open_below(here, part, make, path)
            close_place(here)
            here = below
        yield here, last
    finally:
        close_place(here)


def _open_below(folder: Place, part: str, make: bool, path: str) -> Place:
    try:
        if make:
            with contextlib.suppress(FileExistsError):
                make_at(part, folder)
                sync_path(".", folder=folder)
        return open_place(part, folder=folder, follow=False)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        mode = stat_at(part, folder).st_mode
        raise UnfitFileError(kind_of(mode), path) from None


def is_trusted_link(path: StrPath) -> bool:
    """Whether a symbolic link was made by this user, by root, or by the owner of its folder.

    These may have put a part of a store elsewhere, onto another disk say. The kernel follows links
    in shared folders by the same rule (``fs.protected_symlinks``).
    """
    trusted = {0, user(), os.stat(Path(path).parent).st_uid}
    return os.lstat(path).st_uid in trusted


def sync_path(path: StrPath, *, folder: Place | None = None) -> None:
    """Make durable what a file holds, or the names in a folder; see `sync_open`.

    A relative path begins at an open ``folder``, if one is given.
    """
    try:
        descriptor = open_at(path, FLUSHED, folder=folder)
    except OSError as error:  # a folder that may be written and not be listed, say
        if error.errno in LACKING and stat.S_ISDIR(stat_at(path, folder, follow=True).st_mode):
            return
        raise
    try:
        sync_open(descriptor)
    finally:
        os.close(descriptor)


def sync_open(descriptor: int) -> None:
    """Make durable what an open file holds, as far as its file system can.

    Some file systems cannot flush folders (CIFS, many of FUSE), and a few cannot flush at all: what
    is written there survives a crash of the machine if the file system sees to it. `diagnose` says
    so of a folder.
    """
    try:
        if sys.platform == "darwin":  # where fsync alone stops at the drive's own cache
            import fcntl

            with contextlib.suppress(OSError):  # not every file system there has it
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
                return
        os.fsync(descriptor)
    except OSError as error:
        os.fstat(descriptor)  # one that is closed is a mistake of ours, not of a file system
        if error.errno not in LACKING:
            raise
