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
from pathlib import Path

from mlstate.digests import Bytes, Digest, Hasher
from mlstate.errors import IntegrityError
from mlstate.format import layout
from mlstate.objects.durable import seal, sync_path
from mlstate.objects.files import make_folders
from mlstate.objects.folder import FolderObjectStore, prepare_folder
from mlstate.objects.mapped import write_all
from mlstate.objects.partial import Partial

__all__ = ["Arriving", "Receiver", "Staged"]


class Receiver:
    """Takes objects that arrive into a store's folder.

    Args:
        store: The store; its folder is made if it is none yet.
        durable: Flush every object to the disk before it gets its name.
    """

    def __init__(self, store: FolderObjectStore, *, durable: bool = True) -> None:
        self.store = store
        self.durable = durable
        prepare_folder(store.root)
        self._tmp = store.root / layout.TEMPORARIES
        make_folders(store.root, self._tmp)
        self._touched: set[Path] = set()

    @contextmanager
    def arriving(self) -> Iterator[Arriving]:
        """An object that comes from front to back; what is not finished within is removed."""
        path = self._tmp / uuid.uuid4().hex
        arriving = Arriving(self, path)
        try:
            yield arriving
        finally:
            arriving.close()

    def partial(self, name: str, size: int) -> Partial:
        """A large object that comes in any order.

        Args:
            name: 64 hex digits by which a later run finds it again.
            size: Its size in bytes.
        """
        return Partial(self._tmp, name, size)

    def staged(self, name: str, size: int) -> Staged | None:
        """A complete object that an earlier run staged, read again for its digest.

        Args:
            name: As for `Arriving.stage`.
            size: The size that it must have.
        """
        path = self._staged_path(name)
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode) or found.st_size != size:
                return None
            digest = _digest_of(path)
        except FileNotFoundError:
            return None
        return Staged(path, digest, _which(found))

    def sync_staged(self, staged: Staged) -> None:
        """Do what takes long before `publish_staged`: flush it to the disk.

        Raises:
            IntegrityError: Another process, which did not wait for this one, took it away or put
                other bytes in its place.
        """
        try:
            found = staged.path.stat()
            if _which(found) != staged.which:
                check_arrived(_digest_of(staged.path), staged.digest)
            if self.durable:
                sync_path(staged.path)
        except FileNotFoundError:
            self._check_published(staged)

    def publish_staged(self, staged: Staged) -> None:
        """Give a staged object the name of its digest.

        Raises:
            IntegrityError: Another process took it away.
        """
        try:
            self._publish(staged.path, staged.digest)
        except FileNotFoundError:
            self._check_published(staged)

    def publish(self, path: Path, descriptor: int, digest: Digest) -> None:
        """Give a complete temporary, still open, the name of its digest."""
        seal(descriptor, sync=self.durable)
        self._publish(path, digest)

    def stage(self, path: Path, descriptor: int, name: str, digest: Digest) -> Staged:
        """Keep a complete temporary, still open, under a name for a later decision."""
        seal(descriptor, sync=False)
        target, found = self._staged_path(name), os.fstat(descriptor)
        os.replace(path, target)
        return Staged(target, digest, _which(found))

    def publish_partial(self, partial: Partial, digest: Digest) -> None:
        """Give a complete partial object the name of its digest."""
        self.publish(partial.path, partial.descriptor, digest)
        partial.finished()

    def stage_partial(self, partial: Partial, name: str, digest: Digest) -> Staged:
        """Keep a complete partial object under a name for a later decision."""
        staged = self.stage(partial.path, partial.descriptor, name, digest)
        partial.finished()
        return staged

    def flush(self) -> None:
        """Make the names of all that was published durable."""
        touched, self._touched = self._touched, set()
        if self.durable and touched:
            above = {folder.parent for folder in touched} | {self.store.root}
            for folder in (*sorted(touched), *sorted(above, reverse=True)):
                sync_path(folder)

    def _publish(self, path: Path, digest: Digest) -> None:
        target = self.store.path(digest)
        if target.parent not in self._touched:
            make_folders(self.store.root, target.parent, sync=False)  # `flush` does it, once
            self._touched.add(target.parent)
        os.replace(path, target)

    def _check_published(self, staged: Staged) -> None:
        """Where locks do not work, another process may have been faster."""
        if self.store.size(staged.digest) is None:
            raise IntegrityError("what came was removed before it was complete", path=staged.path)

    def _staged_path(self, name: str) -> Path:
        return self._tmp / f"{name}{layout.STAGED_SUFFIX}"


class Staged:
    """A complete object in tmp/, the digest that its bytes have, and which file it is."""

    def __init__(self, path: Path, digest: Digest, which: tuple[int, ...]) -> None:
        self.path = path
        self.digest = digest
        self.which = which

    def discard(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)


class Arriving:
    """One object, from front to back; made by `Receiver.arriving`.

    Attributes:
        size: The bytes that have come.
    """

    def __init__(self, receiver: Receiver, path: Path) -> None:
        self._receiver = receiver
        self._path = path
        self._hasher = Hasher()
        self.size = 0
        self._unnamed = True
        self._descriptor: int | None = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666
        )

    def write(self, data: Bytes) -> None:
        """Take the next bytes."""
        assert self._descriptor is not None
        view = memoryview(data).cast("B")
        self._hasher.update(view)
        write_all(self._descriptor, view)
        self.size += len(view)

    def publish(self, expected: Digest | None) -> Digest:
        """All is there: publish it, if it is what it should be.

        Args:
            expected: Its digest; None if it is what it is.

        Returns:
            Its digest.

        Raises:
            IntegrityError: It has another digest; nothing was stored.
        """
        assert self._descriptor is not None
        found = self._hasher.digest()
        check_arrived(found, expected or found)
        self._receiver.publish(self._path, self._descriptor, found)
        self._unnamed = False
        return found

    def stage(self, name: str) -> Staged:
        """All is there, and its digest is nobody's expectation yet: keep it in tmp/.

        Args:
            name: 64 hex digits by which a later run finds it.
        """
        assert self._descriptor is not None
        digest = self._hasher.digest()
        staged = self._receiver.stage(self._path, self._descriptor, name, digest)
        self._unnamed = False
        return staged

    def close(self) -> None:
        """Let go of the file; remove it if it was neither published nor staged."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
            if self._unnamed:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)


def check_arrived(found: Digest, expected: Digest) -> None:
    """Refuse what arrived with another digest than was asked for.

    Raises:
        IntegrityError: It has.
    """
    if found != expected:
        raise IntegrityError(
            "wrong bytes came; nothing of them was stored", expected=expected, found=found
        )


def _which(found: os.stat_result) -> tuple[int, ...]:
    """Which file this is: another in its place may get the same inode, but later."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _digest_of(path: Path) -> Digest:
    hasher = Hasher()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            hasher.update(piece)
    return hasher.digest()
