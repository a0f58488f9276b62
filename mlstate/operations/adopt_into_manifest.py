"""`adopt` into a manifest: the state is pinned there, and its source is the mirror."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from mlstate.errors import FormatError, StateExistsError
from mlstate.fetch.said import Said
from mlstate.format.encode import check_not_empty
from mlstate.locations import Mirror
from mlstate.manifests import FileEntry, Manifest, StateEntry
from mlstate.operations.adopt_names import AdoptedNames
from mlstate.operations.adopt_report import (
    Adoption,
    AdoptReport,
    added_of,
    digests_in,
    spared_of,
)
from mlstate.operations.enlist import replace_entry
from mlstate.operations.sources import below, mirror_of_file
from mlstate.phrases import OVERWRITE, Phrase
from mlstate.reading import read_state
from mlstate.states import StateKey
from mlstate.stores.manifest import ManifestStore
from mlstate.stores.save_request import (
    Content,
    case_variant_exists,
    check_same,
)

__all__ = ["adopt_into_manifest"]

_COUNTED = Phrase(
    "adopt it into a store, without mirror=True; or leave strip_prefix out",
    "add it to a store, without --mirror; or leave --strip-prefix out",
)


def adopt_into_manifest(path: Path, adoption: Adoption, fetching: ManifestStore) -> AdoptReport:
    """Write a state into a manifest, which may be missing, with its source as the mirror.

    The source is read into the cache of ``fetching``. Raises a `StateExistsError` if another state
    has the key (nothing is changed), a `FormatError` for what a mirror cannot be (a file given as
    bytes, a source without one of its names), and other errors if the source cannot be read or the
    manifest cannot be edited.
    """
    key, request = adoption.key, adoption.request
    if adoption.source.local is not None:
        raise FormatError(
            f"{adoption.source.local} can be no mirror of a state",
            path=adoption.source.path,
            remedy="adopt it into a store, export a safetensors file of that, and give the file",
        )
    folder = Path(os.path.abspath(path)).parent
    manifest = Manifest.read(path) if path.exists() else Manifest({})
    known = manifest.states.get(key)
    _check_free(manifest, key, overwrite=request.overwrite)
    wanted = request.entry(key)
    given = _with_mirrors(wanted, request.files, folder)
    entry = replace(
        wanted,
        mirrors=(below(adoption.source.mirror, folder),),
        files={},
        objects=manifest.objects,
        origin=str(folder / path.name),
    )
    fetcher = fetching.fetcher
    present = digests_in(fetcher.cache.own)
    said: dict[str, Said] = {}
    naming = AdoptedNames()
    pinned = fetcher.pin(fetcher.pin_files(entry, adoption.beside), said, naming)
    naming.warn()
    if naming.counts:
        raise FormatError(
            "a mirror cannot leave out the count of an AveragedModel; nothing was written",
            path=path,
            tensor=min(naming.counts),
            remedy=_COUNTED,
        )
    pinned = adoption.with_layout(pinned, said)
    pinned = replace(pinned, files={**pinned.files, **given})
    if pinned.layout:
        request, wanted = replace(request, layout=pinned.layout), pinned
    report = partial(adoption.report, chosen=adoption.chosen(said))
    state = read_state(pinned, fetching.objects)
    check_not_empty(state.specs)
    digest, size = pinned.pinned_digest, state.nbytes
    if known is not None and not request.overwrite:
        if not (adoption.bare or pinned.files):  # the source has none, and none were given
            pinned = replace(pinned, files=known.files)
        check_same(known, digest, pinned)
        request.warn_of_other_meta(known, wanted)
        for mirror in pinned.mirrors:
            if isinstance(mirror, Mirror) and not _has_mirror(known, mirror, folder):
                # If the entry was changed meanwhile, it has a mirror, which is enough.
                replace_entry(path, known, replace(known, mirrors=(*known.mirrors, mirror)))
        return report(
            digest, size, pinned.files, spared=size, added=0, existed=True, tensors=state.specs
        )
    fetcher.fetch(pinned)  # its files, too
    if not replace_entry(path, known, pinned):
        raise StateExistsError(
            "this state of the manifest was changed meanwhile; nothing was written", path=path
        )
    return report(
        digest,
        size,
        pinned.files,
        spared=spared_of(state, digest, present),
        added=added_of(state, digest, present),
        existed=False,
        tensors=state.specs,
    )


def _has_mirror(known: StateEntry, mirror: Mirror, folder: Path) -> bool:
    """Whether an entry names the place of a mirror already, perhaps with more said of it."""
    others = (other for other in known.mirrors if isinstance(other, Mirror))
    places = (below(other, folder) for other in others)
    return any(_place(place) == _place(mirror) for place in places)


def _place(mirror: Mirror) -> tuple[object, ...]:
    return mirror.urls, mirror.select, tuple(map(_place, mirror.parts))


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
            remedy=known.how_to_lock() + " pins what it lists; " + OVERWRITE + " replaces it",
        )


def _with_mirrors(
    wanted: StateEntry, contents: Mapping[str, Content], folder: Path
) -> dict[str, FileEntry]:
    """The files of a state, each with the place of its content as its mirror."""
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
