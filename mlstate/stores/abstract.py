"""The base of every store, protocols of what some can do, and values that describe states."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from mlstate.digests import Digest
from mlstate.manifests import StateEntry
from mlstate.models import LoadResult
from mlstate.objects import ObjectStore
from mlstate.states import StateKey, StateType

__all__ = [
    "AbstractStateStore",
    "AnyStore",
    "DeletingStore",
    "DescribedStore",
    "Found",
    "Listing",
    "RemotePlace",
    "TrashedState",
]

ModelT = TypeVar("ModelT")


class AbstractStateStore(abc.ABC, Generic[ModelT]):
    """Base of every store, and of those that you write yourself.

    Implement `get_state_keys`, `load` and `save`. With `load_state_dict(key)`, which returns a
    state's tensors by name, all operations of mlstate read your store, too; with `digest(key)`
    they compare what they read; with `save_state_dict(state_dict, key)` they copy into it.
    """

    @abc.abstractmethod
    def get_state_keys(self, state_type: StateType) -> list[StateKey]:
        """The states that are compatible with a type.

        Args:
            state_type: For instance ``model.state_type``.

        Returns:
            Every compatible key, sorted by fields.
        """

    @abc.abstractmethod
    def load(self, model: ModelT, state_key: StateKey) -> LoadResult | None:
        """Load a state into a model.

        Args:
            model: The model to change.
            state_key: The state to load.

        Returns:
            What was loaded and what was not.

        Raises:
            IncompatibleStateError: The state is of another type; nothing was loaded.
            StateNotFoundError: There is no such state.
        """

    @abc.abstractmethod
    def save(self, model: ModelT, training_id: str) -> StateKey:
        """Save a model's state.

        Args:
            model: The model; its ``state_type`` becomes part of the key.
            training_id: What made this state.

        Returns:
            The key that it is stored under.

        Raises:
            StateExistsError: Another state has this key.
            ReadOnlyStoreError: This store cannot be written.
        """

    def exists(self, state_key: StateKey) -> bool:
        """Whether a state is in this store.

        Args:
            state_key: The state to look for.
        """
        return state_key in self.get_state_keys(state_key.state_type)


@runtime_checkable
class DeletingStore(Protocol):
    """A store that can delete states."""

    def delete(self, key: StateKey) -> None:
        """Remove a state; its objects go with the next pruning that finds them unused.

        Raises:
            StateNotFoundError: There is no such state.
        """


@runtime_checkable
class DescribedStore(Protocol):
    """A store that knows its states by digest, and keeps files beside the tensors."""

    def digest(self, key: StateKey) -> Digest:
        """The state digest of a state."""

    def files(self, key: StateKey) -> Mapping[str, bytes]:
        """The files of a state, by name; verified as they are read."""

    def load_state_dict(self, key: StateKey) -> dict[str, Any]:
        """The tensors of a state, without a model."""


class Found(NamedTuple):
    """A state that a store has: its entry, and the object store that has its bytes."""

    entry: StateEntry
    objects: ObjectStore


class Listing(NamedTuple):
    """A state in a listing.

    Attributes:
        key: Its key.
        modified: The time at which it was saved, in seconds since the epoch; or None.
        size: The bytes of a state that is not made of objects, such as a checkpoint; else None.
        version: What changes whenever its state file does; None if nothing tells that.
    """

    key: StateKey
    modified: float | None = None
    size: int | None = None
    version: str | None = None


class TrashedState(NamedTuple):
    """A state that was deleted, or replaced by another, and whose state file is in the trash.

    Attributes:
        key: Its key.
        removed: The time at which it went, in seconds since the epoch.
        place: Where its state file is, for people.
        read: Returns the content of its state file; None if a pruning has taken it since.
    """

    key: StateKey
    removed: float
    place: str
    read: Callable[[], bytes | None]


class RemotePlace(NamedTuple):
    """The place of a store on the network.

    Attributes:
        name: Its name, for people.
        address: An address that is read to find out whether the server answers.
        lacking: The meaning of an empty address; None if something has to be there.
    """

    name: str
    address: str
    lacking: str | None = None


AnyStore = AbstractStateStore[Any]
"""Any store, whatever models it loads."""
