"""What `diff` and `git-diff` say of two versions of a manifest, for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mlstate.cli.output import human_count, human_shape, human_size

if TYPE_CHECKING:
    from mlstate.operations.diff import StateDiff
    from mlstate.operations.diff_manifests import FieldChange, ListedState, ManifestDiff

__all__ = ["manifest_diff_lines"]

_COLOURS = {"added": 32, "dropped": 31, "moved": 33, "renamed": 36, "changed": 33}
_WIDTH = max(map(len, _COLOURS))
_MOST = 20
"""The most names in a line."""


def manifest_diff_lines(found: ManifestDiff) -> Iterator[tuple[int | None, str, str]]:
    """The lines that tell a difference: of each the colour of its first word, that word, the rest.

    The colour is a number of ANSI's; None for what has none.
    """
    counts = [(len(getattr(found, word)), word) for word in _COLOURS]
    said = ", ".join(f"{count:,} {word}" for count, word in counts if count)
    yield None, "", f"states: {said}" if said else "states: the same"
    for change in found.top:
        yield None, "", _field(change)
    yield from (_line("added", _listed(state)) for state in found.added)
    yield from (_line("dropped", _listed(state)) for state in found.dropped)
    yield from (_line("renamed", f"{first} -> {second}") for first, second in _pairs(found))
    for moved in found.moved:
        old, new = (_digest(digest) for digest in (moved.first, moved.second))
        yield _line("moved", f"{moved.key}  {old} -> {new}")
        yield from (_below(text) for text in _layers(moved.layers))
    for entry in found.changed:
        yield _line("changed", str(entry.key))
        yield from (_below(_field(change)) for change in entry.fields)
    unknown = [m for m in found.moved if m.layers is None and m.first and m.second]
    if unknown:
        yield (
            None,
            "",
            f"layers of {human_count(len(unknown), 'moved state')} not compared: "
            "both versions have to be in the cache",
        )


def _line(word: str, text: str) -> tuple[int | None, str, str]:
    return _COLOURS[word], word, f"{' ' * (_WIDTH - len(word))}  {text}"


def _below(text: str) -> tuple[int | None, str, str]:
    return None, "", f"{' ' * _WIDTH}  {text}"


def _pairs(found: ManifestDiff) -> Iterator[tuple[str, str]]:
    return ((str(pair.first), str(pair.second)) for pair in found.renamed)


def _listed(state: ListedState) -> str:
    size = "" if state.size is None else f"  {human_size(state.size)}"
    return f"{state.key}  {_digest(state.digest)}{size}"


def _digest(digest: str | None) -> str:
    return "unpinned" if digest is None else digest[:12]


def _layers(layers: StateDiff | None) -> Iterator[str]:
    if layers is None:
        return
    count = len(layers.equal) + len(layers.changed)
    yield f"layers: equal on {len(layers.equal)} of {count} shared names"
    moved = {name for pair in layers.renamed for name in pair}
    changed = []
    for change in layers.changed:
        old, new = (f"{s.dtype} {human_shape(s.shape)}" for s in (change.first, change.second))
        changed.append(change.name if old == new else f"{change.name} ({old} -> {new})")
    yield from _names("changed", changed)
    yield from _names("removed", [name for name in layers.removed if name not in moved])
    yield from _names("added", [name for name in layers.added if name not in moved])
    yield from _names("renamed", [f"{old} -> {new}" for old, new in layers.renamed])


def _names(what: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        more = f" and {len(names) - _MOST:,} more" if len(names) > _MOST else ""
        yield f"  {what}: {', '.join(names[:_MOST])}{more}"


def _field(change: FieldChange) -> str:
    if change.first is None:
        return f"{change.name}: + {_value(change.second)}"
    if change.second is None:
        return f"{change.name}: - {_value(change.first)}"
    return f"{change.name}: {_value(change.first)} -> {_value(change.second)}"


def _value(value: Any) -> str:
    from mlstate.operations.reports import to_json

    return value if isinstance(value, str) else json.dumps(to_json(value), ensure_ascii=False)
