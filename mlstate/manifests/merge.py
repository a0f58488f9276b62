"""What several manifests say, as one: of each state one entry."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from mlstate.errors import ManifestError
from mlstate.locations import Mirror, UnusableMirror
from mlstate.manifests.entries import FileEntry, ManifestContent, StateEntry
from mlstate.states import StateKey

__all__ = ["merged_aliases", "merged_states"]

_Mirrors = tuple[Mirror | UnusableMirror, ...]


def merged_states(
    manifests: Iterable[Mapping[StateKey, StateEntry]],
) -> dict[StateKey, StateEntry]:
    """The states of several manifests.

    Raises:
        ManifestError: Two give a state different digests, or differ in the case of a key.
    """
    states: dict[StateKey, StateEntry] = {}
    folded: dict[str, StateKey] = {}
    for manifest in manifests:
        for key, entry in manifest.items():
            states[key] = _merged(states[key], entry) if key in states else entry
            same = folded.setdefault(str(key).lower(), key)
            if same != key:
                _conflict("two state keys differ only in case", states[same], entry)
    return states


def merged_aliases(manifests: Iterable[ManifestContent]) -> dict[str, StateKey]:
    """The aliases of several manifests.

    Raises:
        ManifestError: Two give one alias to different states.
    """
    aliases: dict[str, StateKey] = {}
    for manifest in manifests:
        for name, key in manifest.aliases.items():
            if aliases.setdefault(name, key) != key:
                raise ManifestError(
                    "two manifests give one alias to different states",
                    found=f"{name} is {aliases[name]}, and {key}",
                    remedy="take it out of one of them",
                )
    return aliases


def _merged(first: StateEntry, second: StateEntry) -> StateEntry:
    """One entry for one state of two manifests.

    The mirrors of the first come before those of the second, and where both give another value,
    the first counts. But one with a digest counts before one without.
    """
    if first.digest is None and second.digest is not None:
        return second
    if second.digest is None:
        return first
    if first.digest != second.digest:
        _conflict("two manifests give one state different digests", first, second)
    return replace(
        first,
        size=second.size if first.size is None else first.size,
        mirrors=_joined(_placed(first, first.mirrors), _placed(second, second.mirrors)),
        files=_files(first, second),
        meta={**second.meta, **first.meta},
        unknown={**second.unknown, **first.unknown},
        layout=first.layout or second.layout,
        objects=tuple(
            dict.fromkeys((*_absolute(first, first.objects), *_absolute(second, second.objects)))
        ),
        origin=" and ".join(dict.fromkeys(o for o in (first.origin, second.origin) if o)) or None,
    )


def _conflict(message: str, first: StateEntry, second: StateEntry) -> NoReturn:
    raise ManifestError(
        message,
        key=second.key,
        path=f"{first.origin} and {second.origin}",
        expected=f"{first.key} {first.digest} in {first.origin}",
        found=f"{second.key} {second.digest} in {second.origin}",
        remedy="remove one, or give it another key",
    )


def _files(first: StateEntry, second: StateEntry) -> dict[str, FileEntry]:
    files: dict[str, FileEntry] = {}
    for entry in (first, second):
        for name, file in entry.files.items():
            other = replace(file, mirrors=_placed(entry, file.mirrors))
            mine = files.setdefault(name, other)
            if mine.digest == other.digest:
                files[name] = replace(mine, mirrors=_joined(mine.mirrors, other.mirrors))
    return files


def _joined(first: _Mirrors, second: _Mirrors) -> _Mirrors:
    return (*first, *(mirror for mirror in second if mirror not in first))


def _placed(entry: StateEntry, mirrors: _Mirrors) -> _Mirrors:
    """Mirrors with absolute paths: the merged entry is not of one manifest's folder."""

    def placed(mirror: Mirror) -> Mirror:
        parts = tuple(placed(part) for part in mirror.parts)
        state = None if mirror.state is None else _absolute(entry, [mirror.state])[0]
        return replace(mirror, urls=_absolute(entry, mirror.urls), state=state, parts=parts)

    return tuple(placed(mirror) if isinstance(mirror, Mirror) else mirror for mirror in mirrors)


def _absolute(entry: StateEntry, addresses: Iterable[str]) -> tuple[str, ...]:
    base = Path(entry.origin).parent if entry.origin else Path()
    return tuple(
        address if "://" in address else os.path.abspath(base / address) for address in addresses
    )
