"""Writing a state as a plain folder, which `from_pretrained` and safetensors open."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mlstate.digests import Digest
from mlstate.errors import FormatError, concerning
from mlstate.format.plain_file import INDEX_NAME, is_weights_name
from mlstate.format.state_object import StateObject
from mlstate.locations import check_file_names, local_path
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore
from mlstate.objects.durable import read_small, sync_path, write_file
from mlstate.reading import read_state
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
from mlstate.weights.writer import BytesOutput, Output, temporaries, weights_of, write_output

__all__ = ["materialize_state"]


def materialize_state(
    entry: StateEntry,
    objects: ObjectStore,
    folder: str | os.PathLike[str],
    *,
    max_shard_size: int | str | None = None,
    overwrite: bool = False,
    files: bool = True,
) -> Path:
    """Write a state's tensors and files into a plain folder; see `StateStore.materialize`.

    Without `files`, only the tensors are written; other files there stay as they are.
    """
    entry = entry if files else replace(entry, files={})
    target = local_path(folder)
    with concerning(entry.key):
        most = None if max_shard_size is None else parse_size(max_shard_size)
        state = read_state(entry, objects)
        outputs = _outputs(entry, state, most)
        wanted = {output.name: output.digest for output in outputs}
        plan = plan_folder(target, wanted, overwrite=overwrite, weights_only=not files)
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


def _outputs(entry: StateEntry, state: StateObject, most: int | None) -> list[Output]:
    """The files to write, in the order in which they get their names: an index is the last."""
    weights = weights_of(state, most)
    check_file_names(entry.files)
    outputs: list[Output] = []
    for name, file in sorted(entry.files.items()):
        first = name.partition("/")[0]
        if is_weights_name(first) or is_own_name(first):
            raise FormatError(
                "a file of this state has a name that its weights need here",
                path=name,
                remedy="save the state without this file, or with another name for it",
            )
        outputs.append(BytesOutput(name, file.digest))
    return [*outputs, *weights]


def _publish(folder: Path, written: dict[str, Path], plan: FolderPlan) -> None:
    for name in written:
        with folder_of(folder, name, make=True):
            pass  # of all, before anything is replaced
    for name, temporary in written.items():
        with folder_of(folder, name) as (place, last):
            os.replace(temporary, last, dst_dir_fd=place)
    _sync({folder, *((folder / name).parent for name in written)})
    # The index first, so that no index is there without its shards.
    for name in sorted(plan.stale, key=lambda name: name != INDEX_NAME):
        with suppress(FileNotFoundError), folder_of(folder, name) as (place, last):
            os.unlink(last, dir_fd=place)
    _sync({(folder / name).parent for name in plan.stale})


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
