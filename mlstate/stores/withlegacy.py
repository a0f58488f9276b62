"""A store beside checkpoints of the predecessor: they list, they count, and they stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from mlstate.errors import ReadOnlyStoreError
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import check_key
from mlstate.stores.read import Listing
from mlstate.stores.save import SavingStore

__all__ = ["Checkpoints", "SavingBesideLegacy"]


class Checkpoints(Protocol):
    """Checkpoints of the predecessor, in a folder or a bucket."""

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


class SavingBesideLegacy(SavingStore):
    """A store of one's own in a place where the predecessor has left checkpoints.

    A subclass says in `checkpoints` what is there, and finds and reads them itself.
    """

    checkpoints: Checkpoints

    def get_state_keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The states that are compatible with a type, or all, sorted by fields."""
        keys = super().get_state_keys(state_type)
        legacy = set(self.checkpoints.keys(state_type))
        return sorted(legacy.union(keys)) if legacy else keys

    def listing(self) -> Iterator[Listing]:
        """All states with what listing them tells, in no order."""
        found = {state.key: state for state in super().listing()}
        for checkpoint in self.checkpoints.listing():
            found.setdefault(checkpoint.key, checkpoint)
        return iter(found.values())

    def exists(self, state_key: StateKey) -> bool:
        """Whether a state is in this store."""
        return super().exists(state_key) or self.checkpoints.exists(state_key)

    def delete(self, key: StateKey) -> None:
        """Remove a state. Its objects stay until pruning finds them unused.

        Raises:
            StateNotFoundError: There is no such state.
            ReadOnlyStoreError: A checkpoint of the predecessor has this key. It is not deleted,
                and would take the place of a newer state that was.
            BucketError: The store is in a bucket, which cannot be asked.
        """
        check_key(key)
        if self.checkpoints.exists(key):
            raise ReadOnlyStoreError(
                "a checkpoint of the older layout has this key, and mlstate does not delete it",
                key=key,
                path=self.checkpoints.locate(key),
                remedy=self.checkpoints.remedy,
            )
        super().delete(key)
