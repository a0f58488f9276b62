"""Checkpoints as torch.save wrote them before 1.6: pickles one after the other, then storages."""

from __future__ import annotations

from mlstate.errors import FormatError
from mlstate.pickled.checkpoint import Checkpoint, Place
from mlstate.pickled.claims import Claims
from mlstate.pickled.constructors import understand
from mlstate.pickled.interpreter import read_pickle
from mlstate.pickled.source import Cursor, Source
from mlstate.pickled.tensor import StorageClaim
from mlstate.pickled.values import Call, Global, kind_of

__all__ = ["read_legacy", "skip_storage"]

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def read_legacy(source: Source) -> Checkpoint:
    """Read the structure of a legacy file.

    It is a magic number, a version, facts on the machine, what was saved, the keys of the
    storages, and these.

    Raises:
        FormatError: It is damaged, or its storages are not all there.
    """
    cursor = Cursor(source)
    _check_magic(cursor)
    if read_pickle(cursor, understand) != _PROTOCOL:
        raise FormatError("this checkpoint is of an unknown version", expected=_PROTOCOL)
    read_pickle(cursor, understand)  # the machine: torch writes little-endian on all
    claims = Claims(views=True)
    root = read_pickle(cursor, understand, claims.persistent_load)
    keys = read_pickle(cursor, understand)
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise FormatError("this checkpoint has no list of storages", found=kind_of(keys))
    if len(set(keys)) != len(keys) or set(keys) != claims.storages.keys():
        # Torch would give memory that nobody wrote for a storage that is not in the list.
        raise FormatError(
            "this checkpoint lists other storages than those of its tensors",
            expected=f"{len(claims.storages)} storages",
            found=f"{len(keys)}, {len(set(keys) & claims.storages.keys())} of these",
        )
    return Checkpoint(root, {key: skip_storage(cursor, claims.storages[key]) for key in keys})


def _check_magic(cursor: Cursor) -> None:
    try:
        magic = read_pickle(cursor, understand)
    except FormatError:  # most likely no pickle at all: its opcodes would explain nothing
        raise _no_checkpoint("something else, or a part of it") from None
    if isinstance(magic, Call | Global):
        raise _no_checkpoint(kind_of(magic))
    if magic != _MAGIC:
        raise _no_checkpoint(
            f"a plain pickle, or one of joblib, of a {kind_of(magic)}",
            "if you trust it, load it with what wrote it, and save its tensors with torch.save",
        )


def _no_checkpoint(found: str, remedy: str | None = None) -> FormatError:
    return FormatError(
        "this file is not a checkpoint of plain tensors",
        expected="what torch.save writes of tensors, whole",
        found=found,
        remedy=remedy,
    )


def skip_storage(cursor: Cursor, claim: StorageClaim) -> Place:
    """The place of the storage that begins here, with its number of elements.

    Raises:
        FormatError: It has another size than its tensors say, or the file ends before.
    """
    count = int.from_bytes(cursor.take(8), "little", signed=True)
    if count * claim.itemsize != claim.total:
        raise FormatError(
            "a storage of this checkpoint has another size than it claims to have",
            expected=f"{claim.total} bytes",
            found=f"{count * claim.itemsize} bytes",
        )
    start = cursor.position
    cursor.skip(claim.total)
    return Place(start, claim.total)
