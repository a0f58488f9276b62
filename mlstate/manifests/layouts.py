"""The layout of a state in TOML; see `mlstate.layouts`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlstate.errors import FormatError
from mlstate.layouts import WeightsFile, check_layout

__all__ = ["parse_layout", "plain_layout"]


def parse_layout(value: Any) -> dict[str, WeightsFile]:
    """Read the table `layout` of a state.

    Raises:
        FormatError: A value of the wrong kind, or a layout that no folder could have.
    """
    if not isinstance(value, dict):
        raise FormatError("layout is a table", found=type(value).__name__)
    layout = {name: _file(name, item) for name, item in value.items()}
    check_layout(layout)
    return layout


def _file(name: str, item: Any) -> WeightsFile:
    if not isinstance(item, dict):
        raise FormatError("a file of a layout is a table", path=name, found=repr(item))
    table = dict(item)
    prefix, index = table.pop("prefix", ""), table.pop("index", None)
    if not isinstance(prefix, str) or not isinstance(index, str | None):
        raise FormatError("prefix and index of a layout are texts", path=name, found=repr(item))
    metadata = table.pop("metadata", None)
    if metadata is not None and (
        not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values())
    ):
        raise FormatError("the metadata of a file are texts", path=name, found=repr(metadata))
    return WeightsFile(prefix, index, metadata, table)


def plain_layout(layout: Mapping[str, WeightsFile]) -> dict[str, Any]:
    """A layout as plain values, in the order of a new manifest."""
    return {name: _plain(layout[name]) for name in sorted(layout)}


def _plain(file: WeightsFile) -> dict[str, Any]:
    table: dict[str, Any] = {}
    if file.prefix:
        table["prefix"] = file.prefix
    if file.index is not None:
        table["index"] = file.index
    if file.metadata is not None:
        table["metadata"] = dict(sorted(file.metadata.items()))
    return table | dict(file.unknown)
