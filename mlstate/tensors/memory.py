"""Tensors as memory: their bytes, and tensors over bytes of a file.

Nothing is copied, and numpy is not needed.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections import deque
from functools import lru_cache
from typing import BinaryIO

import torch

from mlstate.errors import FormatError, IntegrityError
from mlstate.format.tensor_object import TensorSpec
from mlstate.objects.mapped import MAP_FROM, may_map

__all__ = [
    "MAP_FROM",
    "TORCH_DTYPES",
    "as_bytes",
    "as_tensor",
    "is_shard",
    "mapped_tensor",
    "may_be_sharded",
    "read_into",
    "read_tensor",
    "spec_of",
    "torch_dtype",
    "torch_shape",
]

_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F4": "float4_e2m1fn_x2",
}

TORCH_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, attribute)
    for name, attribute in _TORCH_NAMES.items()
    if hasattr(torch, attribute)  # an older torch lacks the newest types
}
"""Element type of the format -> torch dtype, for those that this torch has."""

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def may_be_sharded() -> bool:
    """Whether this process can have DTensors at all: whether their module has been imported."""
    return "torch.distributed.tensor" in sys.modules


def is_shard(value: object) -> bool:
    """Whether a value is a DTensor, of which each rank of a job has a part."""
    if not may_be_sharded():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    """Element type and shape of a tensor; a FormatError if the format has no such type."""
    return _spec(tensor.dtype, tuple(tensor.shape))


@lru_cache(4096)
def _spec(kind: torch.dtype, shape: tuple[int, ...]) -> TensorSpec:
    """A spec that was made before: most tensors of a model are like another one."""
    try:
        dtype = _NAMES[kind]
    except KeyError:
        raise FormatError(
            "the format has no such element type", expected=", ".join(_NAMES.values()), found=kind
        ) from None
    if dtype == "F4":  # torch counts pairs, the format counts elements
        if not shape:
            raise FormatError("a scalar of two 4-bit elements has no shape in the format")
        shape = (*shape[:-1], 2 * shape[-1])
    return TensorSpec(dtype, shape)


def torch_dtype(spec: TensorSpec) -> torch.dtype:
    """The torch dtype of a stored tensor; a FormatError if this version of torch lacks it."""
    try:
        return TORCH_DTYPES[spec.dtype]
    except KeyError:
        raise FormatError(
            f"torch {torch.__version__} has no element type for {spec.dtype}",
            remedy="install a newer torch",
        ) from None


def torch_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of a stored tensor as torch counts it: 4-bit elements in pairs."""
    if spec.dtype != "F4":
        return spec.shape
    if not spec.shape or spec.shape[-1] % 2:
        raise FormatError("torch holds 4-bit elements in pairs", found=spec.shape)
    return (*spec.shape[:-1], spec.shape[-1] // 2)


_SMALL_MAPS = 4096
_room_for_small: deque[None] = deque([None] * _SMALL_MAPS)
"""A process may have 65,530 maps, and may hold the tensors of thousands of adapters. So only so
many objects smaller than `MAP_FROM` are mapped at a time. It is worth it: to read one takes ten
times as long, most of it for new memory (docs/performance.md)."""

_MEMORY = ctypes.c_ubyte * sys.maxsize
"""One type for all sizes: to make one for each takes longer than all else here."""


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor. The view keeps the tensor alive."""
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return memoryview(b"")
    array = _MEMORY.from_address(tensor.data_ptr())
    array.tensor = tensor  # type: ignore[attr-defined]  # the memory lives as long as the view
    return memoryview(array).cast("B")[:size]


def as_tensor(raw: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """Bytes (uint8, one dimension, exactly the data) as the tensor that they are."""
    typed = raw.view(torch_dtype(spec))
    shape = torch_shape(spec)
    return typed if len(shape) == 1 else typed.view(shape)


def mapped_tensor(
    file: BinaryIO, size: int, devices: dict[int, bool] | None = None
) -> torch.Tensor | None:
    """A file's bytes as a private, writable uint8 tensor, mapped: nothing is read yet.

    Nothing that is done to the tensor reaches the file, which may be closed afterwards. None if
    mapping is not safe (see `may_map`) or not possible, or if the file is small and many are
    mapped: then it is to be read.
    """
    if not size or not may_map(file, devices):
        return None
    small = size < MAP_FROM
    if small:
        try:
            _room_for_small.pop()
        except IndexError:
            return None
    # By way of the descriptor: it is the file that was looked at, whatever the name has come to
    # mean. torch closes its own descriptor after mapping (mmap of Python 3.11 keeps one for each
    # map, and a large model would use up the process's limit).
    try:
        mapped = torch.from_file(
            f"/dev/fd/{file.fileno()}",
            shared=False,
            size=size,
            dtype=torch.uint8,
            device="cpu",  # whatever the default device is
        )
    except RuntimeError:  # there is no /dev/fd, or the process may not map any more
        if small:
            _room_for_small.append(None)
        return None
    if small:
        weakref.finalize(mapped, _room_for_small.append, None).atexit = False
    return mapped


def read_tensor(file: BinaryIO, size: int) -> torch.Tensor:
    """A file's bytes as a uint8 tensor, read into memory; see `read_into`."""
    raw = torch.empty(size, dtype=torch.uint8, device="cpu")
    file.seek(0)
    read_into(file, as_bytes(raw))
    return raw


def read_into(file: BinaryIO, view: memoryview) -> None:
    """Fill memory with the next bytes of a file; an IntegrityError if it has fewer."""
    position = 0
    while position < len(view):
        count = file.readinto(view[position:])  # type: ignore[attr-defined]
        if not count:
            raise IntegrityError(
                "a file was cut short while it was read",
                expected=f"{len(view)} bytes",
                found=f"{position} bytes",
            )
        position += count
