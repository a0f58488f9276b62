"""Stores that save: their public methods, and the protocol of the part that writes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from mlstate.errors import (
    IncompatibleStateError,
    StateNotFoundError,
    UnsupportedStoreError,
    concerning,
)
from mlstate.format.encode import EncodedState, TensorSource, bytes_source
from mlstate.lazy import public
from mlstate.manifests import StateEntry
from mlstate.models import BytesModel, TensorModel, state_type_of
from mlstate.objects import ObjectStore
from mlstate.objects.interface import EncodingObjectStore
from mlstate.phrases import Phrase
from mlstate.states import StateKey, check_key
from mlstate.stores.catalog import Catalog
from mlstate.stores.read import StateStore
from mlstate.stores.save_request import Content, SaveRequest, check_alone

if TYPE_CHECKING:
    from mlstate.fetch import Fetcher

__all__ = ["Saver", "SavingStore", "sources_of_model"]


class Saver(Protocol):
    """The part of a store that saves and deletes states."""

    def save(self, key: StateKey, sources: list[TensorSource], request: SaveRequest) -> None:
        """Save the tensors that these sources give under a key."""

    def receive(self, encoded: EncodedState, wanted: StateEntry, request: SaveRequest) -> bool:
        """Save a state whose digests are known already; its bytes are verified on the way.

        `wanted` is its entry, without digest and size. Returns False if it was there.
        """

    def is_taken(self, key: StateKey) -> bool:
        """Whether there is a state of this key, or of one that differs in case only."""

    def delete(self, key: StateKey) -> bool:
        """Remove a state; False if there was none."""

    def change(self, key: StateKey, old: bytes, new: bytes) -> bool:
        """Write a state file, or pointer, over exactly this content; False if it has another."""


class SavingStore(StateStore):
    """A `StateStore` with a saver, which saves and deletes."""

    def __init__(
        self,
        catalog: Catalog,
        objects: ObjectStore,
        saver: Saver,
        fetcher: Fetcher | None = None,
    ) -> None:
        super().__init__(catalog, objects, fetcher)
        self.saver = saver

    def save(
        self,
        model: Any,
        training_id: str,
        *,
        files: Mapping[str, Content] | None = None,
        meta: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        verify: bool = False,
        compact: bool | StateKey | str | None = None,
        group: Any = None,
        check_replicas: bool = False,
    ) -> StateKey:
        """Save a model's state under its ``state_type`` and a training id.

        Objects that the store has already, of any state, are not written again. Saving the same
        weights and files again changes nothing. Of a model inside of DataParallel,
        DistributedDataParallel or torch.compile the names are those without the wrapper.

        Args:
            model: A ``torch.nn.Module`` with a ``state_type``, or another model.
            training_id: What made this state, for instance ``"2022-01-01-finetuned-imagenet"``.
            files: Files to keep with it: name -> bytes, or the path of a file.
            meta: Free information: licence, description, metrics. That of an unchanged state
                stays as it is stored, with a warning.
            overwrite: Replace another state that has this key.
            verify: Read objects that are reused, and write those that are damaged again.
            compact: Write tensors encoded, as `mlstate.compact` does, where that saves a tenth.
                True: as the difference to the nearest of some states of this type; a key, or its
                text: to those of that state. By default as the store's settings say.
            group: The process group whose ranks save together: all of them call this, each with
                what it holds. A model with DTensors (FSDP2, tensor parallel) is always saved so, by
                all ranks if no group is given; any other one by this process alone.
            check_replicas: Compare the values that several ranks hold, and refuse to save
                different ones. Otherwise those of the lowest rank are saved. Of a model without
                DTensors it needs ``group``.

        Returns:
            The key that it is stored under.

        Raises:
            StateExistsError: Other weights or files have this key; nothing was written.
            FormatError: An entry of the state dict cannot be stored, or there is none; nothing was
                written.
            IncompatibleStateError: The model has no state type.
            StateNotFoundError: There is no state of the key in `compact`; nothing was written.
            PeerError: Another rank failed, was killed or stopped; no state was saved.
        """
        key = StateKey(state_type_of(model), training_id)
        request = SaveRequest(files or {}, meta, overwrite, verify, compact=self._compact(compact))
        state = None
        if group is None and isinstance(model, TensorModel):
            with concerning(key):
                state = _state_of(model)
        if group is not None or (state is not None and _any_sharded(state)):
            from mlstate.tensors import saved_entries

            self._save_together(lambda: saved_entries(model), key, request, group, check_replicas)
            return key
        check_alone(check_replicas)
        with concerning(key):
            sources = sources_of_model(model, state)
        self.saver.save(key, sources, request)
        return key

    def save_state_dict(
        self,
        state_dict: Mapping[str, Any],
        key: StateKey,
        *,
        files: Mapping[str, Content] | None = None,
        meta: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        verify: bool = False,
        compact: bool | StateKey | str | None = None,
        group: Any = None,
        check_replicas: bool = False,
    ) -> StateKey:
        """Save tensors without a model: merged or averaged weights, an adapter, a checkpoint.

        Args:
            state_dict: Name -> tensor, or array of NumPy.
            key: The key to store it under.
            files: As for `save`.
            meta: As for `save`.
            overwrite: As for `save`.
            verify: As for `save`.
            compact: As for `save`.
            group: As for `save`.
            check_replicas: As for `save`.

        Returns:
            The key.

        Raises:
            StateExistsError: Other weights or files have this key; nothing was written.
            FormatError: An entry cannot be stored, or there is none; nothing was written.
            PeerError: Another rank failed, was killed or stopped; no state was saved.
        """
        from mlstate.tensors import any_sharded, tensor_sources

        check_key(key)
        request = SaveRequest(files or {}, meta, overwrite, verify, compact=self._compact(compact))
        if group is not None or any_sharded(state_dict):
            self._save_together(lambda: state_dict, key, request, group, check_replicas)
            return key
        check_alone(check_replicas)
        with concerning(key):
            sources = tensor_sources(state_dict)
        self.saver.save(key, sources, request)
        return key

    def save_optimizer_state_dict(
        self,
        state_dict: Mapping[str, Any],
        key: StateKey,
        *,
        files: Mapping[str, Content] | None = None,
        meta: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        verify: bool = False,
        compact: bool | StateKey | str | None = None,
    ) -> StateKey:
        """Save the state dict of an optimizer, or of a scheduler or scaler, as a state of its own.

        Its tensors have the path as their name (``state.0.exp_avg``), and so do its numbers
        (``param_groups.0.lr``), each as a tensor. `load_optimizer_state_dict` gives it back.

        Args:
            state_dict: What ``optimizer.state_dict()`` gives: tensors, numbers, texts and None in
                mappings, lists and tuples.
            key: The key to store it under. Give it an architecture of its own, such as
                ``net-optimizer``, so that it is not listed among the states of the model.
            files: As for `save`.
            meta: As for `save`.
            overwrite: As for `save`.
            verify: As for `save`.
            compact: As for `save`.

        Returns:
            The key.

        Raises:
            StateExistsError: Another state has this key; nothing was written.
            FormatError: An entry cannot be stored: the error names it; nothing was written.
        """
        from mlstate.tensors import flattened

        check_key(key)
        with concerning(key):
            tensors = flattened(state_dict)
        return self.save_state_dict(
            tensors,
            key,
            files=files,
            meta=meta,
            overwrite=overwrite,
            verify=verify,
            compact=compact,
        )

    def _compact(self, compact: bool | StateKey | str | None) -> bool | StateKey | None:
        """How tensors are saved; a FormatError for a text that is no key."""
        chosen = StateKey.parse(compact) if isinstance(compact, str) else compact
        if chosen and not isinstance(self.own, EncodingObjectStore):
            raise UnsupportedStoreError(
                "tensors are not encoded in this store",
                expected="a folder, or a bucket",
                found=self,
                remedy=Phrase("leave compact= out", ""),
            )
        return chosen

    def compact(self, keys: Iterable[StateKey] | None = None, **options: Any) -> Any:
        """Keep tensors as differences to near ones, in fewer bytes; see `mlstate.compact`.

        Args:
            keys: Those of these states; by default of all.
            options: As of `mlstate.compact`: ``chain=True``, ``dry_run=True`` ...

        Returns:
            What was done.
        """
        return public("compact")(self, keys, **options)

    def _save_together(
        self,
        state: Callable[[], Mapping[str, Any]],
        key: StateKey,
        request: SaveRequest,
        group: Any,
        check_replicas: bool,
    ) -> None:
        """Save by all ranks of a group, by `mlstate.distributed`, which is above the stores."""
        if request.compact:
            raise UnsupportedStoreError(
                "ranks that save together encode no tensors",
                remedy=Phrase("leave compact= out, and compact the store later", ""),
            )
        together = importlib.import_module("mlstate.distributed.save")
        together.save_sharded(self, state, key, request, group=group, check_replicas=check_replicas)

    def delete(self, key: StateKey) -> None:
        """Remove a state. Of a folder or a bucket its objects go with the prunings after it.

        Raises:
            StateNotFoundError: There is no such state.
            ReadOnlyStoreError: A checkpoint of MLModule has this key: it is not deleted, and
                would take the place of a newer state that was. Or a release is immutable.
            BucketError: The store is in a bucket, which cannot be asked.
            AccessError: The token is missing, wrong, or may not write.
        """
        check_key(key)
        if error := self.catalog.undeletable(key):
            raise error
        if not self.saver.delete(key):
            self.get(key)  # says what is there instead
            raise StateNotFoundError("another process deleted this state first", key=key)


def _state_of(model: TensorModel) -> Mapping[str, Any]:
    """The state dict of a model as it is saved: without the names of wrappers."""
    from mlstate.tensors import unwrapped

    return unwrapped(model).state_dict()


def _any_sharded(state: Mapping[str, Any]) -> bool:
    from mlstate.tensors import any_sharded

    return any_sharded(state)


def sources_of_model(model: Any, state: Mapping[str, Any] | None = None) -> list[TensorSource]:
    """The tensors of a model as they are saved: without the names of wrappers.

    ``state`` is its state dict as it is saved, if that is known.

    Raises:
        IncompatibleStateError: It has no state.
        FormatError: An entry of its state dict cannot be stored.
    """
    if isinstance(model, TensorModel):
        from mlstate.tensors import tensor_sources

        return tensor_sources(_state_of(model) if state is None else state)
    if isinstance(model, BytesModel):
        return [bytes_source(model.get_state())]
    raise IncompatibleStateError(
        f"this {type(model).__name__} has no state to save",
        expected="state_dict() and load_state_dict(), or get_state() and set_state()",
    )
