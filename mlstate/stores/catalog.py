"""Catalogs: which keys a store has, and the entry behind each.

A store is a catalog, an object store, and perhaps a fetcher. What differs between a folder, a
bucket, a manifest and a release is the catalog.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from mlstate.errors import MlstateError, ReadOnlyStoreError, StateNotFoundError
from mlstate.manifests import Manifest, StateEntry
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import Found, Listing, TrashedState
from mlstate.stores.arguments import not_found

if TYPE_CHECKING:
    from mlstate.manifests.pins import Pins
    from mlstate.manifests.state_signatures import StateSignatures, StateText

__all__ = ["Catalog", "ManifestCatalog", "compatible_keys"]


class Catalog(abc.ABC):
    """The states of a store: their keys, and the entry of each."""

    remote = False
    """Whether each look at an entry is a request over the network."""
    compares = False
    """Whether `checkpoint` compares what it reads with a digest that the store gives."""
    signatures: StateSignatures | None = None
    """How its state files are signed; None: they are not, and need not be."""

    @property
    def requires_signature(self) -> bool:
        """Whether an entry is read only if it is signed. Keys are listed all the same."""
        return self.signatures is not None and self.signatures.signers is not None

    @property
    def aliases(self) -> Mapping[str, StateKey]:
        """Other names for states: alias -> key."""
        return {}

    @abc.abstractmethod
    def keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The keys that are compatible with a type, or all; sorted by fields."""

    def listing(self) -> Iterator[Listing]:
        """All states with their times and sizes, where listing them gives these; in no order."""
        return map(Listing, self.keys())

    def indexed_as(self) -> str | None:
        """The name under which an index keeps what the versions in listings say; None: it cannot.

        Not where signatures are looked at: each reading of a state file checks them.
        """
        return None

    def folders(self) -> Mapping[str, str | None] | None:
        """The folders of state files with their versions; None where only a listing tells."""
        return None

    def listing_in(self, folder: str) -> Iterator[Listing]:
        """The states of one of the `folders`, as in `listing`."""
        return iter(())

    def exists(self, key: StateKey) -> bool:
        """Whether there is a state of this key."""
        return self.recorded(key) is not None

    @abc.abstractmethod
    def recorded(self, key: StateKey) -> StateEntry | None:
        """The entry of a state, or None without one; a ManifestError if it cannot be read."""

    def text(self, key: StateKey) -> StateText | None:
        """The state file of a state as it is, not checked; None where there is none."""
        return None

    def signed_file(self, key: StateKey) -> bytes | None:
        """The state file of a state with its signature at its end; None if it has none.

        Raises:
            SignatureError: It has no good one, and needs one.
        """
        text = self.text(key)
        if text is None:
            return None
        if self.signatures is not None and self.requires_signature:
            self.signatures.entry(text)
        from mlstate.manifests.state_signatures import with_signature

        return with_signature(text)

    def checkpoint(self, key: StateKey) -> Found | None:
        """A state without an entry, encoded in memory or fetched into the cache; None without one.

        It is a checkpoint of MLModule, or a state of a user's own store.

        Raises:
            MlstateError: It cannot be read, or is no mapping of plain tensors.
        """
        return None

    def checkpoint_bytes(self, key: StateKey) -> bytes | None:
        """The content of a checkpoint, for a model that reads it itself; None without one."""
        return None

    def trashed(self) -> Iterator[TrashedState] | None:
        """The states in the trash, in no order; None of a store that keeps nothing it deletes."""
        return None

    def trashed_entry(self, state: TrashedState, data: bytes) -> StateEntry:
        """The entry in a state file from the trash, which is checked as one that is there would be.

        Raises:
            SignatureError: It has no good signature and needs one, or a newer version was seen.
            ManifestError: It cannot be read.
        """
        raise NotImplementedError

    def undeletable(self, key: StateKey) -> ReadOnlyStoreError | None:
        """The error that a state cannot be deleted because of a checkpoint, or None."""
        return None

    def absent(self, key: StateKey, store: object) -> MlstateError:
        """The error that a store has no such state; it names similar keys."""
        return not_found(key, store, self.keys(key.state_type))


class ManifestCatalog(Catalog):
    """The states that a manifest lists.

    Args:
        manifest: The manifest.
        hint: Added to the remedy of a missing state.
        pins: Give the digests of states that the manifest gives none of; None: nothing does.
    """

    def __init__(self, manifest: Manifest, hint: str = "", pins: Pins | None = None) -> None:
        self.manifest = manifest
        self._hint = hint
        self._pins = pins

    @property
    def aliases(self) -> Mapping[str, StateKey]:
        """The aliases that the manifest gives."""
        return self.manifest.aliases

    def keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The keys that are listed, unpinned ones too."""
        return compatible_keys(self.manifest.states, state_type)

    def recorded(self, key: StateKey) -> StateEntry | None:
        """The entry that the manifest has, with the digest of its pin if it has none."""
        entry = self.manifest.states.get(key)
        if entry is None or entry.digest is not None or self._pins is None:
            return entry
        return self._pins.applied(entry)

    def absent(self, key: StateKey, store: object) -> StateNotFoundError:
        """The error that no such state is listed."""
        error = not_found(key, store, self.keys(key.state_type))
        if self._hint:
            error.remedy = (error.remedy or "") + "; " + self._hint
        return error


def compatible_keys(keys: Iterable[StateKey], state_type: StateType | None) -> list[StateKey]:
    """The keys that are compatible with a type, or all; sorted."""
    return sorted(
        key for key in keys if state_type is None or key.state_type.is_compatible_with(state_type)
    )
