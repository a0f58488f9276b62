"""State files in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator

from mlstate.parallel import ProcessLock
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import TrashedState
from mlstate.stores.catalog import compatible_keys
from mlstate.stores.statefiles import StateFiles

__all__ = ["MemoryStateFiles"]


class MemoryStateFiles(StateFiles):
    """State files in memory."""

    def __init__(self) -> None:
        self._files: dict[StateKey, bytes] = {}
        self._trash: list[TrashedState] = []
        self._lock = ProcessLock()

    def keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The keys that are here."""
        return compatible_keys(self._files, state_type)

    def read(self, key: StateKey) -> bytes | None:
        """The content of a state file, or None if there is none."""
        return self._files.get(key)

    def create(self, key: StateKey, data: bytes) -> bool:
        """Write a state file that is not there yet; see `StateFiles.create`."""
        with self._lock:
            if key in self._files:
                return False
            self._files[key] = data
            return True

    def replace(self, key: StateKey, data: bytes) -> None:
        """Write a state file, whatever is there."""
        with self._lock:
            self._keep_in_trash(key)
            self._files[key] = data

    def change(self, key: StateKey, old: bytes, new: bytes) -> bool:
        """Write a state file over exactly this content; see `StateFiles.change`."""
        with self._lock:
            if self._files.get(key) != old:
                return False
            self._files[key] = new
            return True

    def remove(self, key: StateKey) -> bool:
        """Move a state file into the trash; objects in memory are never pruned."""
        with self._lock:
            self._keep_in_trash(key)
            return self._files.pop(key, None) is not None

    def trashed(self) -> Iterator[TrashedState]:
        """The state files that were removed or replaced."""
        return iter(tuple(self._trash))

    def _keep_in_trash(self, key: StateKey) -> None:
        data = self._files.get(key)
        if data is not None:
            place = f"{self.locate(key)}, removed"
            self._trash.append(TrashedState(key, time.time(), place, lambda: data))

    def case_variant(self, key: StateKey) -> StateKey | None:
        """A key that is here and differs in case only."""
        same = (k for k in list(self._files) if k != key and str(k).lower() == str(key).lower())
        return next(same, None)

    def locate(self, key: StateKey) -> str:
        """A name for the state file's place."""
        return f"memory:{key}"
