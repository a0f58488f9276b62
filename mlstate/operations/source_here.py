"""Weights in a file or a folder of this machine, as a source to adopt from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mlstate.candidates import check_whole
from mlstate.errors import FormatError
from mlstate.layouts import Layout
from mlstate.locations import DISTRIBUTED, LOCAL_ONLY, SAFETENSORS, Mirror
from mlstate.operations.adopt_choice import Choice
from mlstate.operations.weight_source import (
    WeightSource,
    around,
    check_names_stay,
    check_one_file,
    joined,
)
from mlstate.weights.components import Component, components_of, listed_parts
from mlstate.weights.distributed import files_of
from mlstate.weights.paths import files_and_index
from mlstate.weights.source_layout import layout_of

__all__ = ["source_here"]


def source_here(path: Path, choice: Choice) -> WeightSource:
    """The weights at a path; see `mlstate.operations.sources.find_source`."""
    path = Path(os.path.abspath(path))  # without what leads out and in again
    if not path.is_dir():
        check_whole(path.name)
        check_one_file(path, choice)
    renamed = choice.renames
    layout = layout_of(path, weights=choice.weights, form=choice.form, renamed=renamed)
    components = components_of(path) if choice.weights is None else []
    if components:
        return _pipeline(path, components, choice, layout)
    mirror, weights, local = _model(path, choice)
    source = WeightSource(mirror, path, layout=layout, local=local)
    if not path.is_dir():
        names = tuple(sorted(os.path.basename(name) for name in weights))
        return replace(source, indexes=_indexes(path.parent, layout), taken=names)
    return _with_files(source, weights, choice)


def _pipeline(
    path: Path, components: list[Component], choice: Choice, layout: Layout
) -> WeightSource:
    """The folder of a pipeline: a mirror with a part for each component."""
    check_names_stay(path, choice)
    mirrors: list[Mirror] = []
    own: set[str] = set()
    for component in components:
        mirror, weights, _ = _model(component.folder, replace(choice, add_prefix=component.prefix))
        mirrors.append(mirror)
        own |= weights
    source = WeightSource(joined(mirrors), path, layout=layout, is_pipeline=True)
    return _with_files(source, own, choice)


def _with_files(source: WeightSource, weights: set[str], choice: Choice) -> WeightSource:
    """A source in a folder, with what is taken from there beside the paths of its weights."""
    folder = source.path
    assert folder is not None
    own = {Path(name).relative_to(folder).as_posix() for name in weights}
    found = _names_in(folder)
    kept, skipped = around(found, listed_parts(folder), own, choice)
    files = {name: found[name] for name in kept if found[name].is_file()}
    return replace(
        source,
        files=files,
        indexes=_indexes(folder, source.layout),
        taken=tuple(sorted(name for name in {*own, *files} if not name.startswith("."))),
        skipped=tuple(sorted({*skipped, *(set(kept) - files.keys())})),
    )


def _model(path: Path, choice: Choice) -> tuple[Mirror, set[str], str | None]:
    """One model on this machine: its mirror, and the paths of all its files, with the index.

    The last is what it is, if it can be no mirror.
    """
    files, index = files_and_index(path, choice.weights)
    forms = {choice.form} if choice.form else {form for _, form in files}
    if len(forms) > 1:
        raise FormatError("these shards are of different kinds", path=path, found=sorted(forms))
    form = forms.pop()
    addresses = [str(file) for file, _ in files]
    weights = {*addresses, *([index.address] if index else ())}
    if form == SAFETENSORS and index is not None:
        addresses = [index.address]
    if form == DISTRIBUTED:
        weights |= {str(file) for file in files_of(files[0][0])}
    return choice.mirror(tuple(addresses), form), weights, LOCAL_ONLY.get(form)


def _indexes(folder: Path, layout: Layout) -> Mapping[str, Path]:
    """The indexes of shards that a layout names."""
    return {file.index: folder / file.index for file in layout.values() if file.index is not None}


def _names_in(folder: Path) -> dict[str, Path]:
    """All files in a folder and below, by their paths from there, but for hidden ones."""
    found: dict[str, Path] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith("."):
                path = Path(place) / name
                found[path.relative_to(folder).as_posix()] = path
    return found
