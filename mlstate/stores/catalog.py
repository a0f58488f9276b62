"""Catalogs: which keys a store has, and the entry behind each.

A store is a catalog, an object store, and perhaps a fetcher. What differs between a folder, a
bucket, a manifest and a release is the catalog.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator

from mlstate.errors import MlstateError, ReadOnlyStoreError, StateNotFoundError
from mlstate.manifests import Manifest, StateEntry
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import Found, Listing
from mlstate.stores.arguments import not_found
from mlstate.stores.statefiles import StateFiles, parse_state_file

__all__ = [
    "Catalog",
    "FileCatalog",
    "ManifestCatalog",
]


class Catalog(abc.ABC):
    """The states of a store: their keys, and what is said of each."""

    remote = False
    """Whether each look at an entry is a request over the network."""
    compares = False
    """Whether `checkpoint` compares what it reads with a digest that is known beforehand."""

    @abc.abstractmethod
    def keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The keys that are compatible with a type, or all; sorted by fields."""

    def listing(self) -> Iterator[Listing]:
        """All states with what listing them tells, in no order."""
        return map(Listing, self.keys())

    def exists(self, key: StateKey) -> bool:
        """Whether there is a state of this key."""
        return self.recorded(key) is not None

    @abc.abstractmethod
    def recorded(self, key: StateKey) -> StateEntry | None:
        """The entry of a state, or None without one. No bytes of the state are read for it.

        Raises:
            ManifestError: The entry cannot be read.
        """

    def checkpoint(self, key: StateKey) -> Found | None:
        """The state that a file of another layout holds, where a key has no entry.

        It has no digest until it is read: this reads and encodes it, or fetches it into the cache.

        Raises:
            MlstateError: It cannot be read, or is no mapping of plain tensors.
        """
        return None

    def checkpoint_bytes(self, key: StateKey) -> bytes | None:
        """The content of such a file, for a model that reads it itself; None without one."""
        return None

    def undeletable(self, key: StateKey) -> ReadOnlyStoreError | None:
        """The error that a key is not this package's to delete; None where it is."""
        return None

    def absent(self, key: StateKey, store: object) -> MlstateError:
        """The error that a store has no such state; near misses are named."""
        return not_found(key, store, self.keys(key.state_type))


class FileCatalog(Catalog):
    """The state files of a folder, a bucket or memory.

    Args:
        files: The state files.
        remote: As for `Catalog`.
        adapt: Makes of what a state file says what holds for whoever reads it here.
    """

    def __init__(
        self,
        files: StateFiles,
        *,
        remote: bool = False,
        adapt: Callable[[StateEntry], StateEntry] | None = None,
    ) -> None:
        self.files = files
        self.remote = remote
        self._adapt = adapt

    def keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The keys that have a state file."""
        return list(self.files.keys(state_type))

    def listing(self) -> Iterator[Listing]:
        """All state files, each with its time."""
        return (Listing(key, modified) for key, modified in self.files.dated())

    def exists(self, key: StateKey) -> bool:
        """Whether there is a state file, readable or not."""
        return self.files.read(key) is not None

    def recorded(self, key: StateKey) -> StateEntry | None:
        """What the state file says."""
        data = self.files.read(key)
        if data is None:
            return None
        entry = parse_state_file(data, key, self.files.locate(key))
        return entry if self._adapt is None else self._adapt(entry)


class ManifestCatalog(Catalog):
    """The states that a manifest lists.

    Args:
        manifest: The manifest.
        hint: What to add to the remedy when a state is not there.
    """

    def __init__(self, manifest: Manifest, hint: str = "") -> None:
        self.manifest = manifest
        self._hint = hint

    def keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The keys that are listed, unpinned ones too."""
        return sorted(
            key
            for key in self.manifest.states
            if state_type is None or key.state_type.is_compatible_with(state_type)
        )

    def recorded(self, key: StateKey) -> StateEntry | None:
        """What the manifest says."""
        return self.manifest.states.get(key)

    def absent(self, key: StateKey, store: object) -> StateNotFoundError:
        """The error that no such state is listed."""
        error = not_found(key, store, self.keys(key.state_type))
        if self._hint:
            error.remedy = (error.remedy or "") + "; " + self._hint
        return error
