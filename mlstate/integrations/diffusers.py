"""For diffusers: `from_pretrained` of models and pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch

from mlstate.integrations.common import StoreLike, files_in, folder_with, needing, reading_store
from mlstate.models import with_state_type
from mlstate.states import StateKey, check_key

with needing("diffusers"):
    from diffusers import ModelMixin
    from diffusers.utils import is_accelerate_available

__all__ = ["from_pretrained"]

_Model = TypeVar("_Model")


def from_pretrained(
    model_class: type[_Model], key: StateKey, store: StoreLike | None = None, **kwargs: Any
) -> _Model:
    """A model or a pipeline of diffusers, from a state. All is verified; the network is not asked.

    A model, a UNet say, gets the tensors as they are mapped, and nothing is written to the disk:
    its names and shapes are compared with the state's. With other options than ``torch_dtype``, and
    if it is a pipeline, a scheduler, or anything else, its class reads a folder in the cache.

    Args:
        model_class: A class of diffusers with `from_pretrained`.
        key: The state; its files have the configuration.
        store: The store that has it, or what `mlstate.open_store` takes; `mlstate.Store()` by
            default.
        **kwargs: As for the class's own `from_pretrained`.

    Returns:
        What the class's own `from_pretrained` returns. A model has the `state_type` of the key.

    Raises:
        StateNotFoundError: There is no such state.
        IncompatibleStateError: The state does not fit the model that its configuration says.
        IntegrityError: Bytes are damaged or missing.
        FetchError: Something is missing in a cache, and no mirror could give it.
    """
    check_key(key)
    view = reading_store(store)
    kind: Any = model_class
    if not issubclass(model_class, ModelMixin) or _takes_more(model_class, kwargs):
        folder = folder_with(view, key)
        found = kind.from_pretrained(folder, **{"local_files_only": True, **kwargs})
    else:
        with files_in(view, key) as files:
            config = kind.load_config(files, local_files_only=True)
        with _without_values():
            found = kind.from_config(config)
        # As its own does: what is stored in another type is cast to float32, or as it is asked for.
        dtype = kwargs.get("torch_dtype") or found.dtype
        found = with_state_type(found, key.state_type).eval()
        view.load(found, key, assign=True)
        if found.dtype != dtype:
            found = torch.nn.Module.to(found, dtype)
    made: _Model = found
    return made


def _takes_more(model_class: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether the class does more with these options than to cast all of the model."""
    return bool(kwargs.keys() - {"torch_dtype"}) or (
        bool(kwargs) and bool(getattr(model_class, "_keep_in_fp32_modules", None))
    )


def _without_values() -> AbstractContextManager[Any]:
    """Make models without values for their parameters, if accelerate is there; it takes no time."""
    if not is_accelerate_available():
        return nullcontext()
    from accelerate import init_empty_weights

    empty: AbstractContextManager[Any] = init_empty_weights()
    return empty
