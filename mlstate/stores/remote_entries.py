"""Entries of manifests that come from other machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mlstate.locations import Mirror, UnusableMirror
from mlstate.manifests import FileEntry, StateEntry

__all__ = ["without_local_mirrors"]

_Mirrors = tuple[Mirror | UnusableMirror, ...]


def without_local_mirrors(entry: StateEntry) -> StateEntry:
    """An entry from another machine, without mirrors that would be read on this one."""
    files = {
        name: FileEntry(file.digest, _elsewhere(file.mirrors), file.unknown)
        for name, file in entry.files.items()
    }
    objects = tuple(address for address in entry.objects if _is_elsewhere(address))
    return replace(entry, mirrors=_elsewhere(entry.mirrors), files=files, objects=objects)


def _elsewhere(mirrors: _Mirrors) -> _Mirrors:
    return tuple(
        mirror
        if isinstance(mirror, UnusableMirror) or all(map(_is_elsewhere, _addresses(mirror)))
        else UnusableMirror("a place on this machine, in a manifest from elsewhere", mirror.toml)
        for mirror in mirrors
    )


def _addresses(mirror: Mirror) -> Iterator[str]:
    yield from mirror.urls
    if mirror.state is not None:
        yield mirror.state
    for part in mirror.parts:
        yield from _addresses(part)


def _is_elsewhere(address: str) -> bool:
    return "://" in address and not address.lower().startswith("file:")
