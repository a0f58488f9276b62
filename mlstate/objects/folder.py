"""Objects in a folder, in the store layout."""

from __future__ import annotations

import itertools
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError, ObjectNotFoundError
from mlstate.files import ABSENT, LACKING, UnfitFileError, open_regular
from mlstate.format import layout
from mlstate.locations import anchored
from mlstate.objects.durable import (
    NewFile,
    Publish,
    check_written,
    create_exclusively,
    make_folders,
    move_to_trash,
    read_small,
    sync_path,
    write_in_store,
)
from mlstate.objects.encoded_folder import EncodedFolder
from mlstate.objects.encoded_forms import bases_of, restore_chain, size_of_encoded
from mlstate.parallel import Background
from mlstate.system import set_time
from mlstate.warn import warn

__all__ = ["GRACE_SECONDS", "FolderObjectStore", "check_folder", "prepare_folder"]

GRACE_SECONDS = 14 * 24 * 3600
"""How long pruning spares what nothing names: a save of that length is safe beside it."""

_JUST_NOW = 60.0
"""An object of so many seconds is as good as one that was freshened just now."""
_YOUNG_OF_OTHERS = 3600.0
"""Another member's object, whose time only its owner may set, is used as it is for so many seconds;
an older one is written anew, by whoever saves."""

_FLUSHING_THREADS = 4
"""Files that are flushed at once: they share a commit of the file system's journal."""
_WAITING = 16
"""Files that are written and not yet flushed, at most: what a kill may lose."""
_LOOKS = 3
"""So often an object is looked for that prunings move to trash/ and back meanwhile."""


def check_folder(root: Path) -> None:
    """Refuse, by a FormatError, a folder that is no store, or one of a newer version. Reads only.

    An absent folder, and one with neither settings nor states/ nor objects/, is an empty store.
    """
    if _check_settings(root):
        return
    having = [name for name in (layout.STATES, layout.OBJECTS) if (root / name).exists()]
    # Settings are made before these: if another process has just begun the store, they are there.
    if having and not _check_settings(root):
        raise FormatError(
            f"this folder is not a store: it has {having[0]}/ but no {layout.SETTINGS}",
            path=root,
            remedy="give the store's own folder, or an empty or new one",
        )


def _check_settings(root: Path) -> bool:
    """Check a store's settings, if there are any."""
    settings = root / layout.SETTINGS
    try:
        layout.check_settings(read_small(settings), str(settings))
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        raise FormatError(
            "a store is a folder, and this is a file", path=root, remedy="give a folder"
        ) from None
    return True


def prepare_folder(root: Path) -> None:
    """Make a folder a store, if it is none yet: the settings first. Raises as `check_folder`."""
    check_folder(root)
    if not (root / layout.SETTINGS).exists():
        write_in_store(root, layout.SETTINGS, [layout.NEW_SETTINGS], publish=Publish.CREATE)


