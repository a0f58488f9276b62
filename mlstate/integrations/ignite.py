"""For Ignite: a handler that saves a model's states while an engine trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlstate.errors import FormatError
from mlstate.integrations.common import StoreLike, needing, saving_store
from mlstate.models import state_type_of
from mlstate.states import StateKey

with needing("ignite", "pytorch-ignite"):
    import ignite.distributed as idist
    from ignite.engine import Engine, Events

__all__ = ["SaveModelState"]


class SaveModelState:
    """Saves a model as ``<training_id>-e<epoch>`` while it is trained, and as ``<training_id>``.

    The latter is the model when the engine has completed. Of several processes the first saves.

    Args:
        store: The store to save into, or what `mlstate.open_store` takes.
        model: The model, with a `state_type`.
        training_id: What made these states.
        every: Save each so many epochs.
        keep_last: How many of the states of epochs stay; by default all. Others are deleted.
        meta: Free information for each state; the epoch is added.
        overwrite: Replace other states of these keys, as when a run is repeated.

    Raises:
        ReadOnlyStoreError: The store does not save.
        IncompatibleStateError: The model has no state type.
        FormatError: Another argument is not valid.

    Example:
        ``SaveModelState(store, model, "2026-01-10").attach(trainer)``
    """

    def __init__(
        self,
        store: StoreLike,
        model: Any,
        training_id: str,
        *,
        every: int = 1,
        keep_last: int | None = None,
        meta: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        for name, number in (("every", every), ("keep_last", keep_last)):
            if number is not None and number < 1:
                raise FormatError(f"{name} is a number", expected="1 or more", found=number)
        self.store = saving_store(store)
        self.model = model
        self.training_id = training_id
        self._every = every
        self._keep_last = keep_last
        self._meta = dict(meta or {})
        self._overwrite = overwrite
        StateKey(state_type_of(model), f"{training_id}-e1")  # refused now, or after hours
        self._saved: list[StateKey] = []

    def attach(self, engine: Engine) -> None:
        """Save after epochs of this engine, and when it has completed."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self._every), self)
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save now: of a completed engine under the training id alone.

        Raises:
            StateExistsError: Another state has the key.
        """
        if idist.get_rank() != 0:
            return
        done = engine.last_event_name == Events.COMPLETED
        epoch = engine.state.epoch
        name = self.training_id if done else f"{self.training_id}-e{epoch}"
        meta = {**self._meta, "epoch": epoch}
        key = self.store.save(self.model, name, meta=meta, overwrite=self._overwrite)
        if not done and key not in self._saved:
            self._saved.append(key)
            if self._keep_last is not None and len(self._saved) > self._keep_last:
                self.store.delete(self._saved.pop(0))
