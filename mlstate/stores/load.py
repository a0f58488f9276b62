"""Loading a state into a model: the last step of `StateStore.load`, once all bytes are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlstate.errors import IncompatibleStateError
from mlstate.format.state_object import BYTES_NAME
from mlstate.layouts import component_names, component_prefix
from mlstate.manifests import StateEntry
from mlstate.models import BytesModel, LoadResult, TensorModel
from mlstate.phrases import Phrase
from mlstate.reading import read_bytes_state, read_state
from mlstate.stores.abstract import Found

__all__ = ["advising", "load_into"]


def load_into(
    model: Any,
    found: Found,
    *,
    strict: bool,
    assign: bool,
    ignore_mismatched_sizes: bool,
    component: str | None = None,
) -> LoadResult:
    """Load a state whose bytes are there; see `StateStore.load`."""
    digest = found.entry.pinned_digest
    state = read_state(*found)
    if component is not None:
        prefix = component_prefix(component)
        names = {name[len(prefix) :]: name for name in component_names(state.specs, component)}
        state = state.part(names)
    if not state.specs:
        raise IncompatibleStateError("this state has no tensors; nothing was loaded")
    if BYTES_NAME in state.specs and isinstance(model, BytesModel):
        model.set_state(read_bytes_state(state, found.objects))
        return LoadResult(digest=digest)
    if not isinstance(model, TensorModel):
        raise IncompatibleStateError(
            f"this {type(model).__name__} takes no tensors",
            expected="state_dict() and load_state_dict()",
        )
    from mlstate.tensors import inner_model, load_tensors, places_of, reading

    model = inner_model(model, state.specs)
    places = places_of(model, state.specs)
    with (
        advising(found.entry),
        reading(found.objects, state, shared=True, places=places) as read,
    ):
        return load_tensors(
            model,
            state.specs,
            read,
            strict=strict,
            assign=assign,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            digest=digest,
        )


@contextmanager
def advising(entry: StateEntry) -> Iterator[None]:
    """Say of a checkpoint of DCP, if it does not fit a model, how it is read."""
    try:
        yield
    except IncompatibleStateError as error:
        from mlstate.tensors.dcp_index import INDEX_NAME

        if INDEX_NAME in entry.files:
            error.remedy = Phrase(
                "this is a checkpoint of torch.distributed.checkpoint: read it with its load, and "
                f'MlstateReader(store, "{entry.key}") as the storage reader',
                "",
            )
        raise
