"""The predecessor's folders, ``backend.architecture.extra.training_id.pt``: read, never written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mlstate.errors import FormatError
from mlstate.manifests import StateEntry
from mlstate.objects import MemoryObjectStore
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import Found, Listing

__all__ = ["LegacyFolder"]

_SUFFIX = ".pt"


class LegacyFolder:
    """Checkpoints of the predecessor, directly in a folder.

    Args:
        root: The folder; it may be missing.
    """

    remedy = "remove the file"

    def __init__(self, root: Path) -> None:
        self.root = root

    def keys(self, state_type: StateType | None = None) -> Iterator[StateKey]:
        """The keys that are compatible with a type, or all; other files are none of ours."""
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
        """The content of a checkpoint, for a model that reads it itself; None without one."""
        return self.path(key).read_bytes() if self.exists(key) else None

    def find(self, key: StateKey) -> Found | None:
        """A checkpoint as a state: unpickled as plain tensors only, and encoded in memory.

        So a checkpoint has a digest and loads by the same rules as every state.

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
