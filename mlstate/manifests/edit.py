"""Changing a manifest that a person wrote: what does not change stays, byte for byte.

The text is cut into blocks: a state's own table with those below it and the comments right above
it, or anything else. A block that says what it should is not touched; one that does not is edited
by tomlkit, which keeps the comments within; a new one goes where it sorts. The result is read, and
refused if it does not say what was meant.

tomlkit could edit the document as a whole, but takes the comments above a table for the end of the
table before: they would go when that is removed, and a new value would stand below them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable

from mlstate.errors import FormatError, ManifestError
from mlstate.manifests.entries import ManifestContent
from mlstate.manifests.parse import parse_manifest
from mlstate.manifests.write import (
    format_manifest,
    format_state,
    plain_state,
    plain_top,
    toml_value,
)
from mlstate.states import StateKey
from mlstate.texts import load_toml

__all__ = ["edit_manifest"]

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_HEADER = re.compile(r"""[ \t]*\[\[?[ \t]*[A-Za-z0-9_-]+[^,=]*\]\]?[ \t]*(\#.*)?\r?\n?""")
_STATE = re.compile(
    r"""[ \t]*\[[ \t]*states[ \t]*\.[ \t]*("(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*[\].]"""
)


def edit_manifest(data: bytes, origin: str, wanted: ManifestContent) -> bytes:
    """Return a manifest's text, changed to have exactly this content.

    Args:
        data: The manifest as it is. A byte order mark and its line ends stay.
        origin: Where it is from, for errors.
        wanted: The content.

    Raises:
        ManifestError: The text is not a manifest, or written in a style that cannot be edited.
        FormatError: A value that TOML cannot hold.
    """
    old = parse_manifest(data, origin)
    before, after = _values(old), _values(wanted)
    if _exact(before) == _exact(after):
        return data
    mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    text = data.removeprefix(mark).decode()
    if text.replace("\r\n", "\n") == format_manifest(old):  # nothing of a person's is in it
        return mark + format_manifest(wanted).replace("\n", _line_end(text)).encode()
    try:
        renamed = _renamed(before, after)
        blocks = _edited(_blocks(text), _with_new_keys(before, renamed), after, renamed)
        for key in sorted(wanted.states.keys() - old.states.keys()):
            if str(key) not in renamed.values():
                _insert(blocks, key, format_state(wanted.states[key]), _line_end(text))
        edited = mark + "".join(block.lead + block.text for block in blocks).encode()
        said = _values(parse_manifest(edited, origin))
    except (TOMLKitError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, FormatError) and not isinstance(error, ManifestError):
            raise
        said = {}  # tomlkit cannot change what is written so
    if _exact(said) != _exact(after):
        raise ManifestError(
            "this manifest is written in a style that cannot be edited; nothing was changed",
            path=origin,
            remedy='write each state as a table of its own: [states."its.key"]',
        ) from None
    return edited


@dataclass(frozen=True)
class _Block:
    """A part of a manifest's text."""

    key: str | None
    """The state that it is about; None for the top, and for tables that are no states."""
    lead: str
    """The comments right above it."""
    text: str


def _blocks(text: str) -> list[_Block]:
    blocks: list[_Block] = []
    key: str | None = None
    lead: list[str] = []
    lines: list[str] = []
    for line in _LINE.findall(text):
        # What is open above, a list or a text of several lines, does not stand alone.
        if _HEADER.fullmatch(line) and _parsed("".join(lines)) is not None:
            next_key = _state_key(line)
            if next_key is None or next_key != key:
                cut = len(lines)  # the comments at the end are about what comes
                while cut and lines[cut - 1].lstrip(" \t").startswith("#"):
                    cut -= 1
                blocks.append(_Block(key, "".join(lead), "".join(lines[:cut])))
                key, lead, lines = next_key, lines[cut:], []
        lines.append(line)
    return [*blocks, _Block(key, "".join(lead), "".join(lines))]


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return load_toml(text, "a part of a manifest")
    except ValueError:
        return None


def _state_key(header: str) -> str | None:
    match = _STATE.match(header)
    said = None if match is None else _parsed(f"key = {match[1]}")
    return None if said is None else str(said["key"])


def _values(manifest: ManifestContent) -> dict[str | None, Any]:
    """A manifest as plain values: of each state, and under None those outside of states."""
    values: dict[str | None, Any] = {None: plain_top(manifest)}
    return values | {str(key): plain_state(entry) for key, entry in manifest.states.items()}


def _renamed(
    before: Mapping[str | None, Any], after: Mapping[str | None, Any]
) -> dict[str | None, str]:
    """The states that have another key and say the same otherwise: old key -> new key."""
    gone = [key for key in before if key not in after]
    new = [key for key in after if key is not None and key not in before]
    renamed: dict[str | None, str] = {}
    for key in new if gone else ():
        same = (old for old in gone if _exact(before[old]) == _exact(after[key]))
        if (old := next(same, None)) is not None:
            renamed[old] = key
            gone.remove(old)
    return renamed


def _with_new_keys(
    values: Mapping[str | None, Any], renamed: Mapping[str | None, str]
) -> dict[str | None, Any]:
    return {renamed.get(key, key): value for key, value in values.items()}


def _with_new_key(block: _Block, key: str) -> _Block:
    """A block with another key in its headers; its place and its comments stay."""

    def changed(line: str) -> str:
        match = _STATE.match(line)
        if match is None or _state_key(line) != block.key:
            return line
        return f'{line[: match.start(1)]}"{key}"{line[match.end(1) :]}'

    return replace(block, key=key, text="".join(map(changed, _LINE.findall(block.text))))


def _edited(
    blocks: list[_Block],
    before: Mapping[str | None, Any],
    after: Mapping[str | None, Any],
    renamed: Mapping[str | None, str],
) -> list[_Block]:
    """The blocks without removed states, and with every change."""
    kept = []
    for found in blocks:
        block = found
        if found.key in renamed:
            block = _with_new_key(found, renamed[found.key])
        if block.key is None:
            written = _parsed(block.text) or {}
            new = after[None].keys() - before[None].keys() if found is blocks[0] else set()
            said = {name: before[None][name] for name in written if name in before[None]}
            wanted = {name: after[None][name] for name in {*said, *new} if name in after[None]}
        elif block.key in after:
            said = {"states": {block.key: before[block.key]}}
            wanted = {"states": {block.key: after[block.key]}}
        else:
            continue
        kept.append(block if _exact(said) == _exact(wanted) else _changed(block, said, wanted))
    return kept


def _changed(block: _Block, said: dict[str, Any], wanted: dict[str, Any]) -> _Block:
    text = block.text.replace("\r\n", "\n")
    body = text.rstrip("\n")
    document = tomlkit.parse(body + "\n")
    _update(document, said, wanted)
    edited = tomlkit.dumps(document).strip("\n") + "\n" + text[len(body) + 1 :]
    if edited.endswith("\n") and edited.rstrip("\n").rpartition("\n")[2].lstrip().startswith("#"):
        edited = edited.rstrip("\n") + "\n\n"  # its last comment is not the next table's
    return replace(block, text=edited.replace("\n", _line_end(block.text)))


def _update(table: Any, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for name in sorted(before.keys() - after.keys()):
        del table[name]
    for name, value in after.items():
        old: Any = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            _update(table[name], old, value)
        elif _extends(value, old):
            for item in value[len(old) :]:
                table[name].append(toml_value(item, inline=True))
        elif name not in before or _exact(value) != _exact(old):
            table[name] = toml_value(value, inline=isinstance(table, InlineTable))


def _extends(value: Any, old: Any) -> bool:
    if not (old and isinstance(old, list) and isinstance(value, list)):
        return False
    return bool(_exact(value[: len(old)]) == _exact(old))


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _insert(blocks: list[_Block], key: StateKey, text: str, end: str) -> None:
    """Put a new state before the first that sorts after it, else at the end."""
    later = (n for n, b in enumerate(blocks) if b.key is not None and StateKey.parse(b.key) > key)
    place = next(later, len(blocks))
    above = blocks[place - 1]
    blocks[place - 1] = replace(above, text=_apart(above.text, end))
    below = end if place < len(blocks) else ""
    blocks.insert(place, _Block(str(key), "", text.replace("\n", end) + below))


def _apart(text: str, end: str) -> str:
    """Text that ends with an empty line, so that the next table is set off."""
    if text and not text.endswith("\n"):
        text += end
    return text if not text or text.endswith(("\n\n", "\n\r\n")) else text + end


def _exact(value: Any) -> Any:
    """A value for comparison, where 1, 1.0 and true differ, 0.0 and -0.0 too, and nan is nan."""
    if isinstance(value, Mapping):
        return {name: _exact(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return (kind.__name__, repr(kind(value)))
    return (type(value).__name__, str(value))
