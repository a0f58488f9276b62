"""States in a folder."""

from __future__ import annotations

import os

from mlstate.errors import ReadOnlyStoreError
from mlstate.locations import local_path
from mlstate.objects import FolderObjectStore
from mlstate.objects.folder import GRACE_SECONDS
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import check_key, check_state_type
from mlstate.stores.legacy import LegacyFolder
from mlstate.stores.prune import PruneReport, prune_folder
from mlstate.stores.saving import SavingStore
from mlstate.stores.statefiles import FolderStateFiles
from mlstate.stores.view import Found

__all__ = ["LocalStateStore"]


class LocalStateStore(SavingStore):
    """A folder of states: ``states/`` and ``objects/``.

    Each tensor is stored once, whichever states it belongs to. Several processes may save, load
    and delete at once. A copy of the folder is a store.

    Checkpoints of the predecessor (``backend.architecture.extra.training_id.pt``) in the folder
    list and load too; new states are saved beside them.

    Args:
        folder: The folder; ``~`` is the home folder. It may be missing or empty: the first save
            makes it a store.

    Raises:
        FormatError: The folder has states/ or objects/ but is no store, or it is one of a newer
            version. Nothing is changed.

    Example:
        >>> import tempfile, torch
        >>> from mlstate import StateType, with_state_type
        >>> store = LocalStateStore(tempfile.mkdtemp())
        >>> model = with_state_type(torch.nn.Linear(2, 2), StateType("pytorch", "linear"))
        >>> key = store.save(model, training_id="first")
        >>> store.load(model, key).missing_keys
        []
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = local_path(folder)
        self._state_files = FolderStateFiles(self.folder)
        self._folder = FolderObjectStore(self.folder)
        super().__init__(self._state_files, self._folder)
        self._legacy = LegacyFolder(self.folder)

    def __repr__(self) -> str:
        return f"LocalStateStore({str(self.folder)!r})"

    def get_state_keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The states that are compatible with a type, or all, sorted by fields."""
        if state_type is not None:
            check_state_type(state_type)
        return sorted({*self.states.keys(state_type), *self._legacy.keys(state_type)})

    def exists(self, state_key: StateKey) -> bool:
        """Whether a state is in this store."""
        return super().exists(state_key) or self._legacy.exists(state_key)

    def find(self, key: StateKey) -> Found | None:
        """Find a state; see `StateView.find`. A new state hides a checkpoint of the same key."""
        return super().find(key) or self._legacy.find(key)

    def raw_bytes(self, key: StateKey) -> bytes | None:
        """The content of a checkpoint of the predecessor, or None if a key has none."""
        if super().exists(key) or not self._legacy.exists(key):
            return None
        return self._legacy.read(key)

    def delete(self, key: StateKey) -> None:
        """Remove a state. Its objects stay until pruning finds them unused.

        Raises:
            StateNotFoundError: There is no such state.
            ReadOnlyStoreError: A checkpoint of the predecessor has this key. It is not deleted,
                and would take the place of a newer state that was.
        """
        check_key(key)
        if self._legacy.exists(key):
            raise ReadOnlyStoreError(
                "a checkpoint of the older layout has this key, and mlstate does not delete it",
                key=key,
                path=self._legacy.path(key),
                remedy="remove the file",
            )
        super().delete(key)

    def prune(self, *, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False) -> PruneReport:
        """Take away objects that no state names; safe while others save and load.

        What is taken away goes to trash/ first; the next pruning deletes it. Objects of a state
        that was deleted within the grace period are spared.

        Args:
            grace_seconds: What is younger is spared. 14 days by default; shorten it only if no
                save beside it takes longer.
            dry_run: Change nothing, say what would be done.

        Returns:
            What was done.

        Raises:
            MlstateError: A state cannot be read, so nobody knows what it needs: restore or delete
                it first. Nothing was removed.
        """
        return prune_folder(
            self._state_files, self._folder, grace_seconds=grace_seconds, dry_run=dry_run
        )
