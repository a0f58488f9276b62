"""Reports as JSON: the dataclasses that operations return are the one declaration of both.

The members of an object are the fields of its dataclass, in their order, under the same names but
for `NAMES`. A field left out of the repr is left out here, too; one whose metadata have ``"json"``
is passed through that function first.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path
from types import UnionType
from typing import Any

from mlstate.phrases import Phrase, in_shell
from mlstate.states import StateKey, StateType

__all__ = ["fields_of", "iso_time", "shape_of", "to_json"]

NAMES = {"nbytes": "bytes", "size": "bytes", "total": "bytes", "state_type": "type"}
"""Field -> its name in JSON, where that is another."""

_TEXTS = (StateKey, StateType, Path)

_Convert = Callable[[Any], Any]


def iso_time(moment: float | None) -> str | None:
    """Seconds since the epoch as ISO 8601, in UTC."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def to_json(value: Any) -> Any:
    """A report, or a part of one, as `json.dumps` takes it. Remedies are those of the shell."""
    if isinstance(value, Phrase):
        return in_shell(value)
    if isinstance(value, _TEXTS):
        return str(value)
    if isinstance(value, date | time):  # as TOML writes them, in meta
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):  # JSON has no such number
        return str(value)
    if fields := fields_of(type(value)):
        return {name: to_json(convert(getattr(value, field))) for name, field, convert in fields}
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def fields_of(kind: type) -> list[tuple[str, str, _Convert]]:
    """The members of a report's JSON: name, field, and what converts the value; none of others."""
    if issubclass(kind, tuple):
        return [(name, name, _same) for name in getattr(kind, "_fields", ())]
    if not dataclasses.is_dataclass(kind):
        return []
    return [
        (NAMES.get(field.name, field.name), field.name, field.metadata.get("json", _same))
        for field in dataclasses.fields(kind)
        if field.repr
    ]


def _same(value: Any) -> Any:
    return value


def shape_of(*kinds: type | Mapping[str, Any]) -> dict[str, Any]:
    """The types of the members of an object in JSON, for those who describe or check it.

    Kinds are dataclasses, named tuples, or mappings of more members to their types; of two members
    with the same name the first stays. A type is one that JSON has, a report, or a list or union of
    these.
    """
    shape: dict[str, Any] = {}
    for kind in kinds:
        members = dict(kind) if isinstance(kind, Mapping) else _shape(kind)
        shape |= members | shape
    return shape


def _shape(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {
        name: str | None if convert is iso_time else _json_type(hints[field], convert)
        for name, field, convert in fields_of(kind)
    }


def _json_type(hint: Any, convert: _Convert = _same) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if convert is list:  # of a mapping, its names
        return list[_json_type(arguments[0])]  # type: ignore[misc]
    if origin is typing.Literal or (isinstance(hint, type) and issubclass(hint, (str, *_TEXTS))):
        return str
    if origin in (typing.Union, UnionType):
        return typing.Union[tuple(map(_json_type, arguments))]  # noqa: UP007  # of any number
    if origin in (tuple, list):
        return list[_json_type(arguments[0])]  # type: ignore[misc]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return dict[str, _json_type(arguments[1])]  # type: ignore[misc]
    return hint
