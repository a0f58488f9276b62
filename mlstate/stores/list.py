"""Stores with a fixed list of states, for providers that deliver weights in their own way."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Generic, NoReturn

from mlstate.errors import ReadOnlyStoreError, StateNotFoundError
from mlstate.models import LoadResult
from mlstate.phrases import FOLDER
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import AbstractStateStore, ModelT
from mlstate.stores.arguments import check_compatible
from mlstate.stores.catalog import compatible_keys

__all__ = ["AbstractListStateStore"]


class AbstractListStateStore(AbstractStateStore[ModelT], Generic[ModelT]):
    """A store of a fixed list of states and one method that brings a state.

    Implement `available_state_keys` and `state_downloader`. What `state_downloader` loads is
    not verified by mlstate: save it into a `LocalStateStore` once, and load it from there.

    Example:
        >>> import torch
        >>> from mlstate import with_state_type
        >>> class Zeros(AbstractListStateStore[torch.nn.Module]):
        ...     available_state_keys = [StateKey.parse("pytorch.linear.zeros")]
        ...
        ...     def state_downloader(self, model, state_key):
        ...         model.load_state_dict({n: t.zero_() for n, t in model.state_dict().items()})
        >>> model = with_state_type(torch.nn.Linear(1, 1), StateType("pytorch", "linear"))
        >>> Zeros().load(model, Zeros().get_state_keys(model.state_type)[0])
        >>> model.bias.item()
        0.0
    """

    @property
    @abc.abstractmethod
    def available_state_keys(self) -> Sequence[StateKey]:
        """All states of this store; a property or a class attribute."""

    @abc.abstractmethod
    def state_downloader(self, model: ModelT, state_key: StateKey) -> LoadResult | None:
        """Bring a state and load it into a model.

        Args:
            model: The model to change; it is compatible with the key.
            state_key: One of `available_state_keys`.

        Returns:
            What was loaded, if there is something to say.
        """

    def get_state_keys(self, state_type: StateType) -> list[StateKey]:
        """The states of the list that are compatible with a type, sorted."""
        return compatible_keys(self.available_state_keys, state_type)

    def load(self, model: ModelT, state_key: StateKey) -> LoadResult | None:
        """Load a state of the list into a model.

        Raises:
            IncompatibleStateError: The state is of another type; nothing was loaded.
            StateNotFoundError: The state is not in the list.
        """
        check_compatible(model, state_key)
        if state_key not in self.available_state_keys:
            raise StateNotFoundError(
                f"{type(self).__name__} has no such state",
                key=state_key,
                expected=", ".join(map(str, sorted(self.available_state_keys))),
            )
        return self.state_downloader(model, state_key)

    def save(self, model: ModelT, training_id: str) -> NoReturn:
        """Refuse to save, since the list is fixed.

        Raises:
            ReadOnlyStoreError: Always.
        """
        raise ReadOnlyStoreError(
            f"{type(self).__name__} cannot save states",
            remedy="save into " + FOLDER,
        )
