"""The bytes of a tensor, and tensors over bytes of a file, without numpy and without copies."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import BinaryIO

import torch

from mlstate.errors import IntegrityError
from mlstate.format.dtypes import TensorSpec
from mlstate.objects.mapping import MAP_FROM, may_map
from mlstate.tensors.dtypes import torch_dtype, torch_shape

__all__ = ["MAP_FROM", "as_bytes", "as_tensor", "file_tensor"]


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
    return raw.view(torch_dtype(spec)).reshape(torch_shape(spec))


def file_tensor(file: BinaryIO, size: int, devices: dict[int, bool] | None = None) -> torch.Tensor:
    """A file's bytes as a private, writable uint8 tensor: mapped where that is safe, or read.

    Nothing that is done to the tensor reaches the file. A map shows what others do to the file
    later, so only files that nobody else can change unnoticed are mapped: our own or root's, on a
    local file system.

    Args:
        file: The open file; it may be closed afterwards.
        size: Its size in bytes.
        devices: As for `may_map`.

    Raises:
        IntegrityError: The file became shorter.
    """
    if size >= MAP_FROM and may_map(file, devices):
        # By way of the descriptor: it is the file that was looked at, whatever the name has come
        # to mean. torch closes its own descriptor after mapping (mmap of Python 3.11 keeps one for
        # each map, and a large model would use up the process's limit).
        # Where there is no /dev/fd, or the process may not map any more, the file is read.
        with contextlib.suppress(RuntimeError):
            return torch.from_file(
                f"/dev/fd/{file.fileno()}",
                shared=False,
                size=size,
                dtype=torch.uint8,
                device="cpu",  # whatever the default device is
            )
    raw = torch.empty(size, dtype=torch.uint8, device="cpu")
    view = as_bytes(raw)
    position = 0
    file.seek(0)
    while position < size:
        count = file.readinto(view[position:])  # type: ignore[attr-defined]
        if not count:
            raise IntegrityError(
                "a file was cut short while it was read",
                expected=f"{size} bytes",
                found=f"{position} bytes",
            )
        position += count
    return raw
