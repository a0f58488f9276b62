"""Stores with a fixed list of states, for providers that deliver weights in their own way."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NoReturn

from mlstate.errors import FormatError, ReadOnlyStoreError, StateNotFoundError
from mlstate.models import LoadResult
from mlstate.phrases import FOLDER
from mlstate.states import StateKey, StateType, listed_keys
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
    def available_state_keys(self) -> Sequence[StateKey | str]:
        """All states of this store, as keys or as their texts; a property or class attribute."""

    @abc.abstractmethod
    def state_downloader(self, model: ModelT, state_key: StateKey) -> Any:
        """Bring a state, and load it into a model or return its state dict.

        Args:
            model: The model to change; it is compatible with the key.
            state_key: One of `available_state_keys`.

        Returns:
            None, if it has loaded the state; or what was loaded: a `LoadResult`, or what
            ``model.load_state_dict`` returned. Or names and tensors, which are loaded then.
        """

    def get_state_keys(self, state_type: StateType) -> list[StateKey]:
        """The states of the list that are compatible with a type, sorted."""
        return compatible_keys(self._keys(), state_type)

    def load(self, model: ModelT, state_key: StateKey) -> LoadResult | None:
        """Load a state of the list into a model.

        Raises:
            IncompatibleStateError: The state is of another type; nothing was loaded.
            StateNotFoundError: The state is not in the list.
            FormatError: The list has something that is no key, or `state_downloader` returned
                something else than it may.
        """
        check_compatible(model, state_key)
        if state_key not in self._keys():
            raise StateNotFoundError(
                f"{type(self).__name__} has no such state",
                key=state_key,
                expected=", ".join(map(str, sorted(self._keys()))),
            )
        return self._loaded(model, self.state_downloader(model, state_key))

    def _keys(self) -> list[StateKey]:
        return listed_keys(self.available_state_keys, "available_state_keys")

    def _loaded(self, model: Any, returned: Any) -> LoadResult | None:
        """What was loaded, of what `state_downloader` returned."""
        if isinstance(returned, Mapping):
            returned = model.load_state_dict(returned)
        if returned is None or isinstance(returned, LoadResult):
            return returned
        if isinstance(returned, tuple) and hasattr(returned, "unexpected_keys"):  # torch's pair
            return LoadResult(*returned)
        raise FormatError(
            f"state_downloader of {type(self).__name__} returned what it cannot return",
            expected="None, once it has loaded the state; a LoadResult, or what load_state_dict "
            "returns; or names and tensors to load",
            found=f"a {type(returned).__name__}",
            remedy="load what you brought: model.load_state_dict(state_dict)",
        )

    def save(self, model: ModelT, training_id: str) -> NoReturn:
        """Refuse to save, since the list is fixed.

        Raises:
            ReadOnlyStoreError: Always.
        """
        raise ReadOnlyStoreError(
            f"{type(self).__name__} cannot save states",
            remedy="save into " + FOLDER,
        )
