"""What a store is: three methods, and `exists` for free.

What only some stores can do (delete, give files and digests) are protocols of their own.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from mlstate.digests import Digest
from mlstate.errors import FormatError, IncompatibleStateError
from mlstate.models import LoadResult, state_type_of
from mlstate.states import StateKey, StateType

__all__ = [
    "AbstractStateStore",
    "DeletingStore",
    "DescribedStore",
    "check_compatible",
    "check_key",
    "check_keys",
    "check_list",
    "check_state_type",
]

ModelT = TypeVar("ModelT")


class AbstractStateStore(abc.ABC, Generic[ModelT]):
    """Base of every store, and of those that you write yourself.

    Implement `get_state_keys`, `load` and `save`.
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


def check_key(key: object) -> None:
    """Refuse what is no key, such as its text form.

    Raises:
        FormatError: It is not a `StateKey`.
    """
    if not isinstance(key, StateKey):
        raise FormatError(
            "a state is named by a StateKey",
            found=repr(key),
            remedy=f"StateKey.parse({key!r})" if isinstance(key, str) else None,
        )


def check_keys(keys: Iterable[StateKey]) -> list[StateKey]:
    """Refuse what is no list of keys.

    Raises:
        FormatError: It is a single key, or one of it is no `StateKey`.
    """
    if isinstance(keys, StateKey | str) or not isinstance(keys, Iterable):
        raise FormatError("keys is a list of state keys", expected=f"[{keys!r}]", found=repr(keys))
    listed = list(keys)
    for key in listed:
        check_key(key)
    return listed


def check_list(
    names: Sequence[str] | None, argument: str = "names", what: str = "names"
) -> Sequence[str] | None:
    """Refuse a single text where a list of them is needed.

    Args:
        names: What was given.
        argument: What the argument is called.
        what: What it is a list of.

    Raises:
        FormatError: It is a text.
    """
    if isinstance(names, str):
        raise FormatError(f"{argument} is a list of {what}", expected=[names], found=repr(names))
    return names


def check_state_type(state_type: object) -> None:
    """Refuse what is no type, such as a model or its type's text form.

    Raises:
        FormatError: It is not a `StateType`.
    """
    if not isinstance(state_type, StateType):
        raise FormatError(
            "states are listed by a StateType",
            expected="StateType(backend, architecture), for instance model.state_type",
            found=type(state_type).__name__,
        )


def check_compatible(model: object, key: StateKey) -> None:
    """Refuse a state of another type than a model's.

    Raises:
        IncompatibleStateError: Backend or architecture differ, or the model has no state type.
        FormatError: The key is not a `StateKey`.
    """
    check_key(key)
    own = state_type_of(model)
    if not own.is_compatible_with(key.state_type):
        raise IncompatibleStateError(
            "this state is of another type than the model; nothing was loaded",
            key=key,
            expected=f"{own.backend}.{own.architecture}",
            found=f"{key.state_type.backend}.{key.state_type.architecture}",
        )
