"""Objects that arrive piece by piece into a folder: hashed as they come, written once.

`Arriving` takes an object from front to back. `Partial` takes a large one in any order and goes on
where an earlier process was stopped. Both publish only what has the digest that was asked for;
where nobody knows it yet, the object is *staged*: complete in tmp/, under a name by which a later
run finds it, until somebody decides.
"""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlstate.claims import Claims
from mlstate.digests import Bytes, Digest, Hasher
from mlstate.errors import FormatError, IntegrityError
from mlstate.files import UnfitFileError, open_regular
from mlstate.format import layout
from mlstate.objects.durable import (
    NewFile,
    make_folders,
    move_to_trash,
    seal,
    sync_open,
    sync_path,
)
from mlstate.objects.folder import FolderObjectStore, prepare_folder
from mlstate.objects.mapped import write_all
from mlstate.objects.partial import Partial
from mlstate.system import replace

__all__ = ["Arriving", "Receiver", "Staged", "check_arrived"]


@dataclass(frozen=True)
class Staged:
    """A complete object in tmp/, its digest, and which file it is, to notice another."""

    path: Path
    digest: Digest
    which: tuple[int, ...]

    def discard(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)


class Receiver:
    """Takes objects that arrive into a store's folder, which is made if it is missing.

    With ``durable`` every object is flushed to the disk before it gets its name. What is no object
    and has no name may be put into the folder ``temporaries``. ``job`` stands for what is done: a
    later run of the same finds what this one had no use for.

    Attributes:
        claims: What this run brings, for other runs that need the same; close it at the end.
        deferred: What others were bringing when this run came to it.
    """

    def __init__(
        self, store: FolderObjectStore, *, durable: bool = True, job: str | None = None
    ) -> None:
        self.store = store
        self.durable = durable
        self._job = Digest.of(f"unsure\n{job or uuid.uuid4().hex}".encode())[:32]
        prepare_folder(store.root)
        self.temporaries = store.root / layout.TEMPORARIES
        make_folders(store.root, self.temporaries)
        self._touched: set[Path] = set()
        self.published: set[Digest] = set()  # a pruning may have taken some since
        self.claims = Claims(self.temporaries / layout.CLAIMS)
        self.deferred: dict[Digest, int | None] = {}

    @contextmanager
    def arriving(self) -> Iterator[Arriving]:
        """An object that comes from front to back; what is not finished within is removed."""
        with NewFile(self.temporaries / uuid.uuid4().hex) as file:
            yield Arriving(self, file)

    def claim(self, digest: Digest, size: int | None) -> bool:
        """Begin to bring an object, of this size if it is known; give the claim back afterwards.

        False if another process is bringing it, which is noted, or has brought it by now.
        """
        if not self.claims.take(digest):
            self.deferred[digest] = size
            return False
        if self.has(digest, size):
            self.claims.give(digest)
            return False
        return True

    def has(self, digest: Digest, size: int | None) -> bool:
        """Whether an object is there, of this size if it is known."""
        found = self.store.size(digest)
        return found is not None and size in (None, found)

    def partial(self, name: str, size: int) -> Partial:
        """A large object that comes in any order, and is found again by 64 hex digits."""
        return Partial(self.temporaries, name, size)

    def unsure_name(self, text: str) -> Digest:
        """The name, for `partial` or `staged`, of what no later run may use.

        Nobody could tell whether it is right: it may be of another version of the same file.
        """
        return Digest(f"{self._job}{Digest.of(text.encode())[:32]}")

    def remove_unsure(self) -> None:
        """Remove what this job, or one of its earlier runs, has left under unsure names."""
        for path in self.temporaries.glob(f"{self._job}*"):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
                path.unlink()

    def remove_partial(self, name: str) -> None:
        """Remove what is here of a large object, which comes in another way."""
        for suffix in (layout.PARTIAL_SUFFIX, f"{layout.PARTIAL_SUFFIX}{layout.DONE_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
                (self.temporaries / f"{name}{suffix}").unlink()

    def place(self, digest: Digest) -> Path:
        """The path of an object, in a folder that is there.

        What is no file and in the way, or no folder where one belongs, is moved to trash/.
        """
        target, root = self.store.path(digest), self.store.root
        self.published.add(digest)
        if target.parent not in self._touched:
            try:
                make_folders(root, target.parent, sync=False)  # `flush` does it, once
            except FormatError:
                move_to_trash(root, target.parent)
                make_folders(root, target.parent, sync=False)
            self._touched.add(target.parent)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(target.lstat().st_mode):
                move_to_trash(root, target)
        return target

    def staged_path(self, name: str) -> Path:
        """The path of a staged object."""
        return self.temporaries / f"{name}{layout.STAGED_SUFFIX}"

    def free_for_staging(self, name: str) -> Path:
        """The path to stage an object at: a private one if a folder is in the way of its own."""
        path = self.staged_path(name)
        if path.is_dir() and not path.is_symlink():
            return self.staged_path(uuid.uuid4().hex * 2)
        return path

    def staged(self, name: str, size: int) -> Staged | None:
        """An object that an earlier run staged under a name, read again for its digest."""
        path = self.staged_path(name)
        try:
            with _opened(path) as file:
                found = os.fstat(file.fileno())
                if found.st_size != size or found.st_nlink > 1:
                    return None
                return Staged(path, _digest_of(file), _which(found))
        except (FileNotFoundError, PermissionError, UnfitFileError):
            return None

    def sync_staged(self, staged: Staged) -> None:
        """Flush a staged object to the disk: the slow part of publishing it.

        Raises:
            IntegrityError: Another process, which did not wait for this one, took it away or put
                other bytes in its place.
        """
        try:
            with _opened(staged.path) as file:
                if _which(os.fstat(file.fileno())) != staged.which:
                    check_arrived(_digest_of(file), staged.digest)
                if self.durable:
                    sync_open(file.fileno())
        except (FileNotFoundError, UnfitFileError):
            self._check_published(staged)

    def publish_staged(self, staged: Staged) -> None:
        """Give a staged object the name of its digest; IntegrityError if it was taken away."""
        try:
            replace(staged.path, self.place(staged.digest))
        except FileNotFoundError:
            self._check_published(staged)

    def publish_partial(self, partial: Partial, digest: Digest) -> None:
        """Give a complete partial object the name of its digest."""
        seal(partial.descriptor, self.temporaries, sync=self.durable)
        partial.move(self.place(digest))

    def stage_partial(self, partial: Partial, name: str, digest: Digest) -> Staged:
        """Keep a complete partial object under a name for a later decision."""
        seal(partial.descriptor, self.temporaries, sync=False)
        which = _which(os.fstat(partial.descriptor))
        path = self.free_for_staging(name)
        partial.move(path)
        return Staged(path, digest, which)

    def flush(self) -> None:
        """Make the names of all that was published durable."""
        touched, self._touched = self._touched, set()
        if self.durable and touched:
            above = {folder.parent for folder in touched} | {self.store.root}
            for folder in (*sorted(touched), *sorted(above, reverse=True)):
                sync_path(folder)

    def _check_published(self, staged: Staged) -> None:
        """Accept that another process was faster, where locks do not work."""
        if self.store.size(staged.digest) is None:
            raise IntegrityError("what came was removed before it was complete", path=staged.path)


class Arriving:
    """One object, from front to back, made by `Receiver.arriving`; ``size`` counts its bytes."""

    def __init__(self, receiver: Receiver, file: NewFile) -> None:
        self._receiver = receiver
        self._file = file
        self._hasher = Hasher()
        self.size = 0

    def write(self, data: Bytes) -> None:
        """Take the next bytes."""
        view = memoryview(data).cast("B")
        self._hasher.update(view)
        write_all(self._file.descriptor, view)
        self.size += len(view)

    def fill(self, chunks: Iterator[Bytes]) -> None:
        """Take all that comes."""
        for chunk in chunks:
            self.write(chunk)

    def publish(self, expected: Digest | None) -> Digest:
        """Publish the object, all of which is there, and return its digest.

        Raises:
            IntegrityError: Another digest is expected; nothing was stored.
        """
        found = self._hasher.digest()
        check_arrived(found, expected or found)
        if self._receiver.durable:
            self._file.flush()
        self._file.publish(self._receiver.place(found))
        return found

    def stage(self, name: str) -> Staged:
        """Keep the complete object in tmp/ under 64 hex digits, by which a later run finds it."""
        path = self._receiver.free_for_staging(name)
        staged = Staged(path, self._hasher.digest(), _which(os.fstat(self._file.descriptor)))
        self._file.publish(path)
        return staged


def check_arrived(found: Digest, expected: Digest) -> None:
    """Refuse, by an IntegrityError, bytes that came with another digest than was asked for."""
    if found != expected:
        raise IntegrityError(
            "wrong bytes came; nothing of them was stored", expected=expected, found=found
        )


def _which(found: os.stat_result) -> tuple[int, ...]:
    """Which file this is: another in its place may get the same inode, but later."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _opened(path: Path) -> BinaryIO:
    """A file that lies under a name itself, not where a link there leads."""
    return os.fdopen(open_regular(path, follow=False), "rb", buffering=0)


def _digest_of(file: BinaryIO) -> Digest:
    hasher = Hasher()
    while piece := file.read(1 << 20):
        hasher.update(piece)
    return hasher.digest()
