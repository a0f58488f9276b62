"""The findings of a verification, read back from what ``mlstate verify --json`` printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from mlstate.digests import Digest
from mlstate.errors import FormatError
from mlstate.operations.verify.report import Finding, Kind
from mlstate.states import StateKey
from mlstate.texts import load_json

__all__ = ["read_findings"]

_MOST = 64 << 20
_WHAT = "a report of mlstate verify --json"


def read_findings(data: bytes, path: object = None) -> tuple[Finding, ...]:
    """The findings in a text that ``mlstate verify --json`` printed.

    Raises:
        FormatError: It is none.
    """
    read = load_json(data, _WHAT, most=_MOST)
    listed = read.get("findings")
    schema = read.get("schema")
    if not str(schema).startswith("mlstate.verify/") or not isinstance(listed, list):
        raise _unfit(path, schema)
    return tuple(_finding(item, path) for item in listed)


def _finding(item: Any, path: object) -> Finding:
    if not isinstance(item, Mapping) or item.get("kind") not in get_args(Kind):
        raise _unfit(path, item)
    texts = {name: item.get(name) for name in ("path", "expected", "found", "remedy")}
    lists = [item.get("keys"), item.get("tensors", [])]
    if not all(isinstance(names, list) for names in lists):
        raise _unfit(path, item)
    return Finding(
        tuple(StateKey.parse(key) for key in lists[0] or ()),
        item["kind"],
        str(item.get("what")),
        tuple(map(str, lists[1] or ())),
        None if item.get("digest") is None else Digest(str(item["digest"])),
        repaired=item.get("repaired") is True,
        **{name: None if text is None else str(text) for name, text in texts.items()},
    )


def _unfit(path: object, found: object) -> FormatError:
    return FormatError(
        "these are no findings of a verification",
        path=None if path is None else str(path),
        expected="what mlstate verify --json printed",
        found=repr(found)[:200],
        remedy="mlstate verify --all --json > verify.json",
    )
