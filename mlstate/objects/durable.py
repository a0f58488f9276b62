"""Files that are complete and durable before they get their names.

A unique temporary, read-only for all others from the start, is written and hashed as it is written,
flushed to the disk, and published under its name. A crash at any point leaves the name as it was,
or complete.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from threading import Lock
from types import TracebackType

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError, IntegrityError
from mlstate.files import (
    ABSENT,
    LACKING,
    UnfitFileError,
    is_trusted_link,
    kind_of,
    open_listed,
    open_regular,
    read_file,
    sync_open,
    sync_path,
)
from mlstate.format import layout
from mlstate.locks import try_lock, unlock
from mlstate.objects.mapped import libc, write_hashed
from mlstate.system import LINUX, OPEN_FILES_MOVE, WINDOWS, open_at, replace, set_mode, user

__all__ = [
    "SMALL",
    "NewFile",
    "Publish",
    "check_no_foreign_link",
    "check_written",
    "create_exclusively",
    "make_folders",
    "move_to_trash",
    "read_small",
    "rename_exclusively",
    "seal",
    "share",
    "sync_open",
    "sync_path",
    "try_lock",
    "unlock",
    "write_file",
    "write_in_store",
    "write_over",
]

SMALL = 16 << 20
"""The largest text of a store that is read, in bytes: a state file, the settings."""

StrPath = str | os.PathLike[str]


class Publish(Enum):
    """How a complete temporary gets its name."""

    REPLACE = "replace"
    """By rename: whatever bears the name is replaced."""
    CREATE = "create"
    """Exclusively: of several writers one wins, and what bears the name stays."""


_CLOSED, _MOVING = -1, -2


class NewFile:
    """A file in the making; one that was not published is removed when the context ends.

    Every method raises an OSError if the disk is full, a folder is not writable, and the like.

    Args:
        temporary: A name that no one else uses, on the file system of the file's own name.
        read_only: Take away the right to write, so that no tool edits the file in place.
        private: Nobody but this user may read or write it, wherever it is.
    """

    def __init__(
        self, temporary: StrPath, *, read_only: bool = True, private: bool = False
    ) -> None:
        self._path = temporary
        self._read_only = read_only
        self._private = private
        self._named = False
        self._lock = Lock()
        self.descriptor = _CLOSED
        self.size = 0
        try:
            mode = 0o444 if read_only else 0o666
            self.descriptor = _open_new(temporary, mode & 0o600 if private else mode)
            if not private:
                share(self.descriptor, os.path.dirname(temporary) or ".")
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
        """Write the content, part after part; returns its digest. ``devices``: as for `may_map`."""
        with self._naming_it():
            digest, self.size = write_hashed(self.descriptor, parts, devices)
        return digest

    def flush(self) -> None:
        """Make it durable."""
        with self._naming_it():
            sync_open(self.descriptor)

    @contextlib.contextmanager
    def _naming_it(self) -> Iterator[None]:
        """An error of the system says in which folder it is: of several disks one is full."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or os.path.dirname(self._path)
            raise

    def publish(self, target: StrPath, how: Publish = Publish.REPLACE) -> bool:
        """Give it its name; returns False if `how` is CREATE and the name is taken.

        Raises:
            FileNotFoundError: The folder is not there.
        """
        if how is Publish.CREATE:
            self._let_move()
            return create_exclusively(self._path, target)
        self._take_rights(target)
        self._let_move()
        replace(self._path, target)
        self._named = True
        return True

    def exchange(self, target: StrPath, old: bytes) -> bool:
        """Give it the name of a file with a certain content; returns False if that has another.

        Raises:
            IntegrityError: See `write_over`.
        """
        self._take_rights(target)
        try:
            _exchange(self._path, target)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno not in LACKING:
                raise
            return self.publish(target)
        if _content(self._path) == old:
            return True  # and what was replaced is removed with the name of the temporary
        _exchange(self._path, target)  # what came out was written since the last look
        if os.path.samestat(os.fstat(self.descriptor), os.lstat(self._path)):
            return False
        self._named = True  # it is not ours to remove
        raise IntegrityError(
            "several processes wrote a file at the same moment",
            path=target,
            found=f"what one of them wrote is in {os.fspath(self._path)}",
            remedy="compare the two files",
        )

    def _take_rights(self, target: StrPath) -> None:
        """Take the rights of the file that is replaced, if it is one that people edit."""
        if self._read_only or self._private:
            return
        with contextlib.suppress(OSError):  # none is there, or there are no rights here
            found = os.lstat(target).st_mode
            if stat.S_ISREG(found):
                set_mode(self.descriptor, found & 0o666)

    def close(self) -> None:
        """Close it, and remove it unless it was published; once more does nothing."""
        with self._lock:
            descriptor, self.descriptor = self.descriptor, _CLOSED
        if descriptor == _CLOSED:
            return
        try:
            if descriptor != _MOVING:
                os.close(descriptor)
        finally:
            self._remove()

    def _let_move(self) -> None:
        """Close it before it gets its name, where an open file cannot be renamed."""
        if not OPEN_FILES_MOVE:
            with self._lock:
                descriptor, self.descriptor = self.descriptor, _MOVING
            os.close(descriptor)

    def _remove(self) -> None:
        if not self._named:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)


