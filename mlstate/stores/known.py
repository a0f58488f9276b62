"""What the states of a store say, by the user's index where that knows it.

A state file is known by its version, which a listing gives, and a state object by its digest. Of a
folder of state files that is as it was even the listing is known, but for files that somebody has
edited in place: those are seen where they are listed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any

from mlstate.errors import (
    FormatError,
    IntegrityError,
    MlstateError,
    ObjectNotFoundError,
    SignatureError,
)
from mlstate.format import layout
from mlstate.index import EntryRow, Folder, FolderSpace, Index, StateSpace, number_of
from mlstate.manifests import FileEntry, StateEntry
from mlstate.objects import ObjectStore
from mlstate.states import StateKey
from mlstate.stores.abstract import Listing
from mlstate.stores.catalog import Catalog

__all__ = ["KnownStates"]

_NONE: Mapping[str, Any] = MappingProxyType({})


class KnownStates:
    """The states of a catalog, as an index knows them.

    Args:
        catalog: The catalog.
        objects: Where its state objects are.
        index: The index, which learns what it does not know.
        far: Where the store has its objects, if that is elsewhere and `objects` is a cache.
    """

    def __init__(
        self,
        catalog: Catalog,
        objects: ObjectStore,
        index: Index,
        far: ObjectStore | None = None,
    ) -> None:
        self._catalog = catalog
        self._objects = objects
        self._far = far
        self._index = index
        name = catalog.indexed_as()
        self._place = None if name is None else index.place(name)
        self._versions = catalog.folders() if self._place is not None else None
        self._folders: dict[str, _Folder] = {}

    @property
    def by_folder(self) -> bool:
        """Whether single folders can be asked about."""
        return self._versions is not None

    def entry(self, listing: Listing) -> StateEntry | None:
        """What the index knows of the state file that was listed: its digest, size and files."""
        if self._place is None or listing.version is None:
            return None
        path, name = _split(listing.key)
        folder = self._folder(path)
        row = folder.kept.entries.get(name)
        if row is None or row.version != listing.version:
            return None
        folder.add(listing.key, name, row)
        return _entry_of(listing.key, row)

    def learn(self, listing: Listing, entry: StateEntry | None) -> None:
        """Keep what a state file was read to say after it was listed; None: it cannot be read."""
        if self._place is None:
            return
        path, name = _split(listing.key)
        folder = self._folder(path)
        if entry is None or entry.digest is None or listing.version is None:
            folder.whole = False
        if entry is not None and entry.digest is not None:
            files = {file: said.digest for file, said in entry.files.items()}
            row = EntryRow(listing.version or "", entry.digest, entry.size, files)
            folder.add(listing.key, name, row)

    def list_folder(self, path: str) -> dict[StateKey, StateEntry]:
        """The states of a folder that can be read."""
        self._folder(path)
        found: dict[StateKey, StateEntry] = {}
        for listing in self._catalog.listing_in(path):
            entry = self.entry(listing)
            if entry is None:
                with suppress(MlstateError, OSError):  # which `verify` reports
                    entry = self._catalog.recorded(listing.key)
                self.learn(listing, entry)
            if entry is not None and entry.digest is not None:
                found[listing.key] = entry
        return found

    def space(self, path: str) -> FolderSpace | None:
        """The space of the states of a folder, in the order of their keys; all were listed.

        None if something of one of them is not known.
        """
        folder = self._folders.get(path)
        if folder is None:
            return None
        if folder.space is None and folder.is_unchanged:
            folder.space = folder.kept.space
        if folder.space is None and folder.whole:
            rows = folder.in_order()
            self._index.load(row.digest for row in rows.values())
            with suppress(MlstateError, OSError):  # as each of them is told by `usage`
                folder.space = FolderSpace.of([*map(self._state_space, folder.keys, rows.values())])
        return folder.space

    def places(self, path: str) -> dict[StateKey, int]:
        """The places of the states in the `space` of a folder."""
        return {key: place for place, key in enumerate(self._folders[path].keys)}

    def _state_space(self, key: StateKey, row: EntryRow) -> StateSpace:
        said = self._index.said(_entry_of(key, row), self._objects, here=self._far is None)
        sizes = dict(zip(said.objects, said.sizes, strict=True))
        sizes[number_of(row.digest)] = said.size
        for digest in row.files.values():
            size = self._objects.size(digest)
            if size is None and self._far is not None:
                size = self._far.size(digest)
            if size is None:
                raise ObjectNotFoundError("a file is missing", key=key, expected=digest)
            sizes[number_of(digest)] = size
        return StateSpace(said.nbytes, array("q", sizes), array("q", sizes.values()))

    def objects_of(self, path: str) -> Set[int]:
        """The objects that the states of a folder name, all of which were listed."""
        space = self.space(path)
        if space is not None:
            return space.sizes.keys()
        found: set[int] = set()
        folder = self._folders.get(path)
        for key, (_, row) in folder.rows.items() if folder is not None else ():
            found.update(map(number_of, (row.digest, *row.files.values())))
            with suppress(MlstateError, OSError):  # which `verify` reports
                found.update(self._index.said(_entry_of(key, row), self._objects).objects)
        return found

    def elsewhere(self, objects: Iterable[int], path: str) -> set[int]:
        """Those of some objects that a state of another folder names, too."""
        wanted = set(objects)
        shared: set[int] = set()
        for other in self._list_changed(but=path):
            shared |= wanted & self.objects_of(other)
        return shared | {
            number for number, other in self._unchanged_holders(wanted) if other != path
        }

    def holding(self, objects: set[int], but: StateKey) -> Iterator[tuple[StateKey, set[int]]]:
        """The other states that name some of these objects, sorted by key, each with those."""
        states = {key: entry for key, entry in self._candidates(objects).items() if key != but}
        self._index.load(entry.pinned_digest for entry in states.values())
        for key in sorted(states):
            entry = states[key]
            with suppress(IntegrityError, FormatError):  # which `verify` reports
                kept = self._index.kept(entry.pinned_digest)
                if kept is not None and objects.isdisjoint(kept.objects):
                    continue
                here = self._far is None
                if here and self._objects.size(entry.pinned_digest) is None:
                    continue
                said = self._index.said(entry, self._objects, here=here)
                if named := objects.intersection(said.objects):
                    yield key, named

    def _candidates(self, objects: set[int]) -> dict[StateKey, StateEntry]:
        """The states that may name some objects."""
        states: dict[StateKey, StateEntry] = {}
        if self._versions is not None:
            assert self._place is not None
            for found in self._list_changed().values():
                states |= found
            for path in {path for _, path in self._unchanged_holders(objects)}:
                for name, row in self._place.folder(path).entries.items():
                    if key := layout.key_of_state_path(f"{path}/{name}"):
                        states[key] = _entry_of(key, row)
            return states
        for listing in self._catalog.listing():
            if listing.size is not None:  # a checkpoint, which shares nothing
                continue
            entry = self.entry(listing)
            if entry is None:
                with suppress(IntegrityError, FormatError, SignatureError):
                    entry = self._catalog.recorded(listing.key)
                self.learn(listing, entry)
            if entry is not None and entry.digest is not None:
                states[listing.key] = entry
        return states

    def keep(self) -> None:
        """Keep what was learned of the folders of which all files were listed."""
        place = self._place
        if place is None:
            return
        for path, folder in self._folders.items():
            space = self.space(path)
            if place.is_due:
                self._index.touch(row.digest for row in folder.in_order().values())
            version = (self._versions or {}).get(path) if space is not None else None
            rows = {name: row for name, row in folder.in_order().items() if row.version}
            same = rows == folder.kept.entries and (space is None) == (folder.kept.space is None)
            if same and version == place.versions.get(path, ""):
                continue
            new = Folder(rows, space)
            self._index.later(
                partial(place.write, path=path, version=version, folder=new, old=folder.kept)
            )

    def forget_others(self) -> None:
        """Forget the folders that are there no more, once all states were listed."""
        if self._place is not None:
            for path in self._place.versions.keys() - self._folders.keys():
                self._index.later(partial(self._place.forget, path=path))

    def _folder(self, path: str) -> _Folder:
        if path not in self._folders:
            assert self._place is not None
            self._folders[path] = _Folder(self._place.folder(path))
        return self._folders[path]

    def _list_changed(self, but: str | None = None) -> dict[str, dict[StateKey, StateEntry]]:
        """List the folders that are not as the index knows them."""
        assert self._place is not None
        assert self._versions is not None
        return {
            path: self.list_folder(path)
            for path, version in self._versions.items()
            if path != but and (version is None or self._place.versions.get(path) != version)
        }

    def _unchanged_holders(self, objects: Iterable[int]) -> Iterator[tuple[int, str]]:
        assert self._place is not None
        assert self._versions is not None
        for number, path in self._place.holders(objects):
            if path in self._versions and path not in self._folders:
                yield number, path


class _Folder:
    """A folder of state files: what the index knew of it, and what is known by now."""

    def __init__(self, kept: Folder) -> None:
        self.kept = kept
        self.space: FolderSpace | None = None
        self.whole = True  # whether the files were readable, and have versions
        self.rows: dict[StateKey, tuple[str, EntryRow]] = {}  # with the name of each

    def add(self, key: StateKey, name: str, row: EntryRow) -> None:
        """Add a state file."""
        self.rows[key] = name, row

    @property
    def keys(self) -> list[StateKey]:
        """The keys of its states, sorted."""
        return sorted(self.rows)

    @property
    def is_unchanged(self) -> bool:
        """Whether it has just the state files that the index knew, at their versions."""
        rows = dict(self.rows.values())
        return self.whole and bool(self.kept.entries) and rows == self.kept.entries

    def in_order(self) -> dict[str, EntryRow]:
        """The state files by name, in the order of their keys."""
        return dict(self.rows[key] for key in self.keys)


def _split(key: StateKey) -> tuple[str, str]:
    folder, _, name = layout.state_path(key).rpartition("/")
    return folder, name


def _entry_of(key: StateKey, row: EntryRow) -> StateEntry:
    files = {file: FileEntry(digest) for file, digest in row.files.items()} if row.files else _NONE
    # What the entry has beside these is not kept: nobody fetches by it.
    return StateEntry(
        key, row.digest, row.size, files=files, meta=_NONE, unknown=_NONE, layout=_NONE
    )
