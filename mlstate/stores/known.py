"""What the states of a store say, by the user's index where that knows it.

A state file is known by its version, which a listing gives, and a state object by its digest. Of a
folder of state files that is as it was even the listing is known, but for files that somebody has
edited in place: those are seen where they are listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial

from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError, MlstateError, SignatureError
from mlstate.format import layout
from mlstate.index import EntryRow, Index, Said, number_of
from mlstate.manifests import FileEntry, StateEntry
from mlstate.objects import ObjectStore
from mlstate.states import StateKey
from mlstate.stores.abstract import Listing
from mlstate.stores.catalog import Catalog

__all__ = ["KnownStates"]

_Rows = dict[str, tuple[str, EntryRow]]


class KnownStates:
    """The states of a catalog, as an index knows them.

    Args:
        catalog: The catalog.
        objects: Where its state objects are.
        index: The index, which learns what it does not know.
    """

    def __init__(self, catalog: Catalog, objects: ObjectStore, index: Index) -> None:
        self._catalog = catalog
        self._objects = objects
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
        version, row = folder.kept.get(name, (None, None))
        if row is None or version != listing.version:
            return None
        folder.add(name, listing.version, row)
        return _entry_of(listing.key, row)

    def learn(self, listing: Listing, entry: StateEntry | None) -> None:
        """Keep what a state file was read to say after it was listed; None: it cannot be read."""
        if self._place is None:
            return
        path, name = _split(listing.key)
        if entry is None or entry.digest is None:
            self._folder(path).whole = False
            return
        files = {file: said.digest for file, said in entry.files.items()}
        row = EntryRow(entry.digest, entry.size, files)
        self._folder(path).add(name, listing.version, row)

    def list_folder(self, path: str) -> dict[StateKey, StateEntry]:
        """The states of a folder that can be read, and of which it is known what they say."""
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
        self._index.load(entry.pinned_digest for entry in found.values())
        for entry in found.values():
            self._said(entry)
        return found

    def elsewhere(self, objects: Iterable[int], path: str) -> set[int]:
        """Those of some objects that a state of another folder names, too."""
        self._list_changed(but=path)
        wanted = set(objects)
        shared: set[int] = set()
        for other, folder in self._folders.items():
            if other != path:
                shared |= wanted & folder.objects(self._index)
        return shared | {
            number for number, other in self._unchanged_holders(wanted) if other != path
        }

    def holding(self, objects: set[int], but: StateKey) -> Iterator[tuple[StateKey, set[int]]]:
        """The other states that name some of these objects, sorted by key, each with those."""
        states = {key: entry for key, entry in self._candidates(objects).items() if key != but}
        self._index.load(entry.pinned_digest for entry in states.values())
        for key in sorted(states):
            entry = states[key]
            with suppress(MlstateError):  # which `verify` reports
                kept = self._index.kept(entry.pinned_digest)
                if kept is not None and objects.isdisjoint(kept.objects):
                    continue
                if self._objects.size(entry.pinned_digest) is None:
                    continue  # it is not here
                if named := objects.intersection(self._index.said(entry, self._objects).objects):
                    yield key, named

    def _candidates(self, objects: set[int]) -> dict[StateKey, StateEntry]:
        """The states that may name some objects."""
        states: dict[StateKey, StateEntry] = {}
        if self._versions is not None:
            assert self._place is not None
            for found in self._list_changed().values():
                states |= found
            for path in {path for _, path in self._unchanged_holders(objects)}:
                for name, (_, row) in self._place.entries(path).items():
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
            version = (self._versions or {}).get(path)
            if not folder.is_whole(self._index):
                version = None
            if folder.rows != folder.kept or version != place.versions.get(path, ""):
                objects = folder.objects(self._index)
                self._index.later(
                    partial(
                        place.write,
                        folder=path,
                        version=version,
                        entries=folder.rows,
                        objects=objects,
                    )
                )

    def forget_others(self) -> None:
        """Forget the folders that are there no more, once all states were listed."""
        if self._place is not None:
            for path in self._place.versions.keys() - self._folders.keys():
                self._index.later(partial(self._place.forget, folder=path))

    def _folder(self, path: str) -> _Folder:
        if path not in self._folders:
            assert self._place is not None
            self._folders[path] = _Folder(self._place.entries(path))
        return self._folders[path]

    def _list_changed(self, but: str | None = None) -> dict[str, dict[StateKey, StateEntry]]:
        """List the folders that are not as the index knows them."""
        assert self._place is not None and self._versions is not None
        return {
            path: self.list_folder(path)
            for path, version in self._versions.items()
            if path != but and (version is None or self._place.versions.get(path) != version)
        }

    def _unchanged_holders(self, objects: Iterable[int]) -> Iterator[tuple[int, str]]:
        assert self._place is not None and self._versions is not None
        for number, path in self._place.holders(objects):
            if path in self._versions and path not in self._folders:
                yield number, path

    def _said(self, entry: StateEntry) -> Said | None:
        kept = self._index.kept(entry.pinned_digest)
        if kept is None:
            with suppress(MlstateError, OSError):
                return self._index.said(entry, self._objects)
        return kept


class _Folder:
    """A folder of state files: what the index knew of it, and what is known by now."""

    def __init__(self, kept: _Rows) -> None:
        self.kept = kept
        self.rows: _Rows = {}
        self.whole = True  # whether the files were readable
        self._states: set[Digest] = set()
        self._files: set[Digest] = set()

    def add(self, name: str, version: str | None, row: EntryRow) -> None:
        """Add a state file; one without a version is read again next time."""
        self._states.add(row.digest)
        self._files.update(row.files.values())
        if version is None:
            self.whole = False
        else:
            self.rows[name] = (version, row)

    def is_whole(self, index: Index) -> bool:
        """Whether all its states are known, so that all its objects are."""
        return self.whole and all(index.kept(digest) is not None for digest in self._states)

    def objects(self, index: Index) -> set[int]:
        """All that its states name, and their state objects, as far as that is known."""
        said = (index.kept(digest) for digest in self._states)
        own = map(number_of, self._states | self._files)
        return set(own).union(*(state.objects for state in said if state is not None))


def _split(key: StateKey) -> tuple[str, str]:
    folder, _, name = layout.state_path(key).rpartition("/")
    return folder, name


def _entry_of(key: StateKey, row: EntryRow) -> StateEntry:
    files = {file: FileEntry(digest) for file, digest in row.files.items()}
    return StateEntry(key, row.digest, row.size, files=files)
