"""Entries to TOML: the same text for the same entries; a person's own text and comments stay."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import tomlkit
from tomlkit.items import Table

from mlstate.errors import FormatError, ManifestError
from mlstate.locations import Mirror, UnusableMirror
from mlstate.manifests.entries import FileEntry, StateEntry
from mlstate.manifests.reading import VERSION, ManifestText, parse_manifest

__all__ = ["edit_manifest", "format_manifest"]

_HEADER = re.compile(r"^[ \t]*\[[ \t]*states[ \t]*\.[ \t]*(\"[^\"\n]*\"|'[^'\n]*')[ \t]*\]", re.M)


def format_manifest(manifest: ManifestText) -> str:
    """The text of a new manifest: sorted, and so the same for the same content."""
    document = tomlkit.document()
    document["version"] = VERSION
    for name, value in _plain(replace(manifest, states={})).items():
        if name != "states":
            document[name] = _value(value)
    blocks = [_block(manifest.states[key]) for key in sorted(manifest.states)]
    return "\n".join([tomlkit.dumps(document), *blocks])


def edit_manifest(text: str, origin: str, wanted: ManifestText) -> str:
    """Change an existing manifest's text so that it says exactly what is wanted.

    Only what differs is touched: comments, order and layout of all else stay as they are.

    Args:
        text: The text as it is.
        origin: Where it is from, for errors.
        wanted: What it is to say.

    Raises:
        ManifestError: The text is not a manifest, or written in a style that cannot be edited
            without harm.
    """
    old = parse_manifest(text.encode(), origin)
    kept = {key: wanted.states[key] for key in old.states if key in wanted.states}
    if _plain(old) != _plain(replace(wanted, states=kept)):
        text = _update(text, old, wanted)
    for key in sorted(wanted.states.keys() - old.states.keys()):
        text = _insert(text, wanted.states[key])
    if _plain(parse_manifest(text.encode(), origin)) != _plain(wanted):
        raise ManifestError(
            "this manifest is written in a style that cannot be edited; nothing was changed",
            path=origin,
            remedy='write each state as a table of its own: [states."its.key"]',
        )
    return text


def _update(text: str, old: ManifestText, wanted: ManifestText) -> str:
    """Remove what is not wanted and change what differs, but add no states."""
    document: Any = tomlkit.parse(text)
    before, after = _plain(old), _plain(wanted)
    states = (before.pop("states"), after.pop("states"))
    _update_table(document, before, after)
    for key, table in states[0].items():
        if key not in states[1]:
            del document["states"][key]
        else:
            _update_table(document["states"][key], table, states[1][key])
    return tomlkit.dumps(document)


def _update_table(table: Any, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for name in before.keys() - after.keys():
        del table[name]
    for name, value in after.items():
        if name not in before:
            table[name] = _value(value)
        elif isinstance(value, dict) and isinstance(before[name], dict):
            _update_table(table[name], before[name], value)
        elif value != before[name]:
            table[name] = _value(value)


def _plain(manifest: ManifestText) -> dict[str, Any]:
    """A manifest as plain values, apart from its version."""
    plain: dict[str, Any] = {"objects": list(manifest.objects)} if manifest.objects else {}
    plain |= {name: manifest.unknown[name] for name in sorted(manifest.unknown)}
    return plain | {
        "states": {str(key): _table(manifest.states[key]) for key in sorted(manifest.states)}
    }


def _insert(text: str, entry: StateEntry) -> str:
    """Put a new state before the first that sorts after it, and before that one's comments."""
    block = _block(entry)
    for match in _HEADER.finditer(text):
        if _key_of(match[1]) > str(entry.key):
            lines = text[: match.start()].splitlines(keepends=True)
            while lines and lines[-1].lstrip().startswith("#"):
                lines.pop()
            start = sum(map(len, lines))
            return f"{text[:start]}{block}\n{text[start:]}"
    separator = "" if not text or text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
    return f"{text}{separator}{block}"


def _key_of(quoted: str) -> str:
    return str(tomllib.loads(f"key = {quoted}")["key"])


def _block(entry: StateEntry) -> str:
    """One state as a table of its own, with its files and meta as tables below it."""
    document = tomlkit.document()
    states = tomlkit.table(is_super_table=True)
    states[str(entry.key)] = _value(_table(entry))
    document["states"] = states
    return tomlkit.dumps(document)


def _table(entry: StateEntry) -> dict[str, Any]:
    """The entry as plain values, in the order of a new manifest."""
    table: dict[str, Any] = {}
    if entry.digest is not None:
        table["blake3"] = str(entry.digest)
    if entry.size is not None:
        table["size"] = entry.size
    if entry.mirrors:
        table["mirrors"] = [_mirror(mirror) for mirror in entry.mirrors]
    table.update((name, entry.unknown[name]) for name in sorted(entry.unknown))
    if entry.files:
        table["files"] = {name: _file(entry.files[name]) for name in sorted(entry.files)}
    if entry.meta:
        table["meta"] = {name: entry.meta[name] for name in sorted(entry.meta)}
    return table


def _file(entry: FileEntry) -> Any:
    if not entry.mirrors and not entry.unknown:
        return str(entry.digest)
    table: dict[str, Any] = {"blake3": str(entry.digest)}
    if entry.mirrors:
        table["mirrors"] = [_mirror(mirror) for mirror in entry.mirrors]
    return table | {name: entry.unknown[name] for name in sorted(entry.unknown)}


def _mirror(mirror: Mirror | UnusableMirror) -> Any:
    if mirror.toml is not None:
        return mirror.toml
    assert isinstance(mirror, Mirror)
    table: dict[str, Any] = {}
    if len(mirror.urls) == 1:
        table["url"] = mirror.urls[0]
    elif mirror.urls:
        table["urls"] = list(mirror.urls)
    for name in ("state", "sha256", "select", "strip_prefix", "add_prefix"):
        if getattr(mirror, name):
            table[name] = getattr(mirror, name)
    if mirror.format != "safetensors":
        table["format"] = mirror.format
    if mirror.rename:
        table["rename"] = [list(pair) for pair in mirror.rename]
    if mirror.parts:
        table["parts"] = [_mirror(part) for part in mirror.parts]
    return table["url"] if table.keys() == {"url"} else table


def _value(value: Any) -> Any:
    """A plain value as TOML; lists of addresses and tables get a line for each item."""
    if isinstance(value, Mapping):
        table: Table = tomlkit.table()
        for name, item in value.items():
            table[name] = _value(item)
        return table
    if isinstance(value, list | tuple):
        array = tomlkit.array()
        for item in value:
            array.append(_inline(item))
        return array.multiline(len(value) > 0 and isinstance(value[0], str | dict))
    return _inline(value)


def _inline(value: Any) -> Any:
    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        for name, item in value.items():
            table[name] = _inline(item)
        return table
    try:
        return tomlkit.item(value)
    except ValueError:
        raise FormatError(
            "TOML has no such value", expected="text, number, bool, date, list, table", found=value
        ) from None
