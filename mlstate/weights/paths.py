"""The files of weights that a path on this machine stands for."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from mlstate.candidates import (
    BESIDE_CHUNKS,
    METADATA,
    check_no_chunks,
    check_whole,
    choose_weights,
    has_chunks,
    is_index_name,
    missing_shards,
    shown_names,
)
from mlstate.errors import FormatError, WeightsNotFoundError
from mlstate.format import layout
from mlstate.locations import check_file_names
from mlstate.phrases import Phrase
from mlstate.project import is_project_file
from mlstate.weights.containers import FRONT, container_of

if TYPE_CHECKING:
    from mlstate.fetch.addresses import ShardIndex

__all__ = ["files_and_index", "local_files", "shards_of", "weights_in"]

_LARGEST_INDEX = 100_000_001
_PICKLE = b"\x80"


def local_files(path: Path, weights: str | None = None) -> list[tuple[Path, str]]:
    """The files that a path for `file_digest` stands for, all shards, each with its container.

    A `FormatError` says that there is nothing, or nothing that holds weights.
    """
    return files_and_index(path, weights)[0]


def files_and_index(
    path: Path, weights: str | None = None
) -> tuple[list[tuple[Path, str]], ShardIndex | None]:
    """As `local_files`, with the index that lists the files, if one does."""
    if not path.exists():
        raise WeightsNotFoundError(
            "there is no such file or folder", path=path, remedy="check the path"
        )
    # Every store imports this module, few need fetching: it is imported here.
    from mlstate.transport.local import LocalResource

    files, listed = [path], None
    check_no_chunks(path.name)
    if path.is_dir():
        files = [path / name for name in weights_in(path, weights, shards_of)]
    if len(files) == 1 and is_index_name(files[0].name):
        listed = _read_index(files[0])
        folder = files[0].parent
        files = [folder / name for name in listed.shards]
        if lacking := [name for name in listed.shards if not (folder / name).exists()]:
            raise missing_shards(lacking, listed.address)
    found = []
    for file in files:
        with LocalResource(file).read() as stream:
            found.append((file, container_of(str(file), stream.read(FRONT))))
    return found, listed


def shards_of(index: Path) -> list[str]:
    """The names of the files that an index lists; see `parse_index`."""
    return _read_index(index).shards


def _read_index(path: Path) -> ShardIndex:
    from mlstate.fetch.addresses import parse_index
    from mlstate.fetch.reader import read_exactly
    from mlstate.transport.local import LocalResource

    with LocalResource(path).read() as stream:  # which is never a pipe or a device
        return parse_index(read_exactly(stream, _LARGEST_INDEX), str(path))


def weights_in(
    folder: Path, wanted: str | None, shards_of: Callable[[Path], Collection[str]]
) -> tuple[str, ...]:
    """The names of the files in a folder that hold or list its weights.

    Args:
        folder: The folder.
        wanted: The one to take, where several could be meant.
        shards_of: Gives the names that an index lists.

    Returns:
        One name; several, if they are all shards of a set that has no index.

    Raises:
        FormatError: There are none, or several that are no parts of one another; or some of a set
            of shards are missing. They are named.
    """
    everything = os.listdir(folder)
    names = sorted(name for name in everything if not name.startswith("."))
    is_marked = layout.SETTINGS in names and not is_project_file(folder / layout.SETTINGS)
    if wanted is None and is_marked:
        raise FormatError(
            "this folder is a store, not a file of weights",
            path=folder,
            remedy="bring its states over with "
            + Phrase("mlstate.copy", "mlstate copy")
            + ", or give one a key of this store",
        )
    if wanted is not None and wanted not in names:
        check_file_names([wanted])
        if (folder / wanted).is_file():  # in a folder below
            check_whole(wanted)
            return (wanted,)
    if _is_distributed(everything, folder):
        if wanted == METADATA:
            return (METADATA,)
        if wanted is None:
            names = [name for name in names if name not in BESIDE_CHUNKS]
            names.append(METADATA)
    return choose_weights(names, folder, wanted, lambda name: shards_of(folder / name))


def _is_distributed(names: Collection[str], folder: Path) -> bool:
    """Whether a folder is a distributed checkpoint, which its ``.metadata`` stands for."""
    chunked = has_chunks(names)
    if METADATA in names and (chunked or _is_pickle(folder / METADATA)):
        return True
    if not chunked:
        return False
    apart = [name for name in names if name.endswith(METADATA)]
    raise FormatError(
        "this distributed checkpoint lacks its .metadata",
        path=folder,
        expected=METADATA,
        found=shown_names(apart) if apart else None,
        remedy="save it with coordination of the ranks: each has its own .metadata here"
        if apart
        else "bring it here, too: it is written last, and a save that was stopped has none",
    )


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as torch's pickles do; other programs write a ``.metadata``, too."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(1) == _PICKLE
