"""Entries to TOML: the same text for the same entries; a person's own text and comments stay."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

import tomlkit
from tomlkit.items import Table

from mlstate.errors import FormatError, ManifestError
from mlstate.locations import Mirror, UnusableMirror
from mlstate.manifests.entries import FileEntry, StateEntry
from mlstate.manifests.reading import VERSION, parse_manifest
from mlstate.states import StateKey

__all__ = ["edit_manifest", "format_manifest"]

_HEADER = re.compile(r"^[ \t]*\[[ \t]*states[ \t]*\.[ \t]*(\"[^\"\n]*\"|'[^'\n]*')[ \t]*\]", re.M)


def format_manifest(
    objects: Iterable[str], states: Iterable[StateEntry], unknown: Mapping[str, Any]
) -> str:
    """The text of a new manifest: sorted, and so the same for the same content."""
    document = tomlkit.document()
    document["version"] = VERSION
    if listed := list(objects):
        document["objects"] = _value(listed)
    for name in sorted(unknown):
        document[name] = _value(unknown[name])
    blocks = [_block(entry) for entry in sorted(states, key=lambda entry: entry.key)]
    return "\n".join([tomlkit.dumps(document), *blocks])


def edit_manifest(text: str, origin: str, states: Mapping[StateKey, StateEntry]) -> str:
    """Change an existing manifest's text so that it has exactly these states.

    Only what differs is touched: comments, order and layout of all else stay as they are.

    Args:
        text: The text as it is.
        origin: Where it is from, for errors.
        states: The states that it is to have.

    Raises:
        ManifestError: The text is not a manifest, or written in a style that cannot be edited
            without harm.
    """
    old = parse_manifest(text.encode(), origin)
    if any(key in states and _changes(entry, states[key]) for key, entry in old.states.items()) or (
        old.states.keys() - states.keys()
    ):
        text = _update(text, old.states, states)
    for key in sorted(states.keys() - old.states.keys()):
        text = _insert(text, states[key])
    new = parse_manifest(text.encode(), origin)
    if {key: _table(entry) for key, entry in new.states.items()} != {
        key: _table(entry) for key, entry in states.items()
    }:
        raise ManifestError(
            "this manifest is written in a style that cannot be edited; nothing was changed",
            path=origin,
            remedy='write each state as a table of its own: [states."its.key"]',
        )
    return text


def _update(
    text: str, old: Mapping[StateKey, StateEntry], states: Mapping[StateKey, StateEntry]
) -> str:
    document = tomlkit.parse(text)
    tables: Any = document["states"]
    for key, entry in old.items():
        if key not in states:
            del tables[str(key)]
            continue
        wanted = _table(states[key])
        for name in _changes(entry, states[key]):
            if name not in wanted:
                del tables[str(key)][name]
            elif isinstance(wanted[name], dict) and name in tables[str(key)]:
                _update_table(tables[str(key)][name], wanted[name])
            else:
                tables[str(key)][name] = _value(wanted[name])
    return tomlkit.dumps(document)


def _update_table(table: Any, wanted: Mapping[str, Any]) -> None:
    for name in [name for name in table if name not in wanted]:
        del table[name]
    for name, value in wanted.items():
        if name not in table or table[name] != value:
            table[name] = _value(value)


def _changes(old: StateEntry, new: StateEntry) -> list[str]:
    before, after = _table(old), _table(new)
    return sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )


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
    if not entry.mirrors:
        return str(entry.digest)
    return {
        "blake3": str(entry.digest),
        "mirrors": [_mirror(mirror) for mirror in entry.mirrors],
    }


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
