"""A manifest's text in blocks: a state's own table with those below it, or anything else.

What changes one block, by an edit or a merge, leaves the text of all others as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlstate.texts import load_toml

__all__ = ["Block", "blocks_of", "exact", "line_end", "parsed_part", "set_apart", "with_key"]

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_HEADER = re.compile(r"""[ \t]*\[\[?[ \t]*[A-Za-z0-9_-]+[^,=]*\]\]?[ \t]*(\#.*)?\r?\n?""")
_STATE = re.compile(
    r"""[ \t]*\[[ \t]*states[ \t]*\.[ \t]*("(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*[\].]"""
)


@dataclass(frozen=True)
class Block:
    """A part of a manifest's text."""

    key: str | None
    """The state that it is about; None for the top, and for tables that are no states."""
    lead: str
    """The comments right above it."""
    text: str


def blocks_of(text: str) -> list[Block]:
    """The blocks of a manifest, in order; together they are its text."""
    blocks: list[Block] = []
    key: str | None = None
    lead: list[str] = []
    lines: list[str] = []
    for line in _LINE.findall(text):
        # What is open above, a list or a text of several lines, does not stand alone.
        if _HEADER.fullmatch(line) and parsed_part("".join(lines)) is not None:
            next_key = _state_key(line)
            if next_key is None or next_key != key:
                cut = len(lines)  # the comments at the end are about what comes
                while cut and lines[cut - 1].lstrip(" \t").startswith("#"):
                    cut -= 1
                blocks.append(Block(key, "".join(lead), "".join(lines[:cut])))
                key, lead, lines = next_key, lines[cut:], []
        lines.append(line)
    return [*blocks, Block(key, "".join(lead), "".join(lines))]


def parsed_part(text: str) -> dict[str, Any] | None:
    """A part of a manifest as plain values; None if it is no TOML by itself."""
    try:
        return load_toml(text, "a part of a manifest")
    except ValueError:
        return None


def _state_key(header: str) -> str | None:
    match = _STATE.match(header)
    said = None if match is None else parsed_part(f"key = {match[1]}")
    return None if said is None else str(said["key"])


def with_key(block: Block, key: str) -> Block:
    """A block with another key in its headers; its place and its comments stay."""

    def changed(line: str) -> str:
        match = _STATE.match(line)
        if match is None or _state_key(line) != block.key:
            return line
        return f'{line[: match.start(1)]}"{key}"{line[match.end(1) :]}'

    return replace(block, key=key, text="".join(map(changed, _LINE.findall(block.text))))


def line_end(text: str) -> str:
    """How the lines of a text end."""
    return "\r\n" if "\r\n" in text else "\n"


def set_apart(text: str, end: str) -> str:
    """Text that ends with an empty line, so that the next table is set off."""
    if text and not text.endswith("\n"):
        text += end
    return text if not text or text.endswith(("\n\n", "\n\r\n")) else text + end


def exact(value: Any) -> Any:
    """A value for comparison, where 1, 1.0 and true differ, 0.0 and -0.0 too, and nan is nan."""
    if isinstance(value, Mapping):
        return {name: exact(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [exact(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return (kind.__name__, repr(kind(value)))
    return (type(value).__name__, str(value))
