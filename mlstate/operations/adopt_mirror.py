"""Weights elsewhere as a state of a manifest: pinned, with where they are as its mirror."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mlstate.errors import FormatError, StateExistsError
from mlstate.locations import Mirror
from mlstate.manifests import FileEntry, Manifest, StateEntry
from mlstate.manifests.update import change_manifest
from mlstate.operations.intake import Adoption, AdoptReport, digests_in, spared_of
from mlstate.operations.sources import below, mirror_of_file
from mlstate.phrases import LOCK, OVERWRITE, Phrase
from mlstate.reading import read_state
from mlstate.states import StateKey
from mlstate.stores.manifest import ManifestStore
from mlstate.stores.save_request import (
    Content,
    case_variant_exists,
    check_same,
)

__all__ = ["mirror_into"]


def mirror_into(path: Path, adoption: Adoption, fetching: ManifestStore) -> AdoptReport:
    """Write a state into a manifest, with a source as its mirror.

    Args:
        path: The manifest; it may be missing.
        adoption: What was asked for.
        fetching: Reads the source into its cache.

    Raises:
        StateExistsError: Another state has the key; nothing was changed.
        FormatError: A file is given as bytes, for which there is no mirror.
        MlstateError: The source cannot be read, or the manifest cannot be edited.
    """
    key, request = adoption.key, adoption.request
    folder = Path(os.path.abspath(path)).parent
    manifest = _read(path)
    known = manifest.states.get(key)
    _check_free(manifest, key, overwrite=request.overwrite)
    wanted = request.entry(key)
    entry = replace(
        wanted,
        mirrors=(below(adoption.source.mirror, folder),),
        files=_mirrored(wanted, request.files, folder),
        objects=manifest.objects,
        origin=str(folder / path.name),
    )
    fetcher = fetching.fetcher
    having = digests_in(fetcher.cache.own)
    pinned = fetcher.pin(fetcher.settle(entry))
    if adoption.by_caller:
        pinned = replace(pinned, files=entry.files)
    state = read_state(pinned, fetching.objects)
    digest, size, files = pinned.pinned_digest, state.nbytes, pinned.files
    if known is not None and not request.overwrite:
        if not (adoption.by_caller or files):  # the source has none, and nobody spoke of any
            pinned, files = replace(pinned, files=known.files), known.files
        check_same(known, digest, pinned)
        request.warn_of_other_meta(known, wanted)
        for mirror in pinned.mirrors:
            if isinstance(mirror, Mirror):
                _add_mirror(path, key, known, mirror)
        return adoption.report(digest, size, files, spared=size, existed=True)
    fetcher.fetch(pinned)  # its files, too

    def write(now: Manifest) -> Manifest:
        if now.states.get(key) != known:
            raise StateExistsError(
                "this state of the manifest was changed meanwhile; nothing was written", path=path
            )
        return replace(now, states={**now.states, key: pinned})

    change_manifest(path, write)
    return adoption.report(digest, size, files, spared=spared_of(state, having), existed=False)


def _add_mirror(path: Path, key: StateKey, known: StateEntry, mirror: Mirror) -> None:
    """Name another place for weights that the manifest lists already, behind those it has."""
    base = Path(os.path.abspath(path)).parent
    for other in known.mirrors:  # one that says more of the same place is the same place
        if isinstance(other, Mirror):
            there = below(other, base) if other.urls else other
            if (there.urls, there.select) == (mirror.urls, mirror.select):
                return

    def write(now: Manifest) -> Manifest:
        if now.states.get(key) != known:
            return now  # somebody changed it meanwhile: it has a mirror, which is enough
        longer = replace(known, mirrors=(*known.mirrors, mirror))
        return replace(now, states={**now.states, key: longer})

    change_manifest(path, write)


def _read(path: Path) -> Manifest:
    return Manifest.read(path) if path.exists() else Manifest({})


def _check_free(manifest: Manifest, key: StateKey, *, overwrite: bool) -> None:
    """Refuse a key before anything is fetched, if it is plain that it is taken."""
    folded = {str(other).lower(): other for other in manifest.states}
    variant = folded.get(str(key).lower(), key)
    if key not in manifest.states and variant != key:
        raise case_variant_exists(variant)
    known = manifest.states.get(key)
    if known is not None and known.digest is None and not overwrite:
        raise StateExistsError(
            "the manifest lists this key already, without a digest; nothing was changed",
            path=known.origin,
            remedy=LOCK + Phrase(" pins what it lists", "") + "; " + OVERWRITE + " replaces it",
        )


def _mirrored(
    wanted: StateEntry, contents: Mapping[str, Content], folder: Path
) -> dict[str, FileEntry]:
    files = {}
    for name, file in wanted.files.items():
        content = contents[name]
        if isinstance(content, bytes):
            raise FormatError(
                "a manifest stores no bytes",
                found=f"files={{{name!r}: bytes}}",
                remedy="give the path of a file that has them",
            )
        files[name] = FileEntry(file.digest, (below(mirror_of_file(content), folder),))
    return files
