"""State files: which keys a store has, and a short TOML text for each; those of a folder."""

from __future__ import annotations

import abc
import contextlib
import os
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mlstate.errors import AccessError, FormatError, ManifestError
from mlstate.files import ABSENT, LACKING
from mlstate.format import layout
from mlstate.index.versions import version_of
from mlstate.locks import locked_folder
from mlstate.manifests.entries import ManifestContent, StateEntry
from mlstate.manifests.parse import parse_state_file
from mlstate.objects.durable import (
    Publish,
    make_folders,
    read_small,
    sync_path,
    write_in_store,
    write_over,
)
from mlstate.objects.folder import check_folder, prepare_folder
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import Listing, TrashedState
from mlstate.stores.catalog import Catalog
from mlstate.system import set_time
from mlstate.warn import warn

if TYPE_CHECKING:
    from mlstate.manifests.state_signatures import StateSignatures, StateText

__all__ = [
    "FolderStateFiles",
    "StateFiles",
    "find_case_variant",
    "format_state_file",
    "parse_state_file",
]


def format_state_file(entry: StateEntry) -> bytes:
    """The content of a state file: a manifest with exactly this state."""
    from mlstate.manifests.write import format_manifest

    return format_manifest(ManifestContent({entry.key: entry}, entry.objects)).encode()


class StateFiles(Catalog):
    """A catalog of state files, one for each key."""

    def exists(self, key: StateKey) -> bool:
        """Whether there is a state file, readable or not."""
        return self.read(key) is not None

    def recorded(self, key: StateKey) -> StateEntry | None:
        """The entry of the state file."""
        if self.signatures is not None:
            text = self.text(key)
            return None if text is None else self.placed(self.signatures.entry(text))
        data = self.read(key)
        if data is None:
            return None
        return self.placed(parse_state_file(data, key, self.locate(key)))

    def placed(self, entry: StateEntry) -> StateEntry:
        """An entry that was read here, with what its place adds to it."""
        return entry

    def trashed_entry(self, state: TrashedState, data: bytes) -> StateEntry:
        """The entry in a state file from the trash; see `Catalog.trashed_entry`.

        A store that signs gives it a new serial number, so an older version may come back there.
        """
        if self.signatures is None or self.signatures.signers is None:
            return self.placed(parse_state_file(data, state.key, state.place))
        from mlstate.manifests.state_signatures import StateText

        text = StateText(data, state.key, state.place, self.identity(state.key))
        if self.signatures.key is None:
            return self.placed(self.signatures.entry(text))
        return self.placed(self.signatures.checked(text)[0].states[state.key])

    def text(self, key: StateKey) -> StateText | None:
        """The state file as it is, with what is needed to check its signature; None without one."""
        from mlstate.manifests.state_signatures import StateText

        data = self.read(key)
        if data is None:
            return None
        beside = partial(self.read_beside, key)
        return StateText(data, key, self.locate(key), self.identity(key), beside)

    def format(self, entry: StateEntry) -> bytes:
        """The content of a new state file, signed if this store signs."""
        if self.signatures is None or self.signatures.key is None:
            return format_state_file(entry)
        key = entry.key
        return self.signatures.written(entry, self.identity(key), self.read(key))

    def read_beside(self, key: StateKey) -> bytes | None:
        """The content of a signature file beside a state file, or None if there is none."""
        return None

    def identity(self, key: StateKey) -> str:
        """The place of the state file, the same whatever way leads there; for programs."""
        return self.locate(key)

    @abc.abstractmethod
    def change(self, key: StateKey, old: bytes, new: bytes) -> bool:
        """Write a state file over exactly this content; False if it has another, which stays."""

    @abc.abstractmethod
    def read(self, key: StateKey) -> bytes | None:
        """The content of a state file, or None if there is none."""

    @abc.abstractmethod
    def create(self, key: StateKey, data: bytes) -> bool:
        """Write a state file; False if there is one already, which stays as it is."""

    @abc.abstractmethod
    def replace(self, key: StateKey, data: bytes) -> None:
        """Write a state file, whatever is there."""

    @abc.abstractmethod
    def remove(self, key: StateKey) -> bool:
        """Remove a state file; False if there was none."""

    @abc.abstractmethod
    def case_variant(self, key: StateKey) -> StateKey | None:
        """A key that is here and differs from this one in case only, or None."""

    @abc.abstractmethod
    def locate(self, key: StateKey) -> str:
        """The place of the state file, whether it is there or not; for people."""


