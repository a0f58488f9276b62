"""Checkpoints as torch.save wrote them before 0.2: a tar archive of storages, tensors and a pickle.

Torch itself reads them no more with ``weights_only=True``.
"""

from __future__ import annotations

import struct
import tarfile

from mlstate.errors import FormatError
from mlstate.pickled.caps import MAX_DIMENSIONS, MAX_ENTRIES, capped
from mlstate.pickled.checkpoint import Checkpoint, Place
from mlstate.pickled.claims import storage_dtype
from mlstate.pickled.constructors import understand
from mlstate.pickled.interpreter import read_pickle
from mlstate.pickled.legacy import skip_storage
from mlstate.pickled.source import Cursor, Part, Source
from mlstate.pickled.tensor import (
    CheckpointTensor,
    StorageClaim,
    checked_tensor,
    itemsize_of,
    whole_number,
)
from mlstate.pickled.values import Global, Value, kind_of

__all__ = ["is_tar", "read_tarred"]

_BLOCK = 512
_MEMBERS = ("storages", "tensors", "pickle")
_MOST_MEMBERS = 64


def is_tar(front: bytes) -> bool:
    """Whether the first 512 bytes of a file are the header of a tar archive."""
    try:
        tarfile.TarInfo.frombuf(front, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def read_tarred(source: Source) -> Checkpoint:
    """Read the structure of a tar archive.

    Raises:
        FormatError: It is damaged, or its storages are not all there.
    """
    members = _members(source)
    storages, places = _storages(source, members["storages"])
    tensors = _tensors(source, members["tensors"], storages)

    def load(key: Value) -> Value:
        if isinstance(key, tuple) and len(key) == 3 and isinstance(key[0], Global):
            return key[0]  # a class, with the text of its source
        number = key if type(key) is int else int(key) if _is_digits(key) else None
        if number in tensors:
            return tensors[number]
        if number in storages:
            return storages[number]
        raise FormatError("a pickle refers to what is no tensor", found=kind_of(key))

    cursor = Cursor(_part(source, members["pickle"]))
    return Checkpoint(read_pickle(cursor, understand, load), places)


def _is_digits(key: Value) -> bool:
    return type(key) is str and key.isascii() and key.isdigit() and len(key) < 32


def _members(source: Source) -> dict[str, Place]:
    found: dict[str, Place] = {}
    at = 0
    for _ in range(_MOST_MEMBERS):
        if at + _BLOCK > source.size:
            break
        block = source.read(at, _BLOCK)
        if not any(block):
            break
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise FormatError("this archive is damaged", found=error) from None
        size = whole_number(member.size, "the size of an entry")
        start = at + _BLOCK
        if start + size > source.size:
            raise FormatError("this archive ends too early", found=repr(member.name)[:60])
        if member.name in _MEMBERS:
            if not member.isreg() or member.name in found:
                raise FormatError("this archive has an entry twice, or one that is no file")
            found[member.name] = Place(start, size)
        at = start + -(-size // _BLOCK) * _BLOCK
    if len(found) != len(_MEMBERS):
        raise FormatError(
            "this tar archive is no checkpoint",
            expected=", ".join(_MEMBERS),
            found=", ".join(found) or "others",
            remedy="unpack it, and give the file of weights in it",
        )
    return found


def _part(source: Source, place: Place) -> Part:
    return Part(source, place.start, place.size)


def _number_of(cursor: Cursor, what: str) -> int:
    count = whole_number(read_pickle(cursor, understand), f"the number of {what}")
    if count > MAX_ENTRIES:
        raise capped(f"too many {what}", MAX_ENTRIES, count)
    return count


def _fields(value: Value, count: int) -> tuple[Value, ...]:
    if not isinstance(value, tuple) or len(value) != count:
        raise FormatError("this archive describes a tensor in a way that no torch writes")
    return value


def _storages(source: Source, member: Place) -> tuple[dict[int, StorageClaim], dict[str, Place]]:
    cursor = Cursor(_part(source, member))
    claims: dict[int, StorageClaim] = {}
    places: dict[str, Place] = {}
    for _ in range(_number_of(cursor, "storages")):
        key, _location, kind = _fields(read_pickle(cursor, understand), 3)
        number, dtype = _new(key, claims), storage_dtype(kind)
        left = cursor.position
        count = int.from_bytes(cursor.take(8), "little", signed=True)
        size = whole_number(count, "the size of a storage") * itemsize_of(dtype)
        claim = StorageClaim(str(number), dtype, size, 0, size)
        place = skip_storage(Cursor(_part(source, member), left), claim)
        cursor.skip(size)
        claims[number] = claim
        places[claim.key] = Place(member.start + place.start, place.size)
    views = read_pickle(cursor, understand)
    if not isinstance(views, list | tuple):
        raise FormatError("this archive has no list of parts of storages", found=kind_of(views))
    for view in views:
        target, root, offset, count = _fields(view, 4)
        claims[_new(target, claims)] = _view(claims, root, offset, count)
    return claims, places


def _new(key: Value, known: dict[int, StorageClaim] | dict[int, CheckpointTensor]) -> int:
    if type(key) is not int or key in known:
        raise FormatError("this archive has a key twice, or one that is no number")
    return key


def _view(claims: dict[int, StorageClaim], root: Value, offset: Value, count: Value) -> Value:
    whole = claims.get(root) if type(root) is int else None
    if whole is None:
        raise FormatError("this archive has a part of a storage that it lacks")
    start = whole.itemsize * whole_number(offset, "the offset of a part of a storage")
    size = whole.itemsize * whole_number(count, "the size of a part of a storage")
    if start + size > whole.nbytes:
        raise FormatError("a part of a storage is larger than the storage")
    return StorageClaim(whole.key, whole.dtype, whole.total, whole.start + start, size)


def _tensors(
    source: Source, member: Place, storages: dict[int, StorageClaim]
) -> dict[int, CheckpointTensor]:
    cursor = Cursor(_part(source, member))
    tensors: dict[int, CheckpointTensor] = {}
    for _ in range(_number_of(cursor, "tensors")):
        key, storage_key, _kind = _fields(read_pickle(cursor, understand), 3)
        storage = storages.get(storage_key) if type(storage_key) is int else None
        if storage is None:
            raise FormatError("this archive has a tensor without a storage")
        (dimensions,) = struct.unpack("<i4x", cursor.take(8))
        if not 0 <= dimensions <= MAX_DIMENSIONS:
            raise capped("a tensor with too many dimensions", MAX_DIMENSIONS, dimensions)
        numbers = struct.unpack(f"<{2 * dimensions + 1}q", cursor.take(8 * (2 * dimensions + 1)))
        tensors[_new(key, tensors)] = checked_tensor(
            storage,
            storage.dtype,
            numbers[-1],
            numbers[:dimensions],
            numbers[dimensions : 2 * dimensions],
        )
    return tensors
