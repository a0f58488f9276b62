"""For sentence-transformers: `from_pretrained`."""

from __future__ import annotations

from typing import Any, TypeVar

from mlstate.integrations.common import StoreLike, folder_with, needing, reading_store
from mlstate.models import with_state_type
from mlstate.states import StateKey, check_key

with needing("sentence_transformers", "sentence-transformers"):
    import sentence_transformers

__all__ = ["from_pretrained"]

_Model = TypeVar("_Model")


def from_pretrained(
    model_class: type[_Model], key: StateKey, store: StoreLike | None = None, **kwargs: Any
) -> _Model:
    """A ``SentenceTransformer`` or ``CrossEncoder``, from a state; the network is not asked.

    These classes read folders alone: the state is materialized into one in the cache, and verified
    each time. Where the file system can share blocks it takes no room.

    Args:
        model_class: A class of sentence-transformers.
        key: The state; its files are those that the model's own `save_pretrained` wrote.
        store: The store that has it, or what `mlstate.open_store` takes; `mlstate.Store()` by
            default.
        **kwargs: As for the class.

    Returns:
        The model; it has the `state_type` of the key.

    Raises:
        StateNotFoundError: There is no such state.
        IntegrityError: Bytes are damaged or missing.
        FetchError: Something is missing in a cache, and no mirror could give it.
    """
    check_key(key)
    folder = folder_with(reading_store(store), key)
    made: Any = model_class
    model: _Model = made(str(folder), **{"local_files_only": True, **kwargs})
    return with_state_type(model, key.state_type)


assert sentence_transformers