class FolderObjectStore(EncodedFolder):
    """Objects as files of a folder: ``objects/ab/cdef...``, or encoded, ``encoded/ab/cdef...``.

    Reading takes no lock, makes no folder and touches no file. The folder may be missing, and is
    then empty.

    Raises:
        FormatError: The folder is no store, or one of a newer version.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = anchored(root)
        check_folder(self.root)

    def __repr__(self) -> str:
        return f"FolderObjectStore({str(self.root)!r})"

    @property
    def folder(self) -> FolderObjectStore:
        """The folder that takes what is fetched: this one."""
        return self

    def path(self, digest: Digest) -> Path:
        """Where the object lies, or would lie."""
        return self.root / layout.object_path(digest)

    def size(self, digest: Digest) -> int | None:
        """The size of an object in bytes, or None if it is not here."""
        size = self.plain_size(digest)
        if size is None and self._is_encoded(digest):
            return size_of_encoded(self, digest)
        return size

    def plain_size(self, digest: Digest) -> int | None:
        """See `EncodedObjectStore.plain_size`."""
        return _file_size(f"{self.root}/{layout.object_path(digest)}")

    def encoded_size(self, digest: Digest) -> int | None:
        """See `EncodedObjectStore.encoded_size`."""
        return _file_size(f"{self.root}/{layout.encoded_path(digest)}")

    def _is_encoded(self, digest: Digest) -> bool:
        """Whether there is an encoded form, which is looked for where the object is missing."""
        return self.encoded_size(digest) is not None

    def open(self, digest: Digest) -> BinaryIO:
        """Open an object's file; ObjectNotFoundError if it is not here.

        A pruning that races with a save moves an object to trash/ for a moment, and back; one that
        is killed leaves it there until the next one. It is read there meanwhile, unless there is an
        encoded form: that is then what the store has.
        """
        path = f"{self.root}/{layout.object_path(digest)}"

        def in_trash() -> list[Path]:
            return [] if self._is_encoded(digest) else self.in_trash(digest)

        if opened := self.found(path, in_trash):
            return opened
        raise missing(self, digest)

    def found(self, path: str | Path, in_trash: Callable[[], list[Path]]) -> BinaryIO | None:
        """Open a file that prunings may have moved to trash/; None if it is nowhere."""
        for _ in range(_LOOKS):
            if opened := _opened(path):
                return opened
            trashed = in_trash()
            for place in trashed:
                if opened := _opened(place):
                    return opened
            if not trashed:
                break
        return _opened(path)  # it was put back between the two looks

    def trashed(self) -> set[Digest]:
        """The objects that prunings have moved to trash/, by one look."""
        names = (entry.name for entry in _entries(self.root / layout.TRASH))
        found = map(layout.TRASHED_OBJECT.fullmatch, names)
        return {Digest(match[1]) for match in found if match}

    def restore(self, digest: Digest) -> bool:
        """Put an object back that a pruning has moved to trash/; False if it is not there.

        It is made young first, so that no pruning takes it again, or deletes it in the trash. If
        it is there in encoded form only, what it needs to be decoded is put back with it.
        """
        return restore_chain(self, digest, self._put_back_one)

    def _put_back_one(self, digest: Digest) -> bool:
        trashed = (*self.in_trash(digest), *self.in_trash(digest, encoded=True))
        return any(self._put_back_young(path, digest) for path in trashed)

    def _put_back_young(self, path: Path, digest: Digest) -> bool:
        with suppress(PermissionError, FileNotFoundError):
            set_time(path)
        return self.put_back(path, digest)

    def put_back(self, place: Path, digest: Digest) -> bool:
        """Give a file in trash/ the name of an object again, unless there is one by now.

        What is there has been written anew, and is not replaced: nobody has looked at the trashed
        one. Returns False if the file is gone.
        """
        is_encoded = layout.TRASHED_ENCODED.fullmatch(place.name) is not None
        target = self.encoded_path(digest) if is_encoded else self.path(digest)
        make_folders(self.root, target.parent)
        try:
            create_exclusively(place, target)
        except FileNotFoundError:
            return False
        place.unlink(missing_ok=True)
        sync_path(target.parent)
        return True

    def in_trash(self, digest: Digest, *, encoded: bool = False) -> list[Path]:
        """The files of an object in trash/, or of its encoded form.

        What was set aside as damaged has another name.
        """
        trash = self.root / layout.TRASH
        name = layout.TRASHED_ENCODED if encoded else layout.TRASHED_OBJECT
        return [
            trash / entry.name
            for entry in _entries(trash)
            if entry.name.startswith(digest) and name.fullmatch(entry.name)
        ]

    def locate(self, digest: Digest) -> str:
        """The path of the object's file: that of its encoded form, if it has no other."""
        plain, other = self.path(digest), self.encoded_path(digest)
        # Of a folder that may not be looked into nothing is known, which is no error here.
        is_other = not os.path.exists(plain) and os.path.exists(other)
        return str(other if is_other else plain)

    def digests(self) -> Iterator[Digest]:
        """Every object that is here, in no order; things with other names are passed over.

        Not those in encoded form only.
        """
        return self._digests(encoded=False)

    def encoded_digests(self) -> Iterator[Digest]:
        """See `EncodedObjectStore.encoded_digests`."""
        return self._digests(encoded=True)

    def _digests(self, *, encoded: bool) -> Iterator[Digest]:
        for folder in _entries(self.root / (layout.ENCODED if encoded else layout.OBJECTS)):
            if not folder.is_dir(follow_symlinks=False):
                continue  # by a link, an object of another name would be taken for one of this
            names = self.names_in(folder.name, encoded=encoded)
            yield from layout.digests_in_object_folder(folder.name, names)

    def names_in(self, digits: str, *, encoded: bool = False) -> Iterator[str]:
        """The names of the files in the folder of the objects that begin with two digits.

        Or of their encoded forms.
        """
        above = layout.ENCODED if encoded else layout.OBJECTS
        for entry in _entries(self.root / above / digits):
            if entry.is_file(follow_symlinks=False):
                yield entry.name

    def compacts(self) -> bool:
        """See `EncodingObjectStore.compacts`."""
        path = self.root / layout.SETTINGS
        try:
            return layout.compacts(read_small(path), str(path))
        except FileNotFoundError:
            return False

    def writer(self) -> FolderObjectWriter:
        """Begin an act of saving; makes the folder a store if it is none yet."""
        prepare_folder(self.root)
        return FolderObjectWriter(self)


