"""A file that is complete and durable before it gets its name.

A unique temporary, read-only for all others from the start, is written and hashed as it is written,
flushed to the disk, and published under its name. A crash at any point leaves the name as it was,
or complete.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from threading import Lock
from types import TracebackType

from mlstate.digests import Bytes, Digest
from mlstate.objects.mapped import libc, write_hashed

__all__ = ["NewFile", "Publish", "create_exclusively", "rename_exclusively", "seal", "sync_path"]

StrPath = str | os.PathLike[str]


class Publish(Enum):
    """How a complete temporary gets its name."""

    REPLACE = "replace"
    """By rename: whatever bears the name is replaced."""
    CREATE = "create"
    """Exclusively: of several writers one wins, and what bears the name stays."""


class NewFile:
    """A file in the making; one that was not published is removed when the context ends.

    Args:
        temporary: A name that no one else uses, on the file system of the file's own name.
        read_only: Take away the right to write, so that no tool edits the file in place.

    Attributes:
        size: The bytes that were written.

    Raises:
        OSError: The disk is full, a folder is not writable, and the like; by each method, too.
    """

    def __init__(self, temporary: StrPath, *, read_only: bool = True) -> None:
        self._path = temporary
        self._descriptor = -1
        self._named = False
        self._lock = Lock()
        self.size = 0
        try:
            self._descriptor = _open_new(temporary, 0o444 if read_only else 0o666)
        except KeyboardInterrupt:  # it may have been made already
            self._remove()
            raise

    def __del__(self) -> None:
        """Ctrl-C can come before a ``with`` has it."""
        self.close()

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, parts: Iterable[Bytes], devices: dict[int, bool] | None = None) -> Digest:
        """Write the content, one part after the other, and give its digest.

        Args:
            parts: The content.
            devices: As for `may_map`.
        """
        digest, self.size = write_hashed(self._descriptor, parts, devices)
        return digest

    def flush(self) -> None:
        """Make it durable."""
        _sync(self._descriptor)

    def publish(self, target: StrPath, how: Publish = Publish.REPLACE) -> bool:
        """Give it its name.

        Args:
            target: The name.
            how: What to do about a file that bears the name.

        Returns:
            False if `how` is CREATE and the name is taken; True otherwise.

        Raises:
            FileNotFoundError: The folder is not there.
        """
        if how is Publish.CREATE:
            return create_exclusively(self._path, target)
        os.replace(self._path, target)
        self._named = True
        return True

    def close(self) -> None:
        """Let go of it; once more does nothing."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        try:
            os.close(descriptor)
        finally:
            self._remove()

    def _remove(self) -> None:
        if not self._named:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)


def _open_new(path: StrPath, mode: int = 0o666) -> int:
    # Less the umask, which the kernel applies: a group can share a store. (mkstemp's 0600 would
    # lock the group out, and asking for the umask means changing it for all threads.) Who makes
    # a file may write to it through this descriptor, whatever its mode.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)


def seal(descriptor: int, *, sync: bool) -> None:
    """Make a complete file read-only, and durable if that is asked for."""
    os.fchmod(descriptor, os.fstat(descriptor).st_mode & 0o7777 & ~0o222)
    if sync:
        _sync(descriptor)


def create_exclusively(temporary: StrPath, target: StrPath) -> bool:
    """Give a file a name that must be free, by the first of three ways that works here.

    The old name may stay; whose it is removes it.

    Returns:
        False if the name is taken; what bears it stays as it is.
    """
    for way in (os.link, rename_exclusively, _claim_and_rename):
        try:
            way(temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _UNSUPPORTED or way is _claim_and_rename:
                raise
        else:
            break
    return True


_UNSUPPORTED = {errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EMLINK, errno.EACCES}


def rename_exclusively(temporary: StrPath, target: StrPath) -> None:
    """Rename a file to a name that must be free: RENAME_NOREPLACE, which Python does not offer.

    Raises:
        FileExistsError: The name is taken.
        OSError: This system or file system cannot.
    """
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    renameat2 = getattr(libc(), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    at_cwd, no_replace = -100, 1
    if renameat2(at_cwd, os.fsencode(temporary), at_cwd, os.fsencode(target), no_replace):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


def _claim_and_rename(temporary: StrPath, target: StrPath) -> None:
    """Claim the name with an empty file, then replace that: who claims first wins.

    The last resort: a crash in between leaves the empty file, which is then a damaged one.
    """
    os.close(_open_new(target))
    try:
        os.replace(temporary, target)
    except BaseException:
        os.unlink(target)
        raise


def sync_path(path: Path) -> None:
    """Make durable what a file holds, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    if sys.platform == "darwin":  # where fsync alone stops at the drive's own cache
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)
