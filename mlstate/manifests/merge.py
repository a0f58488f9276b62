"""What several manifests say of one state, as one entry."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mlstate.errors import ManifestError
from mlstate.locations import Mirror, UnusableMirror
from mlstate.manifests.entries import FileEntry, StateEntry

__all__ = ["conflict", "merged"]

_Mirrors = tuple[Mirror | UnusableMirror, ...]


def merged(first: StateEntry, second: StateEntry) -> StateEntry:
    """One entry for one state of two manifests.

    The first is asked first: its mirrors come before those of the second, and where both say
    something else, it counts. But one with a digest counts before one without.

    Raises:
        ManifestError: They give the state different digests.
    """
    if first.digest is None and second.digest is not None:
        return second
    if second.digest is None:
        return first
    if first.digest != second.digest:
        conflict("two manifests give one state different digests", first, second)
    return replace(
        first,
        size=second.size if first.size is None else first.size,
        mirrors=_joined(_placed(first, first.mirrors), _placed(second, second.mirrors)),
        files=_files(first, second),
        meta={**second.meta, **first.meta},
        unknown={**second.unknown, **first.unknown},
        objects=tuple(dict.fromkeys((*_all(first, first.objects), *_all(second, second.objects)))),
        origin=" and ".join(dict.fromkeys(o for o in (first.origin, second.origin) if o)) or None,
    )


def conflict(message: str, first: StateEntry, second: StateEntry) -> None:
    """Two manifests contradict each other.

    Raises:
        ManifestError: Always; it names both.
    """
    raise ManifestError(
        message,
        key=second.key,
        path=f"{first.origin} and {second.origin}",
        expected=f"{first.key} {first.digest} in {first.origin}",
        found=f"{second.key} {second.digest} in {second.origin}",
        remedy="remove one, or give it another key",
    )


def _files(first: StateEntry, second: StateEntry) -> dict[str, FileEntry]:
    files = {name: _file(first, file) for name, file in first.files.items()}
    for name, file in second.files.items():
        other = _file(second, file)
        mine = files.setdefault(name, other)
        if mine.digest == other.digest:
            files[name] = replace(mine, mirrors=_joined(mine.mirrors, other.mirrors))
    return files


def _file(entry: StateEntry, file: FileEntry) -> FileEntry:
    return replace(file, mirrors=_placed(entry, file.mirrors))


def _joined(first: _Mirrors, second: _Mirrors) -> _Mirrors:
    return (*first, *(mirror for mirror in second if mirror not in first))


def _placed(entry: StateEntry, mirrors: _Mirrors) -> _Mirrors:
    """Mirrors with absolute paths: the entry is no longer of one manifest alone."""

    def placed(mirror: Mirror) -> Mirror:
        parts = tuple(placed(part) for part in mirror.parts)
        state = None if mirror.state is None else next(iter(_all(entry, [mirror.state])))
        return replace(mirror, urls=tuple(_all(entry, mirror.urls)), state=state, parts=parts)

    return tuple(placed(mirror) if isinstance(mirror, Mirror) else mirror for mirror in mirrors)


def _all(entry: StateEntry, addresses: Iterable[str]) -> Iterable[str]:
    base = Path(entry.origin).parent if entry.origin else Path()
    return [
        address if "://" in address else os.path.abspath(base / address) for address in addresses
    ]
