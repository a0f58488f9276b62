"""Writing a state as a plain folder, which `from_pretrained` and safetensors open."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mlstate.digests import Digest
from mlstate.errors import FormatError, concerning
from mlstate.fetch.addresses import LARGEST_INDEX, parse_index
from mlstate.foreign import file_kind
from mlstate.format.plain_file import is_weights_name
from mlstate.format.state_object import StateObject
from mlstate.layouts import Layout, component_names, component_prefix, within
from mlstate.locations import check_file_names, local_path
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore, read_verified
from mlstate.objects.durable import read_small, sync_path, write_file
from mlstate.phrases import Phrase
from mlstate.reading import read_state
from mlstate.system import remove_at, replace_in
from mlstate.units import parse_size
from mlstate.weights.folder import (
    RECORD_NAME,
    FolderPlan,
    Recorded,
    check_names_fit,
    folder_of,
    format_record,
    is_own_name,
    plan_folder,
    remove_abandoned,
)
from mlstate.weights.writer import (
    BytesOutput,
    Output,
    WeightsOutput,
    laid_out,
    split_anew,
    temporaries,
    weights_of,
    write_output,
)

__all__ = ["check_folder_name", "materialize_state", "outputs_of"]


def check_folder_name(folder: str | os.PathLike[str]) -> None:
    """Refuse the name of a file for a folder that is to be made, unless it ends in a slash.

    Raises:
        FormatError: It has the ending of a file of weights, say.
    """
    target = local_path(folder)
    known = None if os.fspath(folder).endswith(os.sep) else file_kind(target.name)
    if known is not None and not target.is_dir():
        raise FormatError(
            "a folder is written, and this is the name of a file",
            path=target,
            found=known,
            remedy=Phrase(
                "for one file, use mlstate.export; a folder that is to be called so ends in /",
                "for one file: mlstate export; a folder that is to be called so ends in /",
            ),
        )


def materialize_state(
    entry: StateEntry,
    objects: ObjectStore,
    folder: str | os.PathLike[str],
    *,
    max_shard_size: int | str | None = None,
    overwrite: bool = False,
    files: bool = True,
    component: str | None = None,
) -> Path:
    """Write a state's tensors and files into a plain folder; see `StateStore.materialize`.

    Without `files`, only the tensors are written, with the indexes of shards; others there stay as
    they are.
    """
    target = local_path(folder)
    with concerning(entry.key):
        most = None if max_shard_size is None else parse_size(max_shard_size)
        state = read_state(entry, objects)
        if component is not None:
            entry, state = _part(entry, state, component)
        if not files:
            entry = replace(entry, files={n: entry.files[n] for n in _own_indexes(entry)})
        outputs = outputs_of(entry, state, objects, most)
        wanted = {output.name: output.digest for output in outputs}
        weights = {output.name for output in outputs if isinstance(output, WeightsOutput)}
        plan = plan_folder(
            target, wanted, weights=weights, overwrite=overwrite, weights_only=not files
        )
        remove_abandoned(target)
        final = format_record(entry.key, entry.pinned_digest, _recorded(wanted, plan.kept))
        if plan.write or plan.stale or not _says(target / RECORD_NAME, final):
            intent = format_record(entry.key, entry.pinned_digest, _recorded(wanted, plan.recorded))
            with temporaries(target) as run:
                check_names_fit(run, wanted)
                new = [output for output in outputs if output.name in plan.write]
                written = {
                    output.name: write_output(output, objects, run / str(number))
                    for number, output in enumerate(new)
                }
                # All bytes are verified by now.
                _write_record(target, run, intent)
                _publish(target, written, plan)
                _write_record(target, run, final)
    return target


def _part(entry: StateEntry, state: StateObject, component: str) -> tuple[StateEntry, StateObject]:
    """What is below a folder of a state, as a state of its own: see `component_prefix`."""
    prefix = component_prefix(component)
    names = {name[len(prefix) :]: name for name in component_names(state.specs, component)}
    files = {n[len(prefix) :]: f for n, f in entry.files.items() if n.startswith(prefix)}
    part = replace(entry, files=files, layout=within(entry.layout, prefix))
    return part, state.part(names)


def outputs_of(
    entry: StateEntry, state: StateObject, objects: ObjectStore, most: int | None
) -> list[Output]:
    """The files to write, in the order in which they get their names: indexes are the last.

    Indexes of shards that the layout names are read; see `materialize_state` for the arguments.
    """
    layout, files = entry.layout, dict(entry.files)
    if not layout:
        weights = weights_of(state, most)
    else:
        _check_understood(layout)
        indexes = {name: _index(entry, objects, name) for name in _index_names(layout)}
        if most is None:
            weights = laid_out(state, layout, indexes)
        else:
            weights = split_anew(state, layout, indexes, most)
            files = {name: file for name, file in files.items() if name not in indexes}
    check_file_names(files)
    taken = {output.name.lower() for output in weights}
    first: list[Output] = []
    last: list[Output] = []
    for name, file in sorted(files.items()):
        top = name.partition("/")[0]
        if (not layout and is_weights_name(top)) or name.lower() in taken or is_own_name(top):
            raise FormatError(
                "a file of this state has a name that its weights need here",
                path=name,
                remedy="save the state without this file, or with another name for it",
            )
        (last if name in _index_names(layout) else first).append(BytesOutput(name, file.digest))
    outputs = [*first, *weights, *last]
    for output in outputs:
        if is_own_name(output.name.partition("/")[0]):
            raise FormatError("a file of a layout has a name of mlstate's own", path=output.name)
    check_file_names(output.name for output in outputs)  # none is a folder of another
    return outputs


def _check_understood(layout: Layout) -> None:
    """Refuse what a later version says of a file: it may not be left out."""
    for name, file in layout.items():
        if file.unknown:
            raise FormatError(
                "the layout of this state was written by a later version; nothing was written",
                path=name,
                found=", ".join(sorted(file.unknown)),
                remedy="install a newer mlstate, or export the tensors into one file",
            )


def _own_indexes(entry: StateEntry) -> list[str]:
    """The indexes of shards among the files of a state."""
    return [name for name in _index_names(entry.layout) if name in entry.files]


def _index_names(layout: Layout) -> list[str]:
    return sorted({file.index for file in layout.values() if file.index is not None})


def _index(entry: StateEntry, objects: ObjectStore, name: str) -> Mapping[str, str]:
    """What an index of shards says, which is a file of the state: tensor -> shard."""
    if name not in entry.files:
        raise FormatError(
            "the layout of this state names an index that is no file of it; nothing was written",
            path=name,
        )
    digest, what = entry.files[name].digest, f"the file {name!r}"
    text = read_verified(objects, digest, what=what, max_size=LARGEST_INDEX)
    return parse_index(text, name).places


def _publish(folder: Path, written: dict[str, Path], plan: FolderPlan) -> None:
    for name in written:
        with folder_of(folder, name, make=True):
            pass  # of all, before anything is replaced
    for name, temporary in written.items():
        with folder_of(folder, name) as (place, last):
            replace_in(temporary, last, place)
    _sync({folder, *((folder / name).parent for name in written)})
    # The index first, so that no index is there without its shards.
    for name in sorted(plan.stale, key=lambda name: not _is_index(name)):
        with suppress(FileNotFoundError), folder_of(folder, name) as (place, last):
            remove_at(last, place)
    _sync({(folder / name).parent for name in plan.stale})


def _is_index(name: str) -> bool:
    return name.endswith(".json") and ".safetensors.index." in name


def _sync(folders: Iterable[Path]) -> None:
    for folder in sorted(folders):
        sync_path(folder)


def _recorded(wanted: dict[str, Digest], old: Recorded) -> Recorded:
    """The record of the files of this state, and of recorded ones that may still be there."""
    recorded = dict(old)
    for name, digest in wanted.items():
        recorded[name] = tuple(dict.fromkeys((*recorded.get(name, ()), digest)))
    return recorded


def _write_record(folder: Path, run: Path, content: bytes) -> None:
    write_file(folder / RECORD_NAME, [content], temporary=run / "record", read_only=False)


def _says(path: Path, content: bytes) -> bool:
    try:
        return read_small(path) == content
    except (FileNotFoundError, FormatError):
        return False
