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
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable

from mlstate.errors import FormatError, ManifestError
from mlstate.manifests.blocks import (
    Block,
    blocks_of,
    exact,
    line_end,
    parsed_part,
    set_apart,
    with_key,
)
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

__all__ = ["changed_block", "edit_manifest"]


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
    if exact(before) == exact(after):
        return data
    mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    text = data.removeprefix(mark).decode()
    if text.replace("\r\n", "\n") == format_manifest(old):  # nothing of a person's is in it
        return mark + format_manifest(wanted).replace("\n", line_end(text)).encode()
    try:
        renamed = _renamed(before, after)
        blocks = _edited(blocks_of(text), _with_new_keys(before, renamed), after, renamed)
        for key in sorted(wanted.states.keys() - old.states.keys()):
            if str(key) not in renamed.values():
                _insert(blocks, key, format_state(wanted.states[key]), line_end(text))
        edited = mark + "".join(block.lead + block.text for block in blocks).encode()
        said = _values(parse_manifest(edited, origin))
    except (TOMLKitError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, FormatError) and not isinstance(error, ManifestError):
            raise
        said = {}  # tomlkit cannot change what is written so
    if exact(said) != exact(after):
        raise ManifestError(
            "this manifest is written in a style that cannot be edited; nothing was changed",
            path=origin,
            remedy='write each state as a table of its own: [states."its.key"]',
        ) from None
    return edited


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
        same = (old for old in gone if exact(before[old]) == exact(after[key]))
        if (old := next(same, None)) is not None:
            renamed[old] = key
            gone.remove(old)
    return renamed


def _with_new_keys(
    values: Mapping[str | None, Any], renamed: Mapping[str | None, str]
) -> dict[str | None, Any]:
    return {renamed.get(key, key): value for key, value in values.items()}


def _edited(
    blocks: list[Block],
    before: Mapping[str | None, Any],
    after: Mapping[str | None, Any],
    renamed: Mapping[str | None, str],
) -> list[Block]:
    """The blocks without removed states, and with every change."""
    kept = []
    for found in blocks:
        block = found
        if found.key in renamed:
            block = with_key(found, renamed[found.key])
        if block.key is None:
            written = parsed_part(block.text) or {}
            new = after[None].keys() - before[None].keys() if found is blocks[0] else set()
            said = {name: before[None][name] for name in written if name in before[None]}
            wanted = {name: after[None][name] for name in {*said, *new} if name in after[None]}
        elif block.key in after:
            said = {"states": {block.key: before[block.key]}}
            wanted = {"states": {block.key: after[block.key]}}
        else:
            continue
        kept.append(block if exact(said) == exact(wanted) else changed_block(block, said, wanted))
    return kept


def changed_block(block: Block, said: dict[str, Any], wanted: dict[str, Any]) -> Block:
    """A block that says these values in place of those that it says, with its comments.

    Raises a `TOMLKitError` or a `LookupError` if tomlkit cannot change what is written so.
    """
    text = block.text.replace("\r\n", "\n")
    body = text.rstrip("\n")
    document = tomlkit.parse(body + "\n")
    _update(document, said, wanted)
    edited = tomlkit.dumps(document).strip("\n") + "\n" + text[len(body) + 1 :]
    if edited.endswith("\n") and edited.rstrip("\n").rpartition("\n")[2].lstrip().startswith("#"):
        edited = edited.rstrip("\n") + "\n\n"  # its last comment is not the next table's
    return replace(block, text=edited.replace("\n", line_end(block.text)))


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
        elif name not in before or exact(value) != exact(old):
            table[name] = toml_value(value, inline=isinstance(table, InlineTable))


def _extends(value: Any, old: Any) -> bool:
    if not (old and isinstance(old, list) and isinstance(value, list)):
        return False
    return bool(exact(value[: len(old)]) == exact(old))


def _insert(blocks: list[Block], key: StateKey, text: str, end: str) -> None:
    """Put a new state before the first that sorts after it, else at the end."""
    later = (n for n, b in enumerate(blocks) if b.key is not None and StateKey.parse(b.key) > key)
    place = next(later, len(blocks))
    above = blocks[place - 1]
    blocks[place - 1] = replace(above, text=set_apart(above.text, end))
    below = end if place < len(blocks) else ""
    blocks.insert(place, Block(str(key), "", text.replace("\n", end) + below))
