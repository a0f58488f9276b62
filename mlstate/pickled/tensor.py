"""A tensor of a checkpoint: a storage that the pickle claims to be there, and a view of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from mlstate.errors import FormatError
from mlstate.pickled.caps import MAX_DIMENSIONS, MAX_REPEAT, SMALL, capped
from mlstate.pickled.dtypes import ITEMSIZES, QUANTIZED

__all__ = ["CheckpointTensor", "StorageClaim", "checked_tensor", "itemsize_of", "whole_number"]

_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class StorageClaim:
    """A storage as the pickle describes it; whether the file has it is for the container to say.

    Attributes:
        key: Its name in the file.
        dtype: The torch dtype of its elements.
        total: The size of the whole storage of this name in bytes.
        start: Where in that storage this one begins, in bytes; 0 but for views of old files.
        nbytes: Its size in bytes.
    """

    key: str
    dtype: str
    total: int
    start: int
    nbytes: int

    @property
    def itemsize(self) -> int:
        """The bytes of an element."""
        return itemsize_of(self.dtype)


@dataclass(frozen=True, slots=True)
class CheckpointTensor:
    """A tensor in a checkpoint. It lies within its storage.

    Attributes:
        storage: The storage that holds it.
        dtype: The name of its torch dtype, such as ``float32``.
        shape: Its dimensions as torch counts them.
        strides: The steps between elements, in elements, for each dimension.
        offset: Its first element in the storage, in elements.
        conj: Whether its value is the complex conjugate of what is stored.
        neg: Whether its value is the negative of what is stored.
        swapped: Whether its numbers are stored big-endian, which torch never does.
    """

    storage: StorageClaim
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    conj: bool = False
    neg: bool = False
    swapped: bool = False

    @property
    def itemsize(self) -> int:
        """The bytes of an element."""
        return ITEMSIZES[self.dtype]

    @property
    def nbytes(self) -> int:
        """The bytes of all elements, one after the other."""
        return math.prod(self.shape) * self.itemsize


def itemsize_of(dtype: str) -> int:
    """The bytes of an element of a dtype, also of a quantized one."""
    if dtype in QUANTIZED:
        return 4 if dtype == "qint32" else 1
    return ITEMSIZES[dtype]


def whole_number(value: Any, what: str) -> int:
    """A number from 0 to 2^63 - 1; anything else is a FormatError."""
    if type(value) is not int or not 0 <= value <= _MAX:
        found = repr(value)[:40] if isinstance(value, int) else type(value).__name__
        raise FormatError(f"{what} is no whole number from 0 on", found=found)
    return value


def checked_tensor(
    storage: Any, dtype: str, offset: Any, shape: Any, strides: Any, *, metadata: Any = None
) -> CheckpointTensor:
    """A tensor whose storage is large enough for it.

    Args:
        storage: A `StorageClaim`.
        dtype: The name of a torch dtype.
        offset: See `CheckpointTensor`.
        shape: A list or tuple of numbers.
        strides: As many.
        metadata: Which of ``conj`` and ``neg`` are set, as items; None if none is.

    Raises:
        FormatError: Anything else, or a tensor that repeats its storage too often.
    """
    if not isinstance(storage, StorageClaim):
        raise FormatError("a tensor in a checkpoint has no storage", found=type(storage).__name__)
    if dtype in QUANTIZED or dtype not in ITEMSIZES:
        raise FormatError("a tensor has an element type that is not read", found=dtype[:60])
    if not isinstance(shape, tuple | list) or not isinstance(strides, tuple | list):
        raise FormatError("a tensor's shape is no list of numbers", found=type(shape).__name__)
    if len(shape) != len(strides):
        raise FormatError("a tensor has more dimensions than strides, or fewer")
    if len(shape) > MAX_DIMENSIONS:
        raise capped("a tensor with too many dimensions", MAX_DIMENSIONS, len(shape))
    tensor = CheckpointTensor(
        storage,
        dtype,
        tuple([whole_number(size, "a dimension of a tensor") for size in shape]),
        tuple([whole_number(step, "a stride of a tensor") for step in strides]),
        whole_number(offset, "the offset of a tensor"),
    )
    _check_within(tensor)
    if not metadata:
        return tensor
    flags = _flags(metadata, dtype)
    return replace(tensor, conj=flags.get("conj", False), neg=flags.get("neg", False))


def _check_within(tensor: CheckpointTensor) -> None:
    # Step by step, as torch multiplies: a 0 further on does not undo an overflow.
    count = 1
    for size in tensor.shape:
        count *= size
        if count > _MAX:
            raise FormatError("a tensor is larger than 2^63 elements")
    if not count:
        return
    steps = zip(tensor.shape, tensor.strides, strict=True)
    end = tensor.offset + 1 + sum((size - 1) * step for size, step in steps)
    if end * tensor.itemsize > tensor.storage.nbytes:
        raise FormatError(
            "a tensor is larger than its storage",
            expected=f"at most {tensor.storage.nbytes} bytes",
            found=f"{end * tensor.itemsize} bytes",
        )
    most = max(SMALL, MAX_REPEAT * tensor.storage.nbytes)
    if tensor.nbytes > most:
        raise FormatError(
            "a tensor repeats its storage too often",
            expected=f"at most {most} bytes, {MAX_REPEAT} times its storage",
            found=f"{tensor.nbytes} bytes",
            remedy="save a copy of what was expanded: tensor.contiguous()",
        )


def _flags(metadata: dict[Any, Any], dtype: str) -> dict[str, bool]:
    allowed = {
        "conj": ("complex64", "complex128"),
        "neg": ("float32", "float64", "complex64", "complex128"),
    }
    for name, value in metadata.items():
        if name not in allowed or type(value) is not bool:
            raise FormatError("a tensor has metadata that is not known", found=str(name)[:60])
        if value and dtype not in allowed[name]:
            raise FormatError(f"a tensor of {dtype} is marked {name}, which is not read")
    return metadata
