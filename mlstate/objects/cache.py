"""Several object stores as one; and the cache, with what it keeps and who fetches into it.

``roots/<state digest>`` in a cache says which state it keeps: TOML with the key that the state was
fetched for and the digests of its files. The time of the last use is the file's own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from mlstate.digests import Digest
from mlstate.errors import FormatError, ObjectNotFoundError
from mlstate.files import ABSENT, UnfitFileError, read_file
from mlstate.format import layout
from mlstate.locks import FileLock, locked_folder
from mlstate.objects.durable import (
    SMALL,
    create_exclusively,
    make_folders,
    write_over,
)
from mlstate.objects.encoded_forms import size_of_encoded
from mlstate.objects.folder import FolderObjectStore
from mlstate.objects.interface import EncodedFile, EncodedObjectStore, ObjectStore
from mlstate.system import NONBLOCK, OPEN_FILES_MOVE, open_at, replace, set_time
from mlstate.texts import load_toml

__all__ = [
    "Cache",
    "ChainObjectStore",
    "Root",
    "folders_of",
    "forget_root",
    "last_use",
    "note_use",
    "one_at_a_time",
    "read_roots",
    "write_root",
]

_NAME = re.compile(r"[0-9a-f]{64}")
_NOTED = 900.0
"""The seconds within which a use is not noted again."""
RECENT = 3600.0
"""What was used within so many seconds, a quarter of an hour more or less, is not evicted."""
_TURN = 1.0
"""The seconds to wait for others who note something: a process that takes longer is stopped."""
_POLL = 0.05
_PATIENCE = 60.0


class ChainObjectStore:
    """Object stores, at least one, asked one after the other, such as caches before one's own.

    A missing object would belong in the last one.
    """

    def __init__(self, stores: Sequence[ObjectStore]) -> None:
        if not stores:
            raise ValueError("a chain needs at least one object store")
        self.stores = tuple(stores)

    @property
    def parts(self) -> Sequence[ObjectStore]:
        """The stores, and those of the chains among them."""
        return [p for s in self.stores for p in (s.parts if isinstance(s, Chain) else (s,))]

    def size(self, digest: Digest) -> int | None:
        """The size of an object in bytes, or None if no store has it."""
        sizes = (store.size(digest) for store in self._asked(digest))
        size = next((size for size in sizes if size is not None), None)
        if size is None and self.encoded_size(digest) is not None:
            return size_of_encoded(self, digest)  # with what it needs in another store
        return size

    def plain_size(self, digest: Digest) -> int | None:
        """See `EncodedObjectStore.plain_size`."""
        for store in self._asked(digest):
            size = (
                store.plain_size(digest)
                if isinstance(store, EncodedObjectStore)
                else store.size(digest)
            )
            if size is not None:
                return size
        return None

    def encoded_size(self, digest: Digest) -> int | None:
        """See `EncodedObjectStore.encoded_size`."""
        sizes = (store.encoded_size(digest) for store in self._asked_encoded(digest))
        return next((size for size in sizes if size is not None), None)

    def open_encoded(self, digest: Digest) -> EncodedFile:
        """See `EncodedObjectStore.open_encoded`."""
        for store in self._asked_encoded(digest):
            with suppress(ObjectNotFoundError):
                return store.open_encoded(digest)
        raise ObjectNotFoundError(
            "an encoded object is missing", path=self.stores[-1].locate(digest), expected=digest
        )

    def encoded_digests(self) -> Iterator[Digest]:
        """See `EncodedObjectStore.encoded_digests`."""
        stores = [store for store in self.stores if isinstance(store, EncodedObjectStore)]
        return iter({digest for store in stores for digest in store.encoded_digests()})

    def open(self, digest: Digest) -> BinaryIO:
        """Open an object in the first store that has it; ObjectNotFoundError if none does."""
        for store in self._asked(digest):
            with suppress(ObjectNotFoundError):
                return store.open(digest)
        raise ObjectNotFoundError(
            "an object is missing", path=self.stores[-1].locate(digest), expected=digest
        )

    def locate(self, digest: Digest) -> str:
        """Where the object is, or in the last store would be."""
        return self._holder(digest).locate(digest)

    def _asked(self, digest: Digest) -> Sequence[ObjectStore]:
        """The stores that may give an object."""
        return self.stores

    def _holder(self, digest: Digest) -> ObjectStore:
        """The first store that has an object, or the last one."""
        having = (store for store in self._asked(digest) if store.size(digest) is not None)
        encoded = (s for s in self._asked_encoded(digest) if s.encoded_size(digest) is not None)
        return next(chain(having, encoded), self.stores[-1])

    def _asked_encoded(self, digest: Digest) -> list[EncodedObjectStore]:
        """Those of them that may have encoded objects."""
        return [store for store in self._asked(digest) if isinstance(store, EncodedObjectStore)]


@runtime_checkable
class Chain(Protocol):
    """An object store that is made of others."""

    @property
    def parts(self) -> Sequence[ObjectStore]:
        """The object stores, none of which is a chain."""


@runtime_checkable
class InFolder(Protocol):
    """An object store whose objects are files of a folder, or that writes into one."""

    @property
    def folder(self) -> FolderObjectStore | None:
        """The folder that takes what is fetched; None if none does."""


def folders_of(objects: ObjectStore) -> list[FolderObjectStore]:
    """The folders that an object store reads, in order; none for one that is in no folder."""
    stores = objects.stores if isinstance(objects, ChainObjectStore) else (objects,)
    return [store for store in stores if isinstance(store, FolderObjectStore)]


class Cache(ChainObjectStore):
    """A chain that passes over what is known to be damaged.

    The last store, if it is a folder, takes what is fetched.

    Attributes:
        own: That folder; None if nothing can be fetched.
    """

    def __init__(self, stores: Sequence[ObjectStore]) -> None:
        super().__init__(ChainObjectStore(stores).parts)
        last = self.stores[-1]
        self.own = last.folder if isinstance(last, InFolder) else None
        self._damaged: set[tuple[ObjectStore, Digest]] = set()

    @property
    def parts(self) -> Sequence[ObjectStore]:
        """The cache itself: it alone knows what is damaged."""
        return (self,)

    def copies(self, digest: Digest) -> int:
        """How many of the stores have an object."""
        return sum(store.size(digest) is not None for store in self._asked(digest))

    def set_aside(self, digest: Digest) -> str:
        """Take a damaged object out of the way, and return where it is now; it is no longer served.

        In the own folder it goes to trash/. In any other store it stays, and is passed over.
        """
        store = self._holder(digest)
        if self.own is None or store is not self.stores[-1]:
            self._damaged.add((store, digest))
            return store.locate(digest)
        trash = self.own.root / layout.TRASH
        make_folders(self.own.root, trash)
        target = trash / f"{digest}{layout.DAMAGED_SUFFIX}.{uuid.uuid4().hex}"
        # In the order of reading. A pruning may have moved it: it is read there, too.
        for path in (
            self.own.path(digest),
            self.own.encoded_path(digest),
            *self.own.in_trash(digest),
            *self.own.in_trash(digest, encoded=True),
        ):
            with suppress(FileNotFoundError):
                replace(path, target)
                return str(target)
        return f"{self.own.path(digest)} (another process has set it aside)"

    def pass_over_unfit(self, sizes: Mapping[Digest, int]) -> list[str]:
        """Pass over objects of other sizes in stores that are only read; returns where they are.

        Else they would hide a right one, in a store that comes later or on its way.
        """
        unfit = []
        for digest, size in sizes.items():
            for store in self._asked(digest):
                if store is not self.stores[-1] and store.size(digest) not in (None, size):
                    self._damaged.add((store, digest))
                    unfit.append(store.locate(digest))
        return unfit

    def _asked(self, digest: Digest) -> Sequence[ObjectStore]:
        return [store for store in self.stores if (store, digest) not in self._damaged]


@dataclass(frozen=True)
class Root:
    """A state that was fetched into a cache, with the key that it was last fetched for.

    ``files`` are the digests of its files; it was last ``used`` then, in seconds since the epoch by
    the file server's clock.
    """

    digest: Digest
    key: str
    files: frozenset[Digest]
    used: float


def write_root(folder: Path, digest: Digest, key: str, files: Iterable[Digest]) -> None:
    """Note that a state was fetched for a key, and is used now.

    The digests of its files are added to those of earlier notes.
    """
    path, temporaries = _root_path(folder, digest), folder / layout.TEMPORARIES
    try:
        make_folders(folder, path.parent, sync=False)
    except FormatError:  # something else bears its name; a link may be of another member's making
        if path.parent.is_symlink():
            raise
        _move_away(path.parent, folder)
        make_folders(folder, path.parent, sync=False)
    make_folders(folder, temporaries)
    with locked_folder(path.parent, _TURN):
        while True:
            said = _content(path)
            old = None if said is None else _parsed(digest, said, 0.0)
            named = sorted({*files, *(old.files if old else ())})
            lines = [f"key = {_quoted(key)}", f"files = [{', '.join(map(_quoted, named))}]", ""]
            data = "\n".join(lines).encode()
            temporary = temporaries / uuid.uuid4().hex
            if write_over(path, said, [data], temporary=temporary, sync_parent=False):
                return


def _content(path: Path) -> bytes | None:
    """The bytes of a note; what is in the place of one and is no small file is moved away."""
    try:
        return read_file(path, SMALL, follow=False)
    except FileNotFoundError:
        return None
    except (UnfitFileError, PermissionError):
        _move_away(path, path.parent.parent)
        return None


def _move_away(path: Path, folder: Path) -> None:
    """Move what is in the place of something of a cache to the cache's trash/."""
    trash = folder / layout.TRASH
    make_folders(folder, trash)
    with suppress(FileNotFoundError):
        os.rename(path, trash / f"{path.name}{layout.DAMAGED_SUFFIX}.{uuid.uuid4().hex}")


