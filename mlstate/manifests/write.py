"""Writing entries as TOML: equal entries have equal texts."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import tomlkit

from mlstate.errors import FormatError
from mlstate.locations import Mirror, UnusableMirror, parse_mirror
from mlstate.manifests.entries import FileEntry, ManifestContent, StateEntry
from mlstate.manifests.layouts import plain_layout
from mlstate.manifests.parse import VERSION, parse_manifest

__all__ = [
    "format_manifest",
    "format_state",
    "plain_mirror",
    "plain_state",
    "plain_top",
    "toml_value",
]

_DEEPEST = 50
_SCALARS = (bool, int, float, datetime.datetime, datetime.date, datetime.time)


def format_manifest(manifest: ManifestContent) -> str:
    """The text of a new manifest: sorted, so the same for the same content.

    Raises:
        FormatError: A value that TOML cannot hold, or one that would be refused when read.
    """
    document = tomlkit.document()
    document["version"] = VERSION
    for name, value in plain_top(manifest).items():
        document[name] = toml_value(value)
    blocks = [format_state(manifest.states[key]) for key in sorted(manifest.states)]
    text = "\n".join([tomlkit.dumps(document), *blocks])
    parse_manifest(text.encode(), "the new manifest")  # what is written can be read
    return text


def format_state(entry: StateEntry) -> str:
    """One state as a table of its own, with its files and meta as tables below it.

    Raises:
        FormatError: A value that TOML cannot hold.
    """
    document = tomlkit.document()
    states = tomlkit.table(is_super_table=True)
    table = tomlkit.table(is_super_table=False)  # its header is there even with nothing below
    for name, value in plain_state(entry).items():
        table[name] = _file_by_file(value) if name == "layout" else toml_value(value)
    states[str(entry.key)] = table
    document["states"] = states
    return tomlkit.dumps(document)


def _file_by_file(layout: Mapping[str, Any]) -> Any:
    """A layout with a line for each file."""
    table = tomlkit.table()
    for name, file in layout.items():
        table[_text(name)] = toml_value(file, inline=True)
    return table


def plain_top(manifest: ManifestContent) -> dict[str, Any]:
    """The values of a manifest outside of its states."""
    objects = {"objects": list(manifest.objects)} if manifest.objects else {}
    named = {name: str(key) for name, key in sorted(manifest.aliases.items())}
    # Behind the values: in TOML what follows a table is a part of it.
    return {**objects, **_sorted(manifest.unknown), **({"aliases": named} if named else {})}


def plain_state(entry: StateEntry) -> dict[str, Any]:
    """The table of a state, as plain values in the order of a new manifest."""
    table: dict[str, Any] = {}
    if entry.digest is not None:
        table["blake3"] = str(entry.digest)
    if entry.size is not None:
        table["size"] = entry.size
    table |= _mirrors(entry.mirrors) | _sorted(entry.unknown)
    if entry.files:
        table["files"] = {name: _file(entry.files[name]) for name in sorted(entry.files)}
    if entry.layout:
        table["layout"] = _sorted(plain_layout(entry.layout))
    if entry.meta:
        table["meta"] = _sorted(entry.meta)
    return table


def _sorted(value: Any) -> Any:
    """A value with the names of its tables in order, so that equal values have one text."""
    if isinstance(value, Mapping):
        return {name: _sorted(value[name]) for name in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value


def toml_value(value: Any, *, inline: bool = False, depth: int = 0) -> Any:
    """A plain value as TOML; lists of addresses and tables get a line for each item.

    Args:
        value: Text, number, bool, date, time, list or mapping.
        inline: On one line, as within a list.
        depth: The number of values that this one is in.

    Raises:
        FormatError: Another value, a name that is no text, or nesting too deep.
    """
    if depth > _DEEPEST:
        raise FormatError("a value is nested too deeply for a manifest")
    if isinstance(value, Mapping):
        table: Any = tomlkit.inline_table() if inline else tomlkit.table()
        for name, item in value.items():
            table[_text(name)] = toml_value(item, inline=inline, depth=depth + 1)
        return table
    if isinstance(value, list | tuple):
        array = tomlkit.array()
        for item in value:
            array.append(toml_value(item, inline=True, depth=depth + 1))
        return array.multiline(not inline and len(value) > 0 and isinstance(value[0], str | dict))
    if isinstance(value, str):
        return tomlkit.item(_text(value))
    if not isinstance(value, _SCALARS):
        raise FormatError(
            "TOML has no such value",
            expected="text, number, bool, date, time, list or table",
            found=repr(value),
        )
    return tomlkit.item(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise FormatError("a name in a table is a text", found=repr(value))
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FormatError("a text holds a lone surrogate", found=repr(value)) from None
    return str(value)


def _file(entry: FileEntry) -> Any:
    more = _mirrors(entry.mirrors) | _sorted(entry.unknown)
    return {"blake3": str(entry.digest), **more} if more else str(entry.digest)


def _mirrors(mirrors: Sequence[Mirror | UnusableMirror]) -> dict[str, Any]:
    kept = [m for m in mirrors if not isinstance(m, UnusableMirror) or m.kept]
    return {"mirrors": [plain_mirror(mirror) for mirror in kept]} if kept else {}


_PREFIXES = ("strip_prefix", "add_prefix")


def plain_mirror(mirror: Mirror | UnusableMirror) -> Any:
    """A mirror as a manifest has it: an address, or a table of plain values."""
    if isinstance(mirror, UnusableMirror):
        return mirror.toml
    if mirror.toml is not None and parse_mirror(mirror.toml) == mirror:
        return mirror.toml  # as its author wrote it
    table: dict[str, Any] = {}
    if len(mirror.urls) == 1:
        table["url"] = mirror.urls[0]
    elif mirror.urls:
        table["urls"] = list(mirror.urls)
    for name in ("state", "sha256", "select", "tensors_only", *_PREFIXES, "format"):
        if getattr(mirror, name) != getattr(Mirror, name):
            table[name] = getattr(mirror, name)
    if mirror.rename:
        table["rename"] = [list(pair) for pair in mirror.rename]
    if mirror.parts:
        table["parts"] = [plain_mirror(part) for part in mirror.parts]
    return table["url"] if table.keys() == {"url"} else table
