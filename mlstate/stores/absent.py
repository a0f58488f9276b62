"""Is what was asked for here: this state, this digest, these tensors? If not, what is near."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from mlstate.digests import Digest
from mlstate.errors import IntegrityError, StateNotFoundError
from mlstate.phrases import Phrase
from mlstate.states import StateKey
from mlstate.stores.abstract import check_list

__all__ = ["check_names", "check_pin", "not_found"]


_LIST = Phrase("get_state_keys(state_type)", "mlstate ls")


def not_found(key: StateKey, store: object, having: Iterable[StateKey]) -> StateNotFoundError:
    """The error that a store has no such state.

    Args:
        key: The state.
        store: The store.
        having: The states of this type that are there.
    """
    names = [str(other) for other in having]
    near = get_close_matches(str(key), names, n=3, cutoff=0.85)
    return StateNotFoundError(
        "there is no such state here",
        key=key,
        path=store,
        remedy=f"did you mean {' or '.join(near)}?" if near else _what_is_here(names),
    )


def check_pin(found: Digest, wanted: str | None) -> None:
    """Refuse a state that is not exactly the one asked for.

    Raises:
        IntegrityError: It has another digest.
        FormatError: What was asked for is no digest.
    """
    if wanted is not None and Digest(wanted) != found:
        raise IntegrityError(
            "the state under this key is not the one that digest= asks for",
            expected=wanted,
            found=found,
        )


def check_names(names: Sequence[str] | None, having: Mapping[str, Any]) -> list[str] | None:
    """Refuse names that a state does not have.

    Raises:
        StateNotFoundError: One is not there; near misses are named.
        FormatError: A single text instead of a list.
    """
    for name in check_list(names) or ():
        if name not in having:
            near = get_close_matches(name, having, n=3)
            raise StateNotFoundError(
                "this state has no tensor of this name",
                tensor=name,
                remedy=f"did you mean {' or '.join(near)}?" if near else None,
            )
    return None if names is None else list(names)


def _what_is_here(names: list[str], most: int = 5) -> str:
    if not names:
        return "look at " + _LIST + "; no state of this type is here"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"here are {', '.join(names[:most])}{more}"
