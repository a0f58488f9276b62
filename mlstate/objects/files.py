"""The one way to write a file: complete, durable, with the modes that the umask gives, or not.

A unique temporary in tmp/ is written and hashed as it is written, made read-only, flushed to the
disk, published under its name, and the folder flushed. A crash at any point leaves the name as it
was, or complete.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
import uuid
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path

from mlstate.digests import Bytes, Digest, Hasher
from mlstate.errors import FormatError, IntegrityError
from mlstate.format import layout
from mlstate.objects.blocks import private_blocks

__all__ = [
    "Publish",
    "create_exclusively",
    "make_folders",
    "read_small",
    "rename_exclusively",
    "seal",
    "sync_path",
    "temporary_file",
    "write_all",
    "write_file",
    "write_in_store",
]

SMALL = 16 << 20
"""The largest text of a store that is read, in bytes: a state file, the settings."""


def read_small(path: Path, error: type[FormatError] = FormatError) -> bytes:
    """Read a text of a store, whatever is in its place.

    Args:
        path: The file.
        error: What to raise if it cannot be such a text.

    Raises:
        FileNotFoundError: It is not there.
        FormatError: It is no file, a link that leads nowhere, or too large.
    """
    try:
        # Without waiting for a writer, should a pipe be in its place.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if path.is_symlink():
            raise error("a link leads nowhere", path=path, found=os.readlink(path)) from None
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size > SMALL:
        os.close(descriptor)
        raise error(
            "this is no text of a store",
            path=path,
            expected=f"a file of at most {SMALL} bytes",
            found=f"{stat.filemode(found.st_mode)}, {found.st_size} bytes",
        )
    with os.fdopen(descriptor, "rb") as file:
        return file.read(SMALL)


class Publish(Enum):
    """How a complete temporary gets its name."""

    REPLACE = "replace"
    """By rename: whatever bears the name is replaced."""
    CREATE = "create"
    """Exclusively: of several writers one wins, and what bears the name stays."""


def write_in_store(
    root: Path,
    name: str,
    parts: Iterable[Bytes],
    *,
    publish: Publish = Publish.REPLACE,
    digest: Digest | None = None,
    sync_parent: bool = True,
) -> bool:
    """Write a read-only file of a store, by way of the store's tmp/.

    Args:
        root: The store's folder; made if it is missing.
        name: The path of the file below it, with slashes; its folders are made.
        parts: As for `write_file`.
        publish: As for `write_file`.
        digest: As for `write_file`.
        sync_parent: As for `write_file`, and for the folders that are made.

    Returns:
        As `write_file`.
    """
    target = root / name
    temporaries = root / layout.TEMPORARIES
    make_folders(root, target.parent, sync=sync_parent)
    make_folders(root, temporaries)
    written = write_file(
        target,
        parts,
        temporary=temporaries / uuid.uuid4().hex,
        publish=publish,
        digest=digest,
        sync_parent=sync_parent,
    )
    if written and sync_parent:
        # Those above too: another process may have made a folder and not come as far as this.
        folder = target.parent
        while folder != root:
            folder = folder.parent
            sync_path(folder)
    return written


def write_file(
    target: Path,
    parts: Iterable[Bytes],
    *,
    temporary: Path,
    publish: Publish = Publish.REPLACE,
    digest: Digest | None = None,
    sync_parent: bool = True,
    read_only: bool = True,
) -> bool:
    """Write a file, whole or not at all.

    Args:
        target: The file; its folder is there.
        parts: The content, one part after the other.
        temporary: A name that no one else uses, on the same file system.
        publish: What to do about a file that bears the name.
        digest: What the content must have for a digest, where that matters.
        sync_parent: Flush the folder of the file too; who writes many files flushes it later.
        read_only: Take away the right to write, so that no tool edits the file in place.

    Returns:
        False if `publish` is CREATE and the name is taken; True otherwise.

    Raises:
        IntegrityError: The content has another digest: it changed while it was written.
        OSError: The disk is full, a folder is not writable, and the like. Nothing is left behind.
    """
    with temporary_file(temporary, parts, read_only=read_only) as found:
        if digest is not None and found != digest:
            raise IntegrityError(
                "the bytes changed while they were written; nothing was stored under their name",
                path=target,
                expected=digest,
                found=found,
                remedy="do not modify the tensors while they are saved",
            )
        if publish is Publish.REPLACE:
            os.replace(temporary, target)
        elif not create_exclusively(temporary, target):
            return False
    if sync_parent:
        sync_path(target.parent)
    return True


@contextlib.contextmanager
def temporary_file(
    temporary: Path,
    parts: Iterable[Bytes],
    *,
    read_only: bool = True,
    gate: contextlib.AbstractContextManager[object] | None = None,
) -> Iterator[Digest]:
    """Write a complete and durable temporary, to be renamed; one that is not is removed.

    Args:
        temporary: As for `write_file`.
        parts: As for `write_file`.
        read_only: As for `write_file`.
        gate: Entered while a processor is needed, and left before the disk is waited for.

    Yields:
        The digest of what was written.
    """
    descriptor = _open_new(temporary)
    try:
        yield _fill(descriptor, parts, gate or contextlib.nullcontext(), read_only=read_only)
    finally:
        if os.path.lexists(temporary):  # to look takes no lock of the folder
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _open_new(path: Path) -> int:
    # 0o666 less the umask, which the kernel applies: a group can share a store. (mkstemp's 0600
    # would lock the group out, and asking for the umask means changing it for all threads.)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _fill(
    descriptor: int,
    parts: Iterable[Bytes],
    gate: contextlib.AbstractContextManager[object],
    *,
    read_only: bool,
) -> Digest:
    hasher = Hasher()
    try:
        with gate:
            for block in private_blocks(parts, hasher):
                write_all(descriptor, block)
        if read_only:
            seal(descriptor, sync=True)
        else:
            _sync(descriptor)
    finally:
        os.close(descriptor)
    return hasher.digest()


def seal(descriptor: int, *, sync: bool) -> None:
    """Make a complete file read-only, and durable if that is asked for."""
    os.fchmod(descriptor, os.fstat(descriptor).st_mode & 0o7777 & ~0o222)
    if sync:
        _sync(descriptor)


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all of it, however many calls that takes."""
    while len(data):
        data = data[os.write(descriptor, data) :]


