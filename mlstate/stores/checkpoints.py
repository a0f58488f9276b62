"""Checkpoints of MLModule: files that stand beside the states of a folder or a bucket."""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mlstate.errors import FormatError, ReadOnlyStoreError, SignatureError, concerning
from mlstate.files import ABSENT
from mlstate.format.encode import encode_state
from mlstate.manifests import StateEntry
from mlstate.objects import MemoryObjectStore
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import Found, Listing, TrashedState
from mlstate.stores.catalog import Catalog, compatible_keys

if TYPE_CHECKING:
    from mlstate.manifests.state_signatures import StateText

__all__ = [
    "SUFFIX",
    "Checkpoints",
    "FolderCheckpoints",
    "WithCheckpoints",
    "key_of_checkpoint",
    "unsigned_checkpoint",
]

SUFFIX = ".pt"


class Checkpoints(Catalog):
    """The checkpoints in a folder or a bucket: read, never written, and without entries."""

    remedy: str
    """How a user removes one."""

    @abc.abstractmethod
    def locate(self, key: StateKey) -> str:
        """The place of the checkpoint of a key, whether it is there or not."""

    def recorded(self, key: StateKey) -> None:
        """None: a checkpoint has no entry."""

    def undeletable(self, key: StateKey) -> ReadOnlyStoreError | None:
        """The error that a key has a checkpoint, which would replace a deleted state."""
        if not self.exists(key):
            return None
        return ReadOnlyStoreError(
            "a checkpoint of the older layout has this key, and mlstate does not delete it",
            key=key,
            path=self.locate(key),
            remedy=self.remedy,
        )


class WithCheckpoints(Catalog):
    """A catalog together with checkpoints, which its states hide where they have the same keys."""

    def __init__(self, catalog: Catalog, checkpoints: Checkpoints) -> None:
        self._catalog = catalog
        self._checkpoints = checkpoints
        self.remote = catalog.remote
        self.signatures = catalog.signatures

    def keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The keys of both."""
        keys = self._catalog.keys(state_type)
        legacy = self._checkpoints.keys(state_type)
        return sorted({*keys, *legacy}) if legacy else keys

    def listing(self) -> Iterator[Listing]:
        """The states of both."""
        found = {state.key: state for state in self._catalog.listing()}
        for checkpoint in self._checkpoints.listing():
            found.setdefault(checkpoint.key, checkpoint)
        return iter(found.values())

    def indexed_as(self) -> str | None:
        """That of the catalog."""
        return self._catalog.indexed_as()

    def folders(self) -> Mapping[str, str | None] | None:
        """Those of the catalog; checkpoints have no objects that others could share."""
        return self._catalog.folders()

    def listing_in(self, folder: str) -> Iterator[Listing]:
        """The states of the catalog."""
        return self._catalog.listing_in(folder)

    def exists(self, key: StateKey) -> bool:
        """Whether one of both has the key."""
        return self._catalog.exists(key) or self._checkpoints.exists(key)

    def recorded(self, key: StateKey) -> StateEntry | None:
        """The entry of the catalog; a checkpoint has none."""
        return self._catalog.recorded(key)

    def text(self, key: StateKey) -> StateText | None:
        """The state file of the catalog; a checkpoint has none."""
        return self._catalog.text(key)

    def trashed(self) -> Iterator[TrashedState] | None:
        """The trash of the catalog."""
        return self._catalog.trashed()

    def trashed_entry(self, state: TrashedState, data: bytes) -> StateEntry:
        """The entry of a state in the trash of the catalog."""
        return self._catalog.trashed_entry(state, data)

    def checkpoint(self, key: StateKey) -> Found | None:
        """A checkpoint as a state."""
        self._refuse_unsigned(key)
        return self._checkpoints.checkpoint(key)

    def checkpoint_bytes(self, key: StateKey) -> bytes | None:
        """The content of a checkpoint."""
        self._refuse_unsigned(key)
        return self._checkpoints.checkpoint_bytes(key)

    def _refuse_unsigned(self, key: StateKey) -> None:
        if self.signatures is None or not self.requires_signature:
            return
        if self._checkpoints.exists(key):
            raise unsigned_checkpoint(key, self._checkpoints.locate(key))

    def undeletable(self, key: StateKey) -> ReadOnlyStoreError | None:
        """The error that a key has a checkpoint."""
        return self._checkpoints.undeletable(key)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether a name is that of a checkpoint, and leads to a file."""
    try:
        return entry.name.endswith(SUFFIX) and entry.is_file()
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return False


def unsigned_checkpoint(key: StateKey, path: str) -> SignatureError:
    """The error that a checkpoint of MLModule has no signature where one is required."""
    return SignatureError(
        "a checkpoint of the older layout has no signature, and one is required",
        key=key,
        path=path,
        remedy="copy it into a store that signs, if you know where it is from",
    )


class FolderCheckpoints(Checkpoints):
    """Checkpoints of MLModule, directly in a folder, which may be missing."""

    remedy = "remove the file"

    def __init__(self, root: Path) -> None:
        self.root = root

    def keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The keys that are compatible with a type, or all; other files are passed over."""
        try:
            with os.scandir(self.root) as entries:
                names = [entry.name for entry in entries if _is_file(entry)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        keys = (key_of_checkpoint(name) for name in names)
        return compatible_keys((key for key in keys if key is not None), state_type)

    def listing(self) -> Iterator[Listing]:
        """All of them, with the sizes and times of their files."""
        for key in self.keys():
            try:
                found = self._path(key).stat()
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
                continue
            yield Listing(key, found.st_mtime, found.st_size)

    def _path(self, key: StateKey) -> Path:
        return self.root / f"{key}{SUFFIX}"

    def locate(self, key: StateKey) -> str:
        """The path of a state's checkpoint, for people."""
        return str(self._path(key))

    def exists(self, key: StateKey) -> bool:
        """Whether there is a checkpoint for a key."""
        return self._path(key).is_file()

    def checkpoint_bytes(self, key: StateKey) -> bytes | None:
        """The content of a checkpoint, or None without one."""
        return self._path(key).read_bytes() if self.exists(key) else None

    def checkpoint(self, key: StateKey) -> Found | None:
        """A checkpoint as a state: read without torch, and encoded in memory."""
        if not self.exists(key):
            return None
        # Every store imports this module, and few folders have checkpoints.
        from mlstate.weights.checkpoints import checkpoint_sources

        path = self.locate(key)
        objects = MemoryObjectStore()
        with concerning(path=path), ExitStack() as stack:
            encoded = encode_state(checkpoint_sources(self._path(key), stack), objects.put)
        objects.put(encoded.digest, [encoded.data])
        return Found(StateEntry(key, encoded.digest, encoded.state.nbytes, origin=path), objects)


def key_of_checkpoint(name: str) -> StateKey | None:
    """The key of the file name of a checkpoint; None for other names."""
    if not name.endswith(SUFFIX):
        return None
    try:
        return StateKey.parse(name.removesuffix(SUFFIX))
    except FormatError:
        return None