def note_use(folder: Path, digest: Digest, key: str, files: Iterable[Digest]) -> bool:
    """Note that a state is used, if that can be noted and was not a short while ago.

    A state that a cache holds and does not keep, since somebody pruned it a while ago, is kept
    again. Not so in a folder that somebody saves into: what is kept there is for its owner to say.
    """
    path = _root_path(folder, digest)
    with contextlib.suppress(OSError, FormatError):
        try:
            noted = path.lstat()
            if not stat.S_ISREG(noted.st_mode) or noted.st_nlink > 1:
                write_root(folder, digest, key, files)  # no note, or not ours alone to touch
            elif not 0 <= time.time() - noted.st_mtime <= _NOTED:  # clocks differ: once more
                try:
                    set_time(path)
                except PermissionError:  # another member's, whose time only its owner may set
                    write_root(folder, digest, key, files)
            else:
                return False
        except FileNotFoundError:
            held = (folder / layout.object_path(digest)).exists()
            if not held or (folder / layout.STATES).exists():
                return False
            write_root(folder, digest, key, files)
        return True
    return False


def forget_root(folder: Path, digest: Digest, *, used: float | None = None) -> bool:
    """No longer keep a state; False if it was used after ``used``, and is kept.

    A folder in the place of its note says nothing, and stays.
    """
    path = _root_path(folder, digest)
    if used is None:
        with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
            path.unlink()
        return True
    # Out of the way first: a look at its time, and then to remove it, would leave a moment for a
    # use to be noted and lost.
    aside = folder / layout.TEMPORARIES / uuid.uuid4().hex
    try:
        if path.lstat().st_mtime <= used:
            os.rename(path, aside)
            if aside.lstat().st_mtime <= used:
                aside.unlink()
                return True
            create_exclusively(aside, path)
            aside.unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except (IsADirectoryError, NotADirectoryError):
        return True
    return False


