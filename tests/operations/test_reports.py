"""Reports as JSON: members, names and types come from the dataclasses themselves."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mlstate import StateKey, StateType
from mlstate.operations.reports import iso_time, shape_of, to_json
from mlstate.phrases import Phrase

KEY = StateKey.parse("pytorch.net.a")


class Pair(NamedTuple):
    """Two names."""

    first: str
    second: str


@dataclass(frozen=True)
class Part:
    """A part of a report."""

    state_type: StateType
    nbytes: int
    hidden: int = field(default=7, repr=False)


@dataclass(frozen=True)
class Report:
    """A report with a member of each kind."""

    key: StateKey
    total: int | None
    kind: Literal["a", "b"]
    path: Path
    parts: tuple[Part, ...]
    pairs: tuple[Pair, ...]
    names: Mapping[str, Part] = field(metadata={"json": list})
    meta: Mapping[str, Any]
    modified: float | None = field(metadata={"json": iso_time})
    remedy: str | None = None


PART = Part(StateType("pytorch", "net"), 5)
REPORT = Report(
    KEY,
    None,
    "a",
    Path("x/y"),
    (PART,),
    (Pair("one", "two"),),
    {"w": PART},
    {"n": [1, {"m": None}]},
    0.0,
    Phrase("overwrite=True", "--overwrite"),
)


def test_members_come_in_the_order_of_the_fields_and_under_their_names_in_json():
    assert json.dumps(to_json(REPORT)) == json.dumps(
        {
            "key": "pytorch.net.a",
            "bytes": None,
            "kind": "a",
            "path": "x/y",
            "parts": [{"type": "pytorch.net", "bytes": 5}],
            "pairs": [{"first": "one", "second": "two"}],
            "names": ["w"],
            "meta": {"n": [1, {"m": None}]},
            "modified": "1970-01-01T00:00:00+00:00",
            "remedy": "--overwrite",
        }
    )


def test_the_shape_says_the_types():
    assert shape_of(Report) == {
        "key": str,
        "bytes": int | None,
        "kind": str,
        "path": str,
        "parts": list[Part],
        "pairs": list[Pair],
        "names": list[str],
        "meta": dict[str, Any],
        "modified": str | None,
        "remedy": str | None,
    }
    assert shape_of(Part) == {"type": str, "bytes": int}


def test_of_two_members_with_one_name_the_first_stays():
    shape = shape_of({"schema": str, "first": int}, Pair)
    assert list(shape.items()) == [("schema", str), ("first", int), ("second", str)]


def test_what_meta_may_hold_and_json_lacks_is_text() -> None:
    meta = tomllib.loads(
        "a = 1979-05-27T07:32:00Z\nb = 1979-05-27\nc = 07:32:00\nd = [inf, -inf, nan, 0.5]\n"
    )
    assert json.loads(json.dumps(to_json(meta), allow_nan=False)) == {
        "a": "1979-05-27T07:32:00+00:00",
        "b": "1979-05-27",
        "c": "07:32:00",
        "d": ["inf", "-inf", "nan", 0.5],
    }
