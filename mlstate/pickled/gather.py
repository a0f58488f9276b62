"""The bytes of a tensor of a checkpoint: contiguous, little-endian, and a few at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Literal

from mlstate.digests import Bytes
from mlstate.pickled.checkpoint import Checkpoint
from mlstate.pickled.source import Source
from mlstate.pickled.tensor import CheckpointTensor

__all__ = ["extent", "is_contiguous", "storage_pieces", "tensor_pieces"]

_PIECE = 1 << 20
_BLOCK = 8 << 20
"""So many bytes of a tensor that lies in another order are put together at a time..."""
_WINDOW = 16 << 20
"""...from so many bytes of its storage at a time."""
_FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}

_Dimension = tuple[int, int]
"""Size and stride, in elements."""


def tensor_pieces(
    checkpoint: Checkpoint, source: Source, tensor: CheckpointTensor
) -> Iterator[Bytes]:
    """Read a tensor, piece by piece; the storage is compared with its CRC-32 before.

    At most 50 MiB are in memory at a time, whatever the size of the tensor.

    Raises:
        FormatError: The storage is damaged, or the file became shorter.
    """
    if not tensor.nbytes:
        return
    checkpoint.check(source, tensor.storage)
    yield from storage_pieces(source, checkpoint.start(tensor.storage), tensor)


def storage_pieces(source: Source, start: int, tensor: CheckpointTensor) -> Iterator[Bytes]:
    """Read a tensor as `tensor_pieces` does, from a storage that begins at ``start`` in a source.

    The source need not hold more of the storage than `extent` says: so the start may be negative.
    """
    if not tensor.nbytes:
        return
    dimensions, offset, itemsize = _merged(tensor)
    pieces = _in_order(source, start + offset * itemsize, tensor.nbytes)
    if dimensions not in ([], [(tensor.nbytes // itemsize, 1)]):
        pieces = _gathered(source, start, dimensions, offset, itemsize)
    signs, width = _signs(tensor), _width(tensor) if tensor.swapped else 1
    for piece in pieces:
        plain = _swapped(piece, width) if width > 1 else piece
        yield _flipped(plain, signs) if signs else plain


def extent(tensor: CheckpointTensor) -> tuple[int, int]:
    """The first byte of its storage that a tensor needs, and the one after the last."""
    if not tensor.nbytes:
        return 0, 0
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((size - 1) * step for size, step in steps)
    return tensor.offset * tensor.itemsize, (last + 1) * tensor.itemsize


def is_contiguous(tensor: CheckpointTensor) -> bool:
    """Whether the bytes lie in the file as they are stored."""
    dimensions, _, itemsize = _merged(tensor)
    plain = not _signs(tensor) and not tensor.swapped
    return plain and dimensions in ([], [(tensor.nbytes // itemsize, 1)])


def _in_order(source: Source, start: int, size: int) -> Iterator[Bytes]:
    for at in range(0, size, _PIECE):
        yield source.read(start + at, min(_PIECE, size - at))


def _merged(tensor: CheckpointTensor) -> tuple[list[_Dimension], int, int]:
    """The fewest dimensions that mean the same, the offset, and the size of an element."""
    itemsize, factor = tensor.itemsize, 1
    steps = list(zip(tensor.shape, tensor.strides, strict=True))
    if itemsize == 16:  # two numbers of 8 bytes each
        itemsize, factor = 8, 2
        steps = [*((size, 2 * stride) for size, stride in steps), (2, 1)]
    merged: list[_Dimension] = []
    for size, stride in steps:
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return merged, tensor.offset * factor, itemsize


def _gathered(
    source: Source, start: int, dimensions: list[_Dimension], offset: int, itemsize: int
) -> Iterator[Bytes]:
    for block, first in _blocks(dimensions, offset, itemsize):
        count = math.prod(size for size, _ in block)
        target = bytearray(count * itemsize)
        last = first + sum((size - 1) * stride for size, stride in block)
        step = _WINDOW // itemsize
        for window in range(first, last + 1, step):
            elements = min(step, last + 1 - window)
            data = source.read(start + window * itemsize, elements * itemsize)
            _fill(target, data, block, first - window, itemsize)
            del data  # before the next window is read
        yield target


def _blocks(
    dimensions: list[_Dimension], offset: int, itemsize: int
) -> Iterator[tuple[list[_Dimension], int]]:
    """Parts of a tensor in its order, none larger than a block: dimensions and offset of each."""
    row = math.prod(size for size, _ in dimensions[1:]) * itemsize
    size, stride = dimensions[0]
    if row > _BLOCK:
        for index in range(size):
            yield from _blocks(dimensions[1:], offset + index * stride, itemsize)
        return
    rows = max(1, _BLOCK // row)
    for index in range(0, size, rows):
        part = (min(rows, size - index), stride)
        yield [part, *dimensions[1:]], offset + index * stride


def _fill(
    target: bytearray, data: bytes, block: list[_Dimension], offset: int, itemsize: int
) -> None:
    """Copy what is in a window: the longest dimension at a time, which needs the fewest steps."""
    to = memoryview(target).cast(_FORMATS[itemsize])
    have = memoryview(data).cast(_FORMATS[itemsize])
    strides = [math.prod(size for size, _ in block[at + 1 :]) for at in range(len(block))]
    longest = max(range(len(block)), key=lambda at: block[at][0])
    count, step = block[longest]
    to_step = strides[longest]
    others = [at for at in range(len(block)) if at != longest]
    for indices in product(*(range(block[at][0]) for at in others)):
        at = offset + sum(i * block[d][1] for i, d in zip(indices, others, strict=True))
        to_at = sum(i * strides[d] for i, d in zip(indices, others, strict=True))
        if not step:
            if 0 <= at < len(have):
                value = memoryview(have[at : at + 1].tobytes() * count).cast(_FORMATS[itemsize])
                to[to_at : to_at + (count - 1) * to_step + 1 : to_step] = value
            continue
        first = max(0, -(at // step))  # the first and the last that are in the window
        last = min(count - 1, (len(have) - 1 - at) // step)
        if first <= last:
            found = have[at + first * step : at + last * step + 1 : step]
            to[to_at + first * to_step : to_at + last * to_step + 1 : to_step] = found


def _signs(tensor: CheckpointTensor) -> bytes:
    """The bits of an element that are to be turned: signs of real and imaginary parts."""
    if not tensor.conj and not tensor.neg:
        return b""
    width = _width(tensor)
    sign = bytes(width - 1) + b"\x80"
    if width == tensor.itemsize:
        return sign
    parts = [
        sign if tensor.neg else bytes(width),
        sign if tensor.neg != tensor.conj else bytes(width),
    ]
    return b"".join(parts) if any(map(any, parts)) else b""


def _flipped(piece: Bytes, signs: bytes) -> Bytes:
    mask = signs * (len(piece) // len(signs))
    number = int.from_bytes(piece, "little") ^ int.from_bytes(mask, "little")
    return number.to_bytes(len(piece), "little")


def _width(tensor: CheckpointTensor) -> int:
    """The bytes of a number: of a real or an imaginary part, if the elements are complex."""
    return tensor.itemsize // (2 if tensor.dtype in ("complex64", "complex128") else 1)


def _swapped(piece: Bytes, width: int) -> Bytes:
    """The same numbers with their bytes in the other order."""
    swapped = bytearray(len(piece))
    for at in range(width):
        swapped[at::width] = piece[width - 1 - at :: width]
    return swapped
