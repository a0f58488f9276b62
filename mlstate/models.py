"""The protocols of models, their state types, and the result of a load. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from mlstate.digests import Digest
from mlstate.errors import FormatError, IncompatibleStateError
from mlstate.states import StateType, how_to_parse_type

__all__ = [
    "AVERAGED",
    "BytesModel",
    "LoadResult",
    "TensorModel",
    "state_type_of",
    "with_state_type",
]

AVERAGED = "n_averaged"
"""The count that torch's AveragedModel has beside the model inside, whose names are ``module.…``"""

_OF_TENSORS = (
    "of tensors without a model: save_state_dict(state_dict, key), and load_state_dict(key)"
)
_Model = TypeVar("_Model")


@runtime_checkable
class TensorModel(Protocol):
    """A model whose state is a mapping from names to tensors, as ``torch.nn.Module`` is."""

    def state_dict(self) -> Mapping[str, Any]:
        """Every name with its tensor."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Take the values of these tensors."""


@runtime_checkable
class BytesModel(Protocol):
    """A model of the older protocol, whose state is opaque bytes."""

    def get_state(self) -> bytes:
        """The state."""

    def set_state(self, state: bytes) -> None:
        """Take a state that `get_state` once returned."""


def state_type_of(model: object) -> StateType:
    """The state type of a model, also in wrappers; an IncompatibleStateError if it has none."""
    found, inside = getattr(model, "state_type", None), model
    while not isinstance(found, StateType) and (inside := _inside(inside)) is not None:
        found = getattr(inside, "state_type", None)
    if not isinstance(found, StateType):
        raise IncompatibleStateError(
            f"this {type(model).__name__} has no state type",
            expected="an attribute state_type that is a mlstate.StateType",
            found=found,
            remedy=_OF_TENSORS
            if isinstance(model, Mapping)
            else "give it one: mlstate.with_state_type(model, StateType(backend, architecture))",
        )
    return found


def _inside(model: object) -> object | None:
    """The model in DataParallel and the like, or in what torch.compile made; None of others."""
    attributes = (getattr(model, name, None) for name in ("module", "_orig_mod"))
    return next((found for found in attributes if isinstance(found, TensorModel)), None)


def with_state_type(module: _Model, state_type: StateType) -> _Model:
    """Give a model a state type, so that it can be saved and loaded.

    Args:
        module: Any ``torch.nn.Module``, or another model; it gets an attribute ``state_type``,
            which its copies keep.
        state_type: The type of its states.

    Returns:
        The same model.

    Raises:
        FormatError: Not a `StateType`.

    Example:
        >>> import torch
        >>> model = with_state_type(torch.nn.Linear(2, 2), StateType("pytorch", "linear"))
        >>> str(model.state_type)
        'pytorch.linear'
    """
    if not isinstance(state_type, StateType):
        raise FormatError(
            "a state type is a StateType",
            expected="StateType(backend, architecture)",
            found=repr(state_type),
            remedy=how_to_parse_type(state_type),
        )
    anything: Any = module  # a module takes any attribute, which its type does not say
    anything.state_type = state_type
    return module


class _Keys(NamedTuple):
    missing_keys: list[str]
    unexpected_keys: list[str]


class LoadResult(_Keys):
    """What a load did: torch's pair ``(missing_keys, unexpected_keys)``, and more besides.

    Attributes:
        missing_keys: Names that the model has and the state lacks; they keep their values, or on
            the meta device have none.
        unexpected_keys: Names that the state has and the model lacks.
        mismatched_keys: Names in both whose shapes differ; skipped, they keep their values.
        cast_keys: Names whose values were cast to the model's own dtype.
        digest: The state digest of what was loaded; None where a store cannot tell.
        tied_keys: Names that the state lacks and that share their memory, in the model, with names
            that it has: these have their values, too, and are not missing.
        pinned_now: Whether this was the first use of a state without a digest, which has pinned it.
    """

    mismatched_keys: list[str]
    cast_keys: list[str]
    digest: Digest | None
    tied_keys: list[str]
    pinned_now: bool

    def __new__(
        cls,
        missing_keys: Iterable[str] = (),
        unexpected_keys: Iterable[str] = (),
        mismatched_keys: Iterable[str] = (),
        cast_keys: Iterable[str] = (),
        digest: Digest | None = None,
        *,
        tied_keys: Iterable[str] = (),
        pinned_now: bool = False,
    ) -> LoadResult:
        """Make the pair, and set the other attributes."""
        self = super().__new__(cls, list(missing_keys), list(unexpected_keys))
        self.mismatched_keys = list(mismatched_keys)
        self.cast_keys = list(cast_keys)
        self.digest = digest
        self.tied_keys = list(tied_keys)
        self.pinned_now = pinned_now
        return self

    def __repr__(self) -> str:
        return (
            f"LoadResult(missing_keys={self.missing_keys}, "
            f"unexpected_keys={self.unexpected_keys}, mismatched_keys={self.mismatched_keys}, "
            f"cast_keys={self.cast_keys}, digest={self.digest!r}, tied_keys={self.tied_keys}"
            + (", pinned_now=True)" if self.pinned_now else ")")
        )
