"""What safetensors files said of themselves, in the meta of a state: kept, and written back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlstate.format.plain_file import USUAL_METADATA
from mlstate.warn import warn

__all__ = ["METADATA", "metadata_for", "with_metadata"]

METADATA = "safetensors"
"""The table of meta that has the ``__metadata__`` of each file, by the file's name."""

_MOST = 1 << 16
"""So many characters are kept: state files are small."""


def with_metadata(
    meta: Mapping[str, Any] | None, found: Mapping[str, Mapping[str, str]]
) -> Mapping[str, Any] | None:
    """The meta to save with a state, with what its files said of themselves.

    What the caller says in this table stays as it is.
    """
    if not found or METADATA in (meta or {}):
        return meta
    size = sum(len(name) + len(text) for file in found.values() for name, text in file.items())
    if size > _MOST:
        warn(
            f"what these files say of themselves ({size} characters of __metadata__) is not kept: "
            f"it is longer than {_MOST}"
        )
        return meta
    return {**(meta or {}), METADATA: {name: dict(file) for name, file in found.items()}}


def metadata_for(meta: Mapping[str, Any]) -> Mapping[str, str]:
    """What one file of a whole state is to say of itself: that in which its files agreed."""
    table = meta.get(METADATA)
    files = (
        [file for file in table.values() if isinstance(file, Mapping)]
        if isinstance(table, Mapping)
        else []
    )
    if not files:
        return USUAL_METADATA
    first, *others = files
    agreed = {
        name: text
        for name, text in first.items()
        if isinstance(text, str) and all(other.get(name) == text for other in others)
    }
    return {**USUAL_METADATA, **agreed}