class FolderStateFiles(StateFiles):
    """State files in a store's folder, which may be missing."""

    def __init__(self, root: Path, signatures: StateSignatures | None = None) -> None:
        self.root = root
        self.signatures = signatures

    def keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The keys that are here, from the paths alone: a damaged file only fails to load."""
        names = _readable_names
        folders = [layout.state_folder(state_type)] if state_type else self._folders(names)
        keys = (
            layout.keys_in_state_folder(folder, names(self.root / folder)) for folder in folders
        )
        return list(chain.from_iterable(keys))

    def listing(self) -> Iterator[Listing]:
        """All keys, each with the time of its file; folders that may not be read are passed over.

        A list for people is worth something without them. `keys` is what others rely on.
        """
        for folder in self._folders(_names_if_readable):
            yield from self.listing_in(folder)

    def indexed_as(self) -> str | None:
        """The real path of the store; None with signatures, which are checked each time."""
        return os.path.realpath(self.root) if self.signatures is None else None

    def folders(self) -> Mapping[str, str | None]:
        """The folders of architectures: a file that is made, replaced or removed changes one."""
        versions: dict[str, str | None] = {}
        for folder in self._folders(_names_if_readable):
            with contextlib.suppress(OSError):
                versions[folder] = version_of(os.stat(f"{self.root}/{folder}"))
        return versions

    def listing_in(self, folder: str) -> Iterator[Listing]:
        """The keys of an architecture, each with the time and the version of its file."""
        for key in layout.keys_in_state_folder(folder, _names_if_readable(self.root / folder)):
            with contextlib.suppress(FileNotFoundError):  # it was deleted just now
                found = os.lstat(f"{self.root}/{layout.state_path(key)}")
                plain = stat.S_ISREG(found.st_mode)  # what a link leads to changes without it
                yield Listing(key, found.st_mtime, version=version_of(found) if plain else None)

    def read(self, key: StateKey) -> bytes | None:
        """The content of a state file, or None if there is none."""
        try:
            data = read_small(self._path(key), ManifestError)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return data if str(key).encode() in data or self._is_here(key) else None

    def _is_here(self, key: StateKey) -> bool:
        """Whether a file has this very name: where case is ignored, another key's is found by it.

        Of all folders above it, too.
        """
        folder = self.root
        for name in layout.state_path(key).split("/"):
            if name not in _names(folder):
                return False
            folder /= name
        return True

    def create(self, key: StateKey, data: bytes) -> bool:
        """Write a state file that is not there yet; see `StateFiles.create`."""
        prepare_folder(self.root)
        return write_in_store(self.root, layout.state_path(key), [data], publish=Publish.CREATE)

    def replace(self, key: StateKey, data: bytes) -> None:
        """Write a state file, whatever is there."""
        prepare_folder(self.root)
        try:
            old = read_small(self._path(key))
        except (OSError, FormatError):  # nothing there, or nothing that names objects
            old = None
        if old is not None:
            self._keep_in_trash(key, old)
        elif self._path(key).is_dir():  # which no file could replace
            make_folders(self.root, self.root / layout.TRASH)
            os.rename(self._path(key), self.root / layout.TRASH / layout.trashed_state_name(key))
        write_in_store(self.root, layout.state_path(key), [data])

    def change(self, key: StateKey, old: bytes, new: bytes) -> bool:
        """Write a state file over exactly this content; see `StateFiles.change`."""
        prepare_folder(self.root)
        make_folders(self.root, self.root / layout.TEMPORARIES)
        temporary = self.root / layout.TEMPORARIES / uuid.uuid4().hex
        path = self._path(key)
        with locked_folder(path.parent):
            return write_over(path, old, [new], temporary=temporary)

    def read_beside(self, key: StateKey) -> bytes | None:
        """The content of a signature file beside a state file; see `StateFiles.read_beside`."""
        from mlstate.manifests.signed import read_signature

        return read_signature(self.root / f"{layout.state_path(key)}{layout.SIGNATURE_SUFFIX}")

    def remove(self, key: StateKey) -> bool:
        """Move a state file to trash/, so that what it names lives on for the grace period."""
        check_folder(self.root)
        trash = self.root / layout.TRASH
        path = self._path(key)
        if not os.path.lexists(path) or not self._is_here(key):
            return False
        make_folders(self.root, trash)
        make_folders(self.root, path.parent)  # they are there; a link of others is refused
        try:
            try:
                set_time(path)  # its age in the trash counts from now
            except OSError as error:  # another user's file, say: its age cannot be changed
                if error.errno not in LACKING:
                    raise
                with contextlib.suppress(FormatError):  # of what is no file there is no content
                    self._keep_in_trash(key, read_small(path))
                path.unlink()
            else:
                os.rename(path, trash / layout.trashed_state_name(key))
        except FileNotFoundError:
            return False
        sync_path(trash)
        sync_path(path.parent)
        return True

    def _keep_in_trash(self, key: StateKey, data: bytes) -> None:
        """What the state file names lives on for the grace period: a load may be under way."""
        write_in_store(self.root, f"{layout.TRASH}/{layout.trashed_state_name(key)}", [data])

    def trashed(self) -> Iterator[TrashedState]:
        """The state files in trash/."""
        trash = self.root / layout.TRASH
        for name in _names(trash):
            key, path = layout.key_of_trashed_state(name), trash / name
            with contextlib.suppress(FileNotFoundError):  # a pruning takes it just now
                found = path.lstat()
                if key is not None and stat.S_ISREG(found.st_mode):
                    read = partial(_read_if_there, path)
                    yield TrashedState(key, found.st_mtime, str(path), read)

    def case_variant(self, key: StateKey) -> StateKey | None:
        """A key that is here and differs in case only: one file where names ignore case."""
        return find_case_variant(key, lambda folder: _names(self.root / folder))

    def locate(self, key: StateKey) -> str:
        """The path of the state file."""
        return str(self._path(key))

    def identity(self, key: StateKey) -> str:
        """The real path of the state file."""
        return os.path.realpath(self._path(key))

    def _path(self, key: StateKey) -> Path:
        return self.root / layout.state_path(key)

    def _folders(self, names: _Names) -> Iterator[str]:
        for backend in sorted(names(self.root / layout.STATES)):
            for architecture in sorted(names(self.root / layout.STATES / backend)):
                yield f"{layout.STATES}/{backend}/{architecture}"


_Names = Callable[[Path], list[str]]


def find_case_variant(key: StateKey, names: Callable[[str], list[str]]) -> StateKey | None:
    """A key with a state file whose path differs from that of this key in case only, or None.

    `names` gives the names in a folder of the store.
    """
    states, *parts = layout.state_path(key).split("/")
    found = [states]
    for part in parts:
        found = [
            f"{folder}/{name}"
            for folder in found
            for name in names(folder)
            if name.lower() == part.lower()
        ]
    keys = map(layout.key_of_state_path, found)
    return next((other for other in keys if other not in (None, key)), None)


def _read_if_there(path: Path) -> bytes | None:
    try:
        return read_small(path, ManifestError)
    except FileNotFoundError:
        return None


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        if error.errno in ABSENT:
            return []
        raise


def _readable_names(folder: Path) -> list[str]:
    """The names in a folder.

    Raises:
        AccessError: It may not be read: nobody may take it for an empty one.
    """
    try:
        return _names(folder)
    except PermissionError as error:
        raise AccessError(
            "a folder of states may not be read, so nobody can tell which states there are",
            path=folder,
            found=error.strerror,
            remedy="let this user read it: chmod g+rx; mlstate doctor looks at all of the store",
        ) from None


def _names_if_readable(folder: Path) -> list[str]:
    try:
        return _names(folder)
    except PermissionError:
        warn(f"{folder} may not be read; the states in it are passed over")
        return []
