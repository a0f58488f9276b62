"""Bytes as whole numbers of a width, for torch's operations: nothing is copied where that can be.

The numbers have a sign where they have more than a byte, for which torch has every operation.
"""

from __future__ import annotations

import ctypes

import torch

from mlstate.digests import Bytes

__all__ = ["CHUNK", "INTEGERS", "Pieces", "chunks", "integers", "part_of"]

CHUNK = 32_768
"""The elements that torch's operations are given: of more, it would start threads of its own."""

Pieces = tuple[torch.Tensor, ...]

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Width in bytes -> torch's type."""


def integers(data: Bytes, width: int) -> torch.Tensor:
    """The elements of some bytes, at least one; they can be written if the bytes can."""
    view = memoryview(data)
    writable = bytearray(view) if view.readonly else view  # torch warns of what may not be written
    return torch.frombuffer(writable, dtype=INTEGERS[width])


def part_of(data: bytes, dtype: torch.dtype, start: int, count: int) -> torch.Tensor:
    """Elements of some bytes, which it keeps alive, at their address; nothing may write to them."""
    address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
    memory = (ctypes.c_ubyte * len(data)).from_address(address or 0)
    memory.owner = data  # type: ignore[attr-defined]  # it lives as long as the tensor
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=start)


def chunks(tensor: torch.Tensor, size: int = CHUNK) -> Pieces:
    """A tensor in pieces of at most so many elements, which have its memory."""
    pieces: Pieces = tensor.split(size)  # type: ignore[no-untyped-call]
    return pieces
