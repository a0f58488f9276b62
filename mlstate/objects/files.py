"""The one way to write a file: complete, durable, with the modes that the umask gives, or not.

A new file (`NewFile`) gets its name when it is complete and durable; then its folder is flushed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from collections.abc import Iterable
from pathlib import Path

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError, IntegrityError
from mlstate.format import layout
from mlstate.objects.durable import NewFile, Publish, sync_path

__all__ = ["check_written", "make_folders", "read_small", "write_file", "write_in_store"]

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
    with NewFile(temporary, read_only=read_only) as file:
        found = file.write(parts)
        if digest is not None:
            check_written(found, digest, target)
        file.flush()
        if not file.publish(target, publish):
            return False
    if sync_parent:
        sync_path(target.parent)
    return True


def check_written(found: Digest, expected: Digest, target: str | Path) -> None:
    """Refuse bytes that became others on their way.

    Raises:
        IntegrityError: They have.
    """
    if found != expected:
        raise IntegrityError(
            "the bytes changed while they were written; nothing was stored under their name",
            path=target,
            expected=expected,
            found=found,
            remedy="do not modify the tensors while they are saved",
        )


def make_folders(root: Path, folder: Path, *, sync: bool = True) -> None:
    """Make a folder of a store and its parents, each durable in the one that holds it.

    Args:
        root: The store's folder; made with its own parents if it is missing, durable always.
        folder: A folder below it, or itself.
        sync: Make those below the root durable; who makes many flushes those above them later.
    """
    if folder == root:
        if not folder.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            sync_path(root.parent)
        return
    try:  # without a look first: most that are asked for are new, or there is nothing to do
        os.mkdir(folder)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_folders(root, folder.parent, sync=sync)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
    except OSError:  # a network's server may refuse before it looks whether the folder is there
        if folder.is_dir():
            return
        raise
    if sync:
        sync_path(folder.parent)