class FolderObjectWriter:
    """One act of saving into a folder; also an `EncodedReuser`."""

    def __init__(self, store: FolderObjectStore) -> None:
        self._store = store
        self._objects = f"{store.root}/{layout.OBJECTS}"
        self._temporaries = f"{store.root}/{layout.TEMPORARIES}"
        make_folders(store.root, Path(self._temporaries))
        self._act, self._numbers = uuid.uuid4().hex[:20], itertools.count()
        self._touched: set[str] = set()  # folders of objects, by the first two digits
        self._flushing = Background(_FLUSHING_THREADS, most=_WAITING)
        self._devices: dict[int, bool] = {}
        self.took_encoded = False

    def reuse(self, digest: Digest, size: int) -> bool:
        """Take an object that is here, and freshen it; see `ObjectWriter.reuse`."""
        made_young = _made_young(self._path(digest), size)
        if made_young is None:
            is_encoded = self._store.encoded_size(digest) is not None
            return is_encoded and self._reuse_encoded(digest, size)
        if made_young:
            self._touched.add(digest[:2])
        return made_young

    def _reuse_encoded(self, digest: Digest, size: int) -> bool:
        """Take an object that is here in encoded form, with all that it needs to be decoded."""
        if self._store.size(digest) != size:
            return False
        try:
            needed = list(bases_of(self._store, digest))
        except (ObjectNotFoundError, FormatError):  # another process takes it away
            return False
        if not self.took_encoded:  # who wrote it may have been killed beside an undoing
            self._store.say_encoded()
            self.took_encoded = True
        return all(
            _made_young(self._path(one) if is_plain else str(self._store.encoded_path(one)))
            for one, is_plain in needed
        )

    def put(self, digest: Digest, parts: Iterable[Bytes]) -> None:
        """Write an object; see `ObjectWriter.put`."""
        name = layout.object_path(digest)
        self._free(digest)
        write_in_store(self._store.root, name, parts, digest=digest, sync_parent=False)
        self._touched.add(digest[:2])

    def add(self, parts: Sequence[Bytes], digest: Digest | None = None) -> tuple[Digest, bool]:
        """Write an object, and wait for the disk in the background; see `AddingWriter.add`."""
        with ExitStack() as stack:
            name = f"{self._act}{next(self._numbers):012x}"  # 32 digits, as pruning knows them
            file = stack.enter_context(NewFile(f"{self._temporaries}/{name}"))
            found = file.write(parts, self._devices)
            if digest is not None:
                check_written(found, digest, self._path(digest))
            elif self.reuse(found, file.size):
                return found, False
            self._flushing.do(partial(self._publish, file, found))
            stack.pop_all()
        return found, True

    def _publish(self, file: NewFile, digest: Digest) -> None:
        """Flush a file to the disk, and give it its name."""
        with file:
            file.flush()
            if digest[:2] not in self._touched:
                folder = Path(self._objects, digest[:2])
                make_folders(self._store.root, folder, sync=False)  # `flush` does it
                self._touched.add(digest[:2])
            self._free(digest)
            file.publish(self._path(digest))

    def _free(self, digest: Digest) -> None:
        """Move a folder to trash/ that has the name of an object: no file could replace it."""
        path = self._path(digest)
        with suppress(OSError):
            if stat.S_ISDIR(os.lstat(path).st_mode):
                move_to_trash(self._store.root, Path(path))

    def settle(self) -> None:
        """Wait until all that was added is on the disk; see `AddingWriter.settle`."""
        self._flushing.wait()

    def flush(self) -> None:
        """Flush each folder that an object was put in or reused from, once."""
        self.settle()
        touched, self._touched = sorted(self._touched), set()
        for name in touched:
            self._flushing.do(partial(sync_path, Path(self._objects, name)))
        self._flushing.wait()
        if touched:  # those above, too: another process may have made one and not come this far
            sync_path(Path(self._objects))
            sync_path(self._store.root)

    def _path(self, digest: Digest) -> str:
        return f"{self._objects}/{digest[:2]}/{digest[2:]}"


def _file_size(path: str) -> int | None:
    """The size of a file in bytes; None if there is none."""
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _made_young(path: str, size: int | None = None) -> bool | None:
    """Make a file young that is to be used; None if there is none, False if another is needed.

    Only one of this size is used, if one is given.
    """
    try:
        found = os.lstat(path)  # what a link names is elsewhere, and not for pruning to spare
        if not stat.S_ISREG(found.st_mode) or (size is not None and found.st_size != size):
            return False
        age = time.time() - found.st_mtime
        # One that stays old can be replaced by an equal one.
        return 0 <= age < _JUST_NOW or _freshened(path) or 0 <= age < _YOUNG_OF_OTHERS
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise


def _opened(path: str | Path) -> BinaryIO | None:
    try:
        descriptor = open_regular(path)
    except OSError as error:
        if error.errno in ABSENT or isinstance(error, UnfitFileError):
            return None
        raise
    return os.fdopen(descriptor, "rb", buffering=0)  # readers take the whole, or map it


def _freshened(path: str) -> bool:
    """Set the time of a file to now, by the file server's clock; False if that is not allowed.

    Only its owner may; and some file systems cannot.
    """
    try:
        set_time(path)
    except OSError as error:
        if error.errno in LACKING:
            return False
        raise
    return True


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, which may be missing; one that may not be read is passed over."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except PermissionError:
        warn(f"{folder} may not be read; what is in it is passed over")
        return []
    except OSError as error:
        if error.errno in ABSENT:
            return []
        raise


def missing(store: FolderObjectStore, digest: Digest) -> ObjectNotFoundError:
    """The error for an object that is not in a folder."""
    return ObjectNotFoundError(
        "an object is missing",
        path=store.locate(digest),
        expected=digest,
        remedy="restore it from a copy or a backup, or save the state again",
    )
