"""Entries of manifests that come from other machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mlstate.errors import TransportError
from mlstate.locations import Mirror, UnusableMirror
from mlstate.manifests import FileEntry, StateEntry
from mlstate.transport.reach import Reach

__all__ = ["from_elsewhere", "has_refused"]

_Mirrors = tuple[Mirror | UnusableMirror, ...]


def from_elsewhere(entry: StateEntry, source: str) -> StateEntry:
    """An entry from another machine, without mirrors that such a one may not name.

    Those are passed over, and reported, when the state is fetched, and are written nowhere.

    Args:
        entry: What the manifest says.
        source: The address that the manifest came from, or another name for where; an absolute
            path: the folder of a project, in which it may name files.

    Raises:
        FormatError: MLSTATE_ALLOWED_HOSTS is malformed.
    """
    asked = _Asked(Reach(source), Path(entry.origin).parent if entry.origin else None)
    files = {
        name: FileEntry(file.digest, _permitted(file.mirrors, asked), file.unknown)
        for name, file in entry.files.items()
    }
    objects = tuple(address for address in entry.objects if asked.refusal([address]) is None)
    mirrors = _permitted(entry.mirrors, asked)
    return replace(entry, mirrors=mirrors, files=files, objects=objects, source=source)


def has_refused(entry: StateEntry, permitted: StateEntry) -> bool:
    """Whether something of an entry is not permitted; see `from_elsewhere`."""
    return replace(permitted, source=entry.source) != entry


@dataclass(frozen=True)
class _Asked:
    """What may be opened, and where paths begin."""

    reach: Reach
    base: Path | None

    def refusal(self, addresses: Iterable[str]) -> str | None:
        """Why one of these addresses may not be named, or None."""
        for address in addresses:
            try:
                self.reach.permission(address, self.base)
            except TransportError as error:
                return "; ".join(filter(None, (error.message, error.remedy)))
        return None


def _permitted(mirrors: _Mirrors, asked: _Asked) -> _Mirrors:
    found: list[Mirror | UnusableMirror] = []
    for mirror in mirrors:
        if isinstance(mirror, UnusableMirror):
            # A later version may know how to use it: where it leads then, nobody can tell.
            found.append(replace(mirror, kept=False))
            continue
        refusal = asked.refusal(_all(mirror))
        if refusal is None:
            found.append(mirror)
        else:
            found.append(UnusableMirror(refusal, mirror.toml, kept=False))
    return tuple(found)


def _all(mirror: Mirror) -> Iterator[str]:
    yield from mirror.urls
    if mirror.state is not None:
        yield mirror.state
    for part in mirror.parts:
        yield from _all(part)
