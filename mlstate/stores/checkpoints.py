"""Checkpoints of the predecessor: files that stand beside the states of a folder or a bucket."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from mlstate.errors import FormatError, ReadOnlyStoreError
from mlstate.manifests import StateEntry
from mlstate.objects import MemoryObjectStore
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import Found, Listing
from mlstate.stores.catalog import Catalog

__all__ = ["Checkpoints", "FolderCheckpoints", "WithCheckpoints"]

_SUFFIX = ".pt"


class Checkpoints(Protocol):
    """Checkpoints of the predecessor, in a folder or a bucket: read, never written."""

    remedy: str
    """How to remove one."""

    def keys(self, state_type: StateType | None = None) -> Iterator[StateKey]:
        """The keys that are compatible with a type, or all."""

    def listing(self) -> Iterator[Listing]:
        """All of them, with their sizes and times."""

    def exists(self, key: StateKey) -> bool:
        """Whether there is a checkpoint for a key."""

    def locate(self, key: StateKey) -> str:
        """Where the checkpoint of a key is, or would be."""

    def find(self, key: StateKey) -> Found | None:
        """A checkpoint as a state, with a digest; see `Catalog.checkpoint`."""

    def read(self, key: StateKey) -> bytes | None:
        """The content of a checkpoint, or None without one."""


class WithCheckpoints(Catalog):
    """A catalog together with checkpoints, which its states hide where they have the same keys."""

    def __init__(self, catalog: Catalog, checkpoints: Checkpoints) -> None:
        self._catalog = catalog
        self._checkpoints = checkpoints
        self.remote = catalog.remote

    def keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The keys of both."""
        keys = self._catalog.keys(state_type)
        legacy = set(self._checkpoints.keys(state_type))
        return sorted(legacy.union(keys)) if legacy else keys

    def listing(self) -> Iterator[Listing]:
        """The states of both."""
        found = {state.key: state for state in self._catalog.listing()}
        for checkpoint in self._checkpoints.listing():
            found.setdefault(checkpoint.key, checkpoint)
        return iter(found.values())

    def exists(self, key: StateKey) -> bool:
        """Whether one of both has the key."""
        return self._catalog.exists(key) or self._checkpoints.exists(key)

    def recorded(self, key: StateKey) -> StateEntry | None:
        """The entry of the catalog; a checkpoint has none."""
        return self._catalog.recorded(key)

    def checkpoint(self, key: StateKey) -> Found | None:
        """A checkpoint as a state."""
        return self._checkpoints.find(key)

    def checkpoint_bytes(self, key: StateKey) -> bytes | None:
        """The content of a checkpoint."""
        return self._checkpoints.read(key)

    def undeletable(self, key: StateKey) -> ReadOnlyStoreError | None:
        """The error that a key has a checkpoint, which would replace a deleted state."""
        if not self._checkpoints.exists(key):
            return None
        return ReadOnlyStoreError(
            "a checkpoint of the older layout has this key, and mlstate does not delete it",
            key=key,
            path=self._checkpoints.locate(key),
            remedy=self._checkpoints.remedy,
        )


class FolderCheckpoints:
    """Checkpoints of the predecessor, directly in a folder, which may be missing."""

    remedy = "remove the file"

    def __init__(self, root: Path) -> None:
        self.root = root

    def keys(self, state_type: StateType | None = None) -> Iterator[StateKey]:
        """The keys that are compatible with a type, or all; other files are passed over."""
        try:
            names = os.listdir(self.root)
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            if name.endswith(_SUFFIX):
                try:
                    key = StateKey.parse(name.removesuffix(_SUFFIX))
                except FormatError:
                    continue
                if state_type is None or key.state_type.is_compatible_with(state_type):
                    yield key

    def listing(self) -> Iterator[Listing]:
        """All of them, with the sizes and times of their files."""
        for key in self.keys():
            with contextlib.suppress(FileNotFoundError):
                found = self.path(key).stat()
                yield Listing(key, found.st_mtime, found.st_size)

    def path(self, key: StateKey) -> Path:
        """Where a state's checkpoint is, or would be."""
        return self.root / f"{key}{_SUFFIX}"

    def locate(self, key: StateKey) -> str:
        """The path of a state's checkpoint, for people."""
        return str(self.path(key))

    def exists(self, key: StateKey) -> bool:
        """Whether there is a checkpoint for a key."""
        return self.path(key).is_file()

    def read(self, key: StateKey) -> bytes | None:
        """The content of a checkpoint, or None without one."""
        return self.path(key).read_bytes() if self.exists(key) else None

    def find(self, key: StateKey) -> Found | None:
        """A checkpoint as a state: unpickled as plain tensors only, and encoded in memory.

        Raises:
            FormatError: It is not a flat mapping of plain tensors.
        """
        data = self.read(key)
        if data is None:
            return None
        from mlstate.tensors import encode_tensors, load_checkpoint

        path = self.locate(key)
        state_dict = load_checkpoint(data, path)
        objects = MemoryObjectStore()
        try:
            encoded = encode_tensors(state_dict, objects.put)
        except FormatError as error:
            error.message = "this checkpoint is no flat mapping from names to plain tensors"
            error.path = path
            raise
        objects.put(encoded.digest, [encoded.data])
        return Found(StateEntry(key, encoded.digest, encoded.state.nbytes, origin=path), objects)