def _open_new(path: StrPath, mode: int = 0o666) -> int:
    # Less the umask, which the kernel applies: a group can share a store. (mkstemp's 0600 would
    # lock the group out, and asking for the umask means changing it for all threads.) Who makes
    # a file may write to it through this descriptor, whatever its mode.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    try:
        return open_at(path, flags, mode)
    except OSError as error:
        if mode & stat.S_IWUSR or error.errno not in LACKING:
            raise
    # Some file systems (WSL, CIFS) make such a file, and then refuse to open it to write.
    with contextlib.suppress(OSError):
        os.unlink(path)
    return open_at(path, flags, mode | stat.S_IWUSR)


_SHARED = stat.S_ISGID | stat.S_IWGRP


def share(descriptor: int, folder: StrPath, rights: int = stat.S_IRGRP) -> None:
    """Give the group of a shared folder its rights on a new file or folder, whatever the umask.

    A folder is shared if it passes its group on (setgid) and the group may write into it. One
    member with a umask of 077 would otherwise lock all others out of what they share. (git does so
    where ``core.sharedRepository`` is set.)

    Args:
        descriptor: The file or folder, open; nothing happens to another user's.
        folder: The folder that it is in.
        rights: What the group may do with it.
    """
    if os.stat(folder).st_mode & _SHARED != _SHARED:
        return
    found = os.fstat(descriptor)
    if found.st_mode & rights != rights and found.st_uid == user():
        with contextlib.suppress(OSError):  # a file system without rights
            set_mode(descriptor, stat.S_IMODE(found.st_mode) | rights)


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

    Arguments and result are those of `write_file`. The file's ``name`` has slashes; all folders
    are made, the store's own ``root``, too.
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
    """Write a file, whole or not at all, into a folder that is there.

    Args:
        target: The file.
        parts: The content, one part after the other.
        temporary: As for `NewFile`, as is ``read_only``.
        publish: What to do about a file that bears the name.
        digest: The digest that the content must have, where that matters.
        sync_parent: Flush the folder of the file, too.
        read_only: See `NewFile`.

    Returns:
        False if `publish` is CREATE and the name is taken; True otherwise.

    Raises:
        IntegrityError: The content has another digest: it changed while it was written.
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


def write_over(
    target: Path,
    old: bytes | None,
    parts: Iterable[Bytes],
    *,
    temporary: Path,
    read_only: bool = True,
    private: bool = False,
    sync_parent: bool = True,
) -> bool:
    """Write a file over exactly the content that it was made from: compare and swap.

    Whoever was stopped between reading and writing, for minutes say, overwrites nothing that others
    wrote meanwhile: no lock is needed for that. Where the system cannot exchange two files, this
    holds but for the moment between a last look and the rename. Of three at the same moment nobody
    could tell whose content was the last: where that may be they take turns, by `locked_folder`.

    Args:
        target: The file, in a folder that is there.
        old: What it held when it was read; None: it was not there.
        parts: The new content.
        temporary: As for `NewFile`, as are ``read_only`` and ``private``.
        read_only: See `NewFile`.
        private: See `NewFile`.
        sync_parent: Flush the folder of the file, too.

    Returns:
        False if the file holds something else now; it stays as it is.

    Raises:
        IntegrityError: Three wrote at the same moment, and what one of them wrote is beside it.
    """
    with NewFile(temporary, read_only=read_only, private=private) as file:
        file.write(parts)
        file.flush()
        if old is None:
            written = file.publish(target, Publish.CREATE)
        else:
            written = _content(target) == old and file.exchange(target, old)
    if written and sync_parent:
        sync_path(target.parent)
    return written


def _content(path: StrPath) -> bytes | None:
    """The content of a file, not of what a link names; None if there is no such file."""
    try:
        descriptor = open_regular(path, follow=False)
    except (FileNotFoundError, UnfitFileError):
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def check_written(found: Digest, expected: Digest, target: str | Path) -> None:
    """Refuse, by an IntegrityError, bytes that changed while they were written."""
    if found != expected:
        raise IntegrityError(
            "the bytes changed while they were written; nothing was stored under their name",
            path=target,
            expected=expected,
            found=found,
            remedy="do not modify the tensors while they are saved",
        )


def read_small(path: Path, error: type[FormatError] = FormatError) -> bytes:
    """Read a text of a store, whatever is in its place.

    Raises:
        FileNotFoundError: It is not there.
        FormatError: It is no file, a link that leads nowhere, or too large; of the type ``error``.
    """
    try:
        return read_file(path, SMALL)
    except FileNotFoundError:
        if path.is_symlink():
            raise error("a link leads nowhere", path=path, found=os.readlink(path)) from None
        raise
    except UnfitFileError as unfit:
        raise error(
            "this is no text of a store",
            path=path,
            expected=f"a file of at most {SMALL} bytes",
            found=unfit.found,
        ) from None


def make_folders(root: Path, folder: Path, *, sync: bool = True) -> None:
    """Make a folder of a store and its parents, each durable in the one that holds it.

    The store's own ``root`` is made durable always, those below it if ``sync`` says so.

    Raises:
        FormatError: Something else is in the place of one, a link that another user made say.
    """
    if folder == root:
        if not folder.is_dir():
            _make_root(root)
            sync_path(root.parent)
        return
    for above in folder.relative_to(root).parents[:-1]:
        _check_own_folder(root / above)
    try:  # without a look first: most that are asked for are new, or there is nothing to do
        os.mkdir(folder)
    except FileExistsError:
        _check_own_folder(folder)
        return
    except FileNotFoundError:
        make_folders(root, folder.parent, sync=sync)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
    except OSError as error:
        if error.errno in ABSENT:
            make_folders(root, folder.parent, sync=sync)  # which says what is in the way
        elif folder.is_dir():  # a network's server may refuse before it looks what is there
            return
        raise
    _share_folder(folder)
    if sync:
        sync_path(folder.parent)


def _make_root(folder: Path) -> None:
    """Make a folder and all above it that are missing; what is there already is no error."""
    if not folder.parent.is_dir():
        _make_root(folder.parent)
    folder.mkdir(exist_ok=True)
    _share_folder(folder)


def _share_folder(folder: Path) -> None:
    """Share a new folder as the one that it is in; see `share`."""
    if os.stat(folder.parent).st_mode & _SHARED != _SHARED:
        return
    with (
        contextlib.suppress(OSError),  # it was replaced, say: then it is not ours to share
        open_listed(folder) as place,
    ):
        if isinstance(place, int):
            share(place, folder.parent, stat.S_IRWXG | stat.S_ISGID)


def _check_own_folder(folder: Path) -> None:
    """Refuse, by a FormatError, what has the name of a store's folder and is none to write into."""
    with contextlib.suppress(FileNotFoundError):  # it was removed just now
        mode = os.lstat(folder).st_mode
        if stat.S_ISDIR(mode) or (
            stat.S_ISLNK(mode) and folder.is_dir() and is_trusted_link(folder)
        ):
            return
        raise FormatError(
            "this is no folder that a store may write into",
            path=folder,
            expected="a folder",
            found=kind_of(mode),
            remedy="move it out of the way",
        )