def last_use(folder: Path, digest: Digest) -> float | None:
    """When a state was last used, in seconds since the epoch; None if a cache does not keep it."""
    try:
        return _root_path(folder, digest).lstat().st_mtime
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise


def read_roots(folder: Path) -> Iterator[Root]:
    """The states that a cache keeps; files that cannot be read are passed over."""
    try:
        paths = sorted((folder / layout.ROOTS).iterdir())
    except OSError as error:
        if error.errno in ABSENT:
            return
        raise
    for path in paths:
        if root := _read_root(path):
            yield root


def _read_root(path: Path) -> Root | None:
    if not _NAME.fullmatch(path.name):
        return None
    try:
        used = path.lstat().st_mtime
        return _parsed(Digest(path.name), read_file(path, SMALL, follow=False), used)
    except OSError:
        return None


def _parsed(digest: Digest, data: bytes, used: float) -> Root | None:
    try:
        said = load_toml(data, "a root")
        files = frozenset(Digest(text) for text in said["files"])
        return Root(digest, str(said["key"]), files, used)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _root_path(folder: Path, digest: Digest) -> Path:
    return folder / layout.ROOTS / digest


def _quoted(text: str) -> str:
    return f'"{text}"'  # keys and digests have nothing that needs an escape


@contextmanager
def one_at_a_time(
    path: Path, *, patience: float = _PATIENCE, waiting: Callable[[], None] = lambda: None
) -> Iterator[Callable[[], None]]:
    """Let one process after the other do a piece of work, as long as each gets on with it.

    Whoever comes second waits while the first shows that it is alive, and then most likely finds
    everything done. If nothing is heard of the first for ``patience`` seconds, or locks do not work
    here, the second begins too: work is then done twice, which is all that can go wrong.
    ``waiting`` is called again and again while it waits.

    Yields:
        A call that shows, now and then, that the work goes on.
    """
    descriptor = _open_lock(path)
    if descriptor is None:
        yield lambda: None
        return
    lock = FileLock(descriptor, path)
    try:
        _wait(lock, descriptor, patience, waiting)
        last = [0.0]

        def alive() -> None:
            if time.monotonic() - last[0] > patience / 20:
                last[0] = time.monotonic()
                with contextlib.suppress(OSError):  # another member's file: then without
                    set_time(path, descriptor)

        alive()
        try:
            yield alive
        finally:
            # Who waits for this very file goes on; who comes now makes a new one. Should both
            # then work at once, work is done twice, which is all that can go wrong.
            with contextlib.suppress(OSError):
                os.unlink(path)
    finally:
        lock.give_back()
        os.close(descriptor)
        if not OPEN_FILES_MOVE:  # it could not be removed before
            with contextlib.suppress(OSError):
                os.unlink(path)


def _open_lock(path: Path) -> int | None:
    """Open a lock file, or make it; None if something else has its name, or it may not be opened.

    It may be another member's, to read alone. A link is not followed: it would make a file
    elsewhere.
    """
    for way in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        try:
            descriptor = open_at(path, way | NONBLOCK, follow=False)
        except (PermissionError, FileNotFoundError):
            continue
        except OSError as error:
            if error.errno in _NO_LOCK:
                return None
            raise
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:  # its time is changed
            return descriptor
        os.close(descriptor)
        return None
    return None


_NO_LOCK = {errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.ENOTDIR}


def _wait(lock: FileLock, descriptor: int, patience: float, waiting: Callable[[], None]) -> None:
    heard, sign = time.monotonic(), os.fstat(descriptor).st_mtime_ns
    while lock.take() is False:
        waiting()
        time.sleep(_POLL)
        now = os.fstat(descriptor).st_mtime_ns
        if now != sign:
            heard, sign = time.monotonic(), now
        elif time.monotonic() - heard > patience:
            return
