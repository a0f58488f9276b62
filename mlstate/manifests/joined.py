"""Three versions of a value, or of some lines, as one: what a three-way merge is made of."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Any

from mlstate.manifests.blocks import exact

__all__ = ["ABSENT", "ClashError", "joined_values", "merged_lines"]

ABSENT = object()
"""The value of what is not there."""


class ClashError(Exception):
    """Two sides changed a value, and not alike."""


def joined_values(base: Any, ours: Any, theirs: Any, *, inside: bool, name: str = "") -> Any:
    """One value of two versions and their ancestor; `ABSENT` if it is not there any more.

    Args:
        base: The ancestor.
        ours: One version.
        theirs: The other.
        inside: Whether tables are joined name by name, and lists item by item; otherwise they are
            taken as a whole.
        name: The name of the value: a serial number that both raised is the higher one.

    Raises:
        ClashError: Both changed it, and not alike.
    """
    if exact(ours) == exact(theirs) or exact(base) == exact(theirs):
        return ours
    if exact(base) == exact(ours):
        return theirs
    if inside and isinstance(ours, dict) and isinstance(theirs, dict):
        before = base if isinstance(base, dict) else {}
        joined = {}
        for each in [*ours, *(each for each in theirs if each not in ours)]:
            values = (side.get(each, ABSENT) for side in (before, ours, theirs))
            value = joined_values(*values, inside=True, name=each)
            if value is not ABSENT:
                joined[each] = value
        return joined
    if inside and isinstance(ours, list) and isinstance(theirs, list):
        return _joined_lists(base if isinstance(base, list) else [], ours, theirs)
    if name == "serial" and type(ours) is type(theirs) is int:
        return max(ours, theirs)  # the author counts it up once more to sign what was merged
    raise ClashError


def _joined_lists(base: list[Any], ours: list[Any], theirs: list[Any]) -> list[Any]:
    """Ours, without what they removed, and then what they added."""
    old, mine, other = (list(map(exact, items)) for items in (base, ours, theirs))
    kept = [item for item in ours if exact(item) in other or exact(item) not in old]
    new = [item for item in theirs if exact(item) not in mine and exact(item) not in old]
    return kept + new


def merged_lines(base: str, ours: str, theirs: str) -> str | None:
    """The lines of three texts merged; None if both sides changed the same place differently."""
    old = base.split("\n") if base else []
    mine, other = (_changes(old, text.split("\n")) for text in (ours, theirs))
    other = [change for change in other if change not in mine]
    if any(a[0] <= b[1] and b[0] <= a[1] for a in mine for b in other):
        return None
    lines, done = list[str](), 0
    for start, stop, new in sorted([*mine, *other]):
        lines += [*old[done:start], *new]
        done = stop
    return "\n".join([*lines, *old[done:]])


def _changes(old: list[str], new: list[str]) -> list[tuple[int, int, list[str]]]:
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    return [(i, j, new[k:m]) for tag, i, j, k, m in matcher.get_opcodes() if tag != "equal"]
