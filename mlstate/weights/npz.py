"""Archives of NumPy arrays (``.npz``), read without NumPy: nothing in them is unpickled.

An archive is read as a checkpoint is: an array is a tensor that lies in its entry behind a header,
so order, limits and sums are those of `mlstate.pickled`. The entry of an array ends in ``.npy``,
which is no part of its name.
"""

from __future__ import annotations

import ast
import math
import re
import struct
from typing import Any

from mlstate.errors import FormatError, concerning
from mlstate.pickled import Checkpoint, CheckpointTensor, Entry, Place, Source, StorageClaim
from mlstate.pickled.caps import MAX_DIMENSIONS, capped
from mlstate.pickled.dtypes import ITEMSIZES
from mlstate.pickled.tensor import whole_number
from mlstate.pickled.values import Items, Pairs, Value
from mlstate.pickled.zip_directory import read_directory

__all__ = ["read_npz"]

_MAGIC = b"\x93NUMPY"
_LENGTHS = {1: "<H", 2: "<I", 3: "<I"}
"""Version of the header -> how its length is written."""
_LONGEST = 10_000
"""The longest header that NumPy reads by default, in bytes."""
_KINDS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}
_DTYPE = re.compile(r"(?P<order>[<>|=])(?P<kind>[a-zA-Z])(?P<size>\d+)")


def read_npz(source: Source) -> Checkpoint:
    """Read the headers of an archive's arrays; no byte of an array is read.

    Args:
        source: The archive, its entries as they are: see `mlstate.pickled.deflated`.

    Returns:
        A mapping from names to tensors; what is no array of numbers is a value of its kind, which
        `choose_tensors` refuses or passes over.

    Raises:
        FormatError: A damaged archive or header.
    """
    root = Pairs()
    places: dict[str, Place] = {}
    for entry in read_directory(source).values():
        name = entry.name.removesuffix(".npy")
        with concerning(tensor=name):
            start = entry.start(source)
            if name in root:
                raise FormatError("an archive has two arrays of one name")
            if name == entry.name:
                root.put(name, Items("an entry that is no array: its name does not end in .npy"))
                continue
            root.put(name, _array(source, entry, start))
            places[entry.name] = Place(start, entry.size, entry.crc)
    return Checkpoint(root, places)


def _array(source: Source, entry: Entry, start: int) -> Value:
    """The tensor that an entry holds."""
    header, offset = _header(source, entry, start)
    described, fortran, shape = (header[key] for key in ("descr", "fortran_order", "shape"))
    if type(fortran) is not bool or not isinstance(shape, tuple):
        raise _damaged("a header without order or shape")
    if len(shape) > MAX_DIMENSIONS:
        raise capped("an array with too many dimensions", MAX_DIMENSIONS, len(shape))
    sizes = tuple(whole_number(size, "a dimension of an array") for size in shape)
    dtype, swapped = _dtype(described)
    if dtype is None:
        return Items(_unfit(described))
    nbytes = math.prod(sizes) * ITEMSIZES[dtype]
    if offset + nbytes != entry.size:
        raise FormatError(
            "an array of this archive has another size than it claims to have",
            expected=f"{nbytes} bytes",
            found=f"{entry.size - offset} bytes",
        )
    claim = StorageClaim(entry.name, dtype, entry.size, offset, nbytes)
    return CheckpointTensor(claim, dtype, sizes, _strides(sizes, fortran), 0, swapped=swapped)


def _header(source: Source, entry: Entry, start: int) -> tuple[dict[str, Any], int]:
    """What an array says of itself, and where in its entry its data begin."""
    front = source.read(start, min(12, entry.size))
    form = _LENGTHS.get(front[6]) if len(front) == 12 and front.startswith(_MAGIC) else None
    if form is None:
        raise _damaged("an entry without the header of an array", front[:8])
    (length,) = struct.unpack_from(form, front, 8)
    offset = 8 + struct.calcsize(form)
    if length > _LONGEST:
        raise capped("an array whose header is too long", _LONGEST, f"{length} bytes")
    if offset + length > entry.size:
        raise _damaged("an entry that ends within its header")
    data = source.read(start + offset, length)
    if b"\\" in data:  # no description of numbers has one, and Python warns of odd escapes
        raise _damaged("a header that describes no array", data[:60])
    try:
        header = ast.literal_eval(data.decode("utf-8" if front[6] == 3 else "latin-1").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        header = None
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise _damaged("a header that describes no array", data[:60])
    return header, offset + length


def _dtype(described: object) -> tuple[str | None, bool]:
    """The torch dtype of an array, None if there is none, and whether it is big-endian."""
    found = _DTYPE.fullmatch(described) if isinstance(described, str) else None
    if found is None or found["kind"] not in _KINDS:
        return None, False
    name = _KINDS[found["kind"]]
    if name != "bool":
        name += str(8 * int(found["size"][:4]))
    fits = name in ITEMSIZES and ITEMSIZES[name] == int(found["size"][:4])
    return (name if fits else None), found["order"] == ">"


def _unfit(described: object) -> str:
    """What an array is that holds no numbers, in a few words."""
    if not isinstance(described, str):
        return "an array of records"
    kind = described.lstrip("<>|=")[:1]
    said = {
        "O": "an array of pickled objects, which is never unpickled",
        "U": "an array of texts",
        "S": "an array of byte strings",
        "V": "an array of raw bytes, as NumPy stores bfloat16",
        "M": "an array of dates",
        "m": "an array of durations",
    }
    return f"{said.get(kind, 'an array')} (dtype {described[:40]})"


def _strides(shape: tuple[int, ...], fortran: bool) -> tuple[int, ...]:
    strides, step = [], 1
    for size in shape if fortran else reversed(shape):
        strides.append(step)
        step *= size
    return tuple(strides if fortran else reversed(strides))


def _damaged(what: str, found: object = None) -> FormatError:
    return FormatError(f"this file is a damaged archive of arrays: {what}", found=found)
