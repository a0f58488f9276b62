"""Stores on this machine: of states in a folder, and of states in memory."""

from __future__ import annotations

import os
from pathlib import Path

from mlstate.errors import FormatError
from mlstate.foreign import file_kind
from mlstate.locations import anchored
from mlstate.manifests.required import (
    RequiredSignature,
    SigningKey,
    places_of,
    state_signatures,
)
from mlstate.objects import FolderObjectStore, MemoryObjectStore
from mlstate.objects.folder import GRACE_SECONDS
from mlstate.phrases import Phrase
from mlstate.stores.checkpoints import FolderCheckpoints, WithCheckpoints
from mlstate.stores.memory_statefiles import MemoryStateFiles
from mlstate.stores.prune import PruneReport
from mlstate.stores.prune_folder import prune_folder
from mlstate.stores.save import SavingStore
from mlstate.stores.state_saver import StateSaver
from mlstate.stores.statefiles import FolderStateFiles

__all__ = ["LocalStateStore", "MemoryStateStore"]


class MemoryStateStore(SavingStore):
    """States in the memory of this process, encoded and verified as in every store.

    Example:
        >>> import torch
        >>> from mlstate import StateKey
        >>> store = MemoryStateStore()
        >>> key = StateKey.parse("pytorch.linear.ones")
        >>> _ = store.save_state_dict({"weight": torch.ones(2)}, key)
        >>> store.load_state_dict(key)["weight"].sum().item()
        2.0
    """

    def __init__(self) -> None:
        files, objects = MemoryStateFiles(), MemoryObjectStore()
        super().__init__(files, objects, StateSaver(files, objects, files))
        self.own = objects

    @property
    def phrase(self) -> Phrase:
        """See `StateStore.phrase`."""
        return Phrase("MemoryStateStore()", "a store in memory")


class LocalStateStore(SavingStore):
    """A folder of states: ``states/`` and ``objects/``.

    Each tensor is stored once, whichever states it belongs to. Several processes may save, load
    and delete at once. A copy of the folder is a store.

    Checkpoints of MLModule (``backend.architecture.extra.training_id.pt``) in the folder
    list and load too; new states are saved beside them.

    Args:
        folder: The folder; ``~`` is the home folder. A relative path begins at the working folder
            of this moment, whatever that is later. It may be missing or empty: the first save
            makes it a store.
        require_signature: The path of an allowed-signers file, or a
            `mlstate.signatures.SignaturePolicy`: a state is not read unless its state file has a
            good signature of one of these signers, and none of a newer version was seen. By
            default as the settings say; False: none is needed, whatever they say.
        signing_key: The path of an SSH key, or of the public key of one that ssh-agent holds: it
            signs each state that is saved. By default as MLSTATE_SIGNING_KEY says; False: none.

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

    folder: Path

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        require_signature: RequiredSignature = None,
        signing_key: SigningKey = None,
    ) -> None:
        self.folder = anchored(folder)
        _check_folder_name(folder, self.folder)
        self._given = os.fspath(folder)
        self.places = places_of(self.folder)
        signatures = state_signatures(require_signature, signing_key, *self.places)
        self._files = FolderStateFiles(self.folder, signatures)
        self._objects = FolderObjectStore(self.folder)
        catalog = WithCheckpoints(self._files, FolderCheckpoints(self.folder))
        super().__init__(catalog, self._objects, StateSaver(self._files, self._objects, catalog))
        self.own = self._objects

    @property
    def phrase(self) -> Phrase:
        """See `StateStore.phrase`."""
        return Phrase(f"LocalStateStore({self._given!r})", self._given)

    def prune(self, *, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False) -> PruneReport:
        """Remove objects that no state names; other processes may save and load meanwhile.

        Objects are moved to trash/ first; the next pruning deletes them. Objects of a state that
        was deleted within the grace period are spared.

        Args:
            grace_seconds: Younger objects are spared. 14 days by default; a shorter period must
                be longer than any save that runs meanwhile.
            dry_run: Change nothing, and report what would be done.

        Returns:
            The objects that were moved, deleted or put back.

        Raises:
            MlstateError: A state cannot be read, so that its objects are unknown: restore or
                delete it first. Nothing was removed.
        """
        files, objects = self._files, self._objects
        return prune_folder(files, objects, grace_seconds=grace_seconds, dry_run=dry_run)


def _check_folder_name(given: str | os.PathLike[str], folder: Path) -> None:
    """Refuse a folder that is to be made under the name of a file: a mistyped manifest, a tar."""
    kind = None if os.fspath(given).endswith(os.sep) else file_kind(folder.name)
    if kind is not None and not folder.exists():
        raise FormatError(
            "a store is a folder, and this is the name of a file that is not there",
            path=given,
            found=kind,
            remedy="check the path; a folder that is to be called so ends in /",
        )