def create_exclusively(temporary: Path, target: Path) -> bool:
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


def rename_exclusively(temporary: Path, target: Path) -> None:
    """Rename a file to a name that must be free: RENAME_NOREPLACE, which Python does not offer.

    Raises:
        FileExistsError: The name is taken.
        OSError: This system or file system cannot.
    """
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    at_cwd, no_replace = -100, 1
    if renameat2(at_cwd, os.fsencode(temporary), at_cwd, os.fsencode(target), no_replace):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


def _claim_and_rename(temporary: Path, target: Path) -> None:
    """Claim the name with an empty file, then replace that: who claims first wins.

    The last resort: a crash in between leaves the empty file, which is then a damaged one.
    """
    os.close(_open_new(target))
    try:
        os.replace(temporary, target)
    except BaseException:
        os.unlink(target)
        raise


def make_folders(root: Path, folder: Path, *, sync: bool = True) -> None:
    """Make a folder of a store and its parents, each durable in the one that holds it.

    Args:
        root: The store's folder; made with its own parents if it is missing, durable always.
        folder: A folder below it, or itself.
        sync: Make those below the root durable; who makes many flushes those above them later.
    """
    if folder.is_dir():
        return
    if folder == root:
        root.mkdir(parents=True, exist_ok=True)
        sync_path(root.parent)
        return
    make_folders(root, folder.parent, sync=sync)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
    if sync:
        sync_path(folder.parent)


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
