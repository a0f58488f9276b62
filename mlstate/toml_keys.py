"""The keys of a TOML: the line that one is on, and the refusal of those that nobody knows."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from mlstate.errors import FormatError

__all__ = ["line_of", "near_miss", "refuse_unknown"]

_LONGEST_NAME = 1000
"""The longest name whose line is looked for: a search for one of megabytes takes gigabytes."""
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")


def line_of(text: str, where: Collection[str]) -> int | None:
    """The line where these names stand one below the other, as far as a search can tell."""
    if any(len(word) > _LONGEST_NAME for word in where):
        return None
    lines = text.split("\n")
    position, found = 0, None
    for word in where:
        name = rf"""["']?{re.escape(word)}["']?"""
        says = re.compile(
            rf"[ \t]*+({name}[ \t]*[=.]|\[.*{name}[ \t]*[\].]|.*[{{,][ \t]*{name}[ \t]*=)"
        )
        for number in range(position, len(lines)):
            if says.match(lines[number]):
                position, found = number, number + 1
                break
    return found


def near_miss(name: str, known: Collection[str], *, cutoff: float = 0.6) -> str | None:
    """A remedy that gives the known names which a name may be meant for; None if there are none."""
    near = get_close_matches(name, sorted(known), n=2, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else None


def refuse_unknown(
    table: Mapping[str, Any],
    known: Collection[str],
    what: str,
    *,
    path: object,
    text: str = "",
    where: tuple[str, ...] = (),
) -> None:
    """Refuse a table of a file of settings that has a key which this version does not know.

    A misspelt key would be ignored, and nobody would notice. A key of unusual form is not shown: a
    secret may stand in its place.

    Args:
        table: The table.
        known: The keys that it may have.
        what: What the file is, for the error: "the config file", say.
        path: The file.
        text: Its content, in which the line is looked for.
        where: The names of the tables that this one is in.

    Raises:
        FormatError: There is such a key.
    """
    for name in table:
        if name in known:
            continue
        shown = _PLAIN.fullmatch(name) is not None
        place = f" [{'.'.join(where)}]" if where else ""
        raise FormatError(
            f"{what} has a key{' in' * bool(place)}{place} that is not known",
            path=path,
            line=line_of(text, (*where, name)),
            expected=", ".join(sorted(known)),
            found=name if shown else None,
            remedy=near_miss(name, known) if shown else None,
        )
