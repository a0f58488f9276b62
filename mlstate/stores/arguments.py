"""Checks of the arguments that stores take: models, keys, names of tensors, digests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from mlstate.digests import Digest
from mlstate.errors import (
    ArgumentError,
    FormatError,
    IncompatibleStateError,
    IntegrityError,
    StateNotFoundError,
)
from mlstate.models import state_type_of
from mlstate.phrases import Phrase
from mlstate.states import StateKey, check_key

__all__ = [
    "check_compatible",
    "check_list",
    "check_names",
    "check_pin",
    "not_found",
    "refuse_positional",
]


_LIST = Phrase("get_state_keys(state_type)", "mlstate ls")


def refuse_positional(values: Sequence[object], name: str, otherwise: str) -> None:
    """Refuse arguments without a name, of which nobody could tell what they are meant to be.

    Args:
        values: The arguments.
        name: The one that they would be most probably.
        otherwise: What to write if they are something else.

    Raises:
        ArgumentError: There are some.
    """
    if values:
        raise ArgumentError(
            f"{name} is given by its name",
            expected=f"{name}=...",
            found=", ".join(repr(str(value))[:100] for value in values),
            remedy=f"write {name}=...; {otherwise}",
        )


def check_list(
    names: Sequence[str] | None, argument: str = "names", what: str = "names"
) -> Sequence[str] | None:
    """Refuse, by a FormatError, a single text where an argument is a list of texts."""
    if isinstance(names, str):
        raise FormatError(f"{argument} is a list of {what}", expected=[names], found=repr(names))
    return names


def check_compatible(model: object, key: StateKey) -> None:
    """Refuse, by an IncompatibleStateError, a state of another type than a model's."""
    check_key(key)
    own = state_type_of(model)
    if not own.is_compatible_with(key.state_type):
        raise IncompatibleStateError(
            "this state is of another type than the model; nothing was loaded",
            key=key,
            expected=f"{own.backend}.{own.architecture}",
            found=f"{key.state_type.backend}.{key.state_type.architecture}",
        )


def not_found(key: StateKey, store: object, having: Iterable[StateKey]) -> StateNotFoundError:
    """The error that a store has no such state; it names similar keys among those it has."""
    names = [str(other) for other in having]
    near = get_close_matches(str(key), names, n=3, cutoff=0.85)
    return StateNotFoundError(
        "there is no such state here",
        key=key,
        path=store,
        remedy=f"did you mean {' or '.join(near)}?" if near else _what_is_here(names),
    )


def check_pin(found: Digest, wanted: str | None) -> None:
    """Refuse, by an IntegrityError, a state without the digest that the caller wants, if any."""
    if wanted is not None and Digest(wanted) != found:
        raise IntegrityError(
            "the state under this key is not the one that digest= asks for",
            expected=wanted,
            found=found,
        )


def check_names(names: Sequence[str] | None, having: Mapping[str, Any]) -> list[str] | None:
    """Refuse, by a StateNotFoundError, names that a state does not have."""
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