def check_no_foreign_link(folder: Path) -> None:
    """Refuse, by a FormatError, a link that another user has put in the place of a folder."""
    with contextlib.suppress(FileNotFoundError):
        if folder.is_symlink() and not is_trusted_link(folder):
            _check_own_folder(folder)


def move_to_trash(root: Path, path: Path) -> None:
    """Move what is in the way of an object, or of a folder of objects, to a store's trash/."""
    trash = root / layout.TRASH
    make_folders(root, trash)
    with contextlib.suppress(FileNotFoundError):
        name = "".join(path.relative_to(root / layout.OBJECTS).parts)
        os.rename(path, trash / f"{name}{layout.DAMAGED_SUFFIX}.{uuid.uuid4().hex}")


def seal(descriptor: int, folder: StrPath, *, sync: bool) -> None:
    """Make a complete file of a folder read-only, where files have rights, and shared with it.

    With ``sync`` it is made durable, too.
    """
    with contextlib.suppress(OSError):
        set_mode(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) & ~0o222)
    share(descriptor, folder)
    if sync:
        sync_open(descriptor)


def create_exclusively(temporary: StrPath, target: StrPath) -> bool:
    """Give a file a name that must be free, by the first of three ways that works here.

    The old name may stay; its owner removes it. Returns False if the name is taken.
    """
    for way in (os.link, rename_exclusively, _claim_and_rename):
        try:
            way(temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in LACKING or way is _claim_and_rename:
                raise
        else:
            break
    return True


def rename_exclusively(temporary: StrPath, target: StrPath) -> None:
    """Rename a file by RENAME_NOREPLACE, which Python does not offer; Windows does no other way.

    A taken name is a FileExistsError. Another OSError says that this system cannot.
    """
    if WINDOWS:
        os.rename(temporary, target)
        return
    _renameat2(temporary, target, 1)


def _exchange(first: StrPath, second: StrPath) -> None:
    """Exchange two files by RENAME_EXCHANGE; raises as `rename_exclusively`."""
    _renameat2(first, second, 2)


def _renameat2(source: StrPath, target: StrPath, flags: int) -> None:
    renameat2 = getattr(libc(), "renameat2", None) if LINUX else None
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    at_cwd = -100
    if renameat2(at_cwd, os.fsencode(source), at_cwd, os.fsencode(target), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


def _claim_and_rename(temporary: StrPath, target: StrPath) -> None:
    """Claim the name with an empty file, then replace that: who claims first wins.

    The last resort: a crash in between leaves the empty file, which is then a damaged one.
    """
    os.close(_open_new(target))
    try:
        replace(temporary, target)
    except BaseException:
        os.unlink(target)
        raise
