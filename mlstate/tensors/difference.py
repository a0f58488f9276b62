"""Differences between two tensors, in numbers: block by block, in double precision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch

from mlstate.digests import Bytes
from mlstate.format.tensor_object import BITS, TensorSpec
from mlstate.tensors.memory import torch_dtype

__all__ = ["Difference", "compare_tensors"]

_BLOCK = 1 << 18
"""Elements at a time: in double precision they fit into a cache of the processor."""
_LONG = ("I64", "U64")
_SAFE = 1e150
"""Squares of what is between this and its inverse are normal numbers."""


@dataclass(frozen=True)
class Difference:
    """How much a tensor differs from another of the same shape.

    0 and -0 are the same value, and all that is not a number is. `nonfinite` counts the differing
    elements that are infinite or not a number on either side; they are left out of `max_abs`, the
    largest change of an element, and `relative`, the Euclidean norm of the change over that of the
    first: None if the first is all zeros and the second is not.
    """

    differing: int  # how many elements have another value
    nonfinite: int
    max_abs: float
    relative: float | None


def compare_tensors(
    first: TensorSpec,
    first_pieces: Iterable[Bytes],
    second: TensorSpec,
    second_pieces: Iterable[Bytes],
) -> Difference:
    """Compare the values of two tensors of one shape; elements of 4 bits with their like alone.

    Values go to double precision; of 64-bit integers the change is computed before it is rounded. A
    few blocks are in memory at a time, however large the tensors are. The bytes of each tensor come
    in pieces of any size, all of which are taken. A `FormatError` says that this torch lacks an
    element type.
    """
    count = _Count()
    both_long = first.dtype in _LONG and second.dtype in _LONG
    pairs = zip(_blocks(first, first_pieces), _blocks(second, second_pieces), strict=True)
    for one, other in pairs:
        a, b = _numbers(one, first.dtype), _numbers(other, second.dtype)
        change = _long_change(one, first.dtype, other, second.dtype) if both_long else b - a
        count.add(a, b, change)
    return count.difference()


class _Count:
    """The differences that were found so far."""

    def __init__(self) -> None:
        self.differing = 0
        self.nonfinite = 0
        self.max_abs = 0.0
        self.norm = 0.0
        self.change = 0.0

    def add(self, a: torch.Tensor, b: torch.Tensor, delta: torch.Tensor) -> None:
        """Take a block into account."""
        if delta.isfinite().all():
            self.differing += int(delta.count_nonzero())
        else:
            finite = a.isfinite() & b.isfinite()
            unequal = ~((a == b) | (a.isnan() & b.isnan()))
            self.differing += int(unequal.count_nonzero())
            self.nonfinite += int((unequal & ~finite).count_nonzero())
            a, delta = a[finite], delta[finite]
        if delta.numel():
            largest = float(delta.abs().max())
            self.max_abs = max(self.max_abs, largest)
            self.change = math.hypot(self.change, _norm(delta, largest))
            self.norm = math.hypot(self.norm, _norm(a))

    def difference(self) -> Difference:
        """The differences of all blocks."""
        relative = 0.0 if self.change == 0 else None
        if self.norm > 0:
            relative = self.change / self.norm
        return Difference(self.differing, self.nonfinite, self.max_abs, relative)


def _norm(values: torch.Tensor, largest: float | None = None) -> float:
    """The Euclidean norm, without overflow on the way."""
    plain = float(torch.linalg.vector_norm(values))
    if plain == 0 or not 1 / _SAFE < plain < _SAFE:
        largest = float(values.abs().max()) if largest is None else largest
        if 0 < largest < math.inf:
            return largest * float(torch.linalg.vector_norm(values / largest))
    return plain


def _blocks(spec: TensorSpec, pieces: Iterable[Bytes]) -> Iterator[bytearray]:
    """The same bytes in blocks of as many elements each."""
    size = _BLOCK * BITS[spec.dtype] // 8
    block = bytearray()
    for piece in pieces:
        left = memoryview(piece)
        while left:
            taken = left[: size - len(block)]
            block += taken
            left = left[len(taken) :]
            if len(block) == size:
                yield block
                block = bytearray()
    if block:
        yield block


def _numbers(block: bytearray, dtype: str) -> torch.Tensor:
    """The values, exactly, but for 64-bit integers, which are rounded."""
    raw = torch.frombuffer(block, dtype=torch.uint8)
    if dtype == "BOOL":
        return raw.to(torch.float64)
    if dtype.startswith("F") and BITS[dtype] <= 8:
        return _table(dtype)[raw.to(torch.int64)].reshape(-1)
    values = raw.view(torch_dtype(TensorSpec(dtype, ())))
    return values.to(torch.complex128 if dtype == "C64" else torch.float64)


@cache
def _table(dtype: str) -> torch.Tensor:
    """The value of each byte, for types with which no torch can compute."""
    every = torch.arange(256, dtype=torch.uint8, device="cpu")
    if dtype == "F4":  # sign, two bits of exponent, one of mantissa; two elements in a byte
        sizes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
        nibbles = torch.tensor(sizes + [-size for size in sizes], dtype=torch.float64, device="cpu")
        return nibbles[torch.stack([every & 15, every >> 4], dim=1).to(torch.int64)]
    if dtype == "F8_E8M0":  # an exponent alone
        powers = torch.ldexp(
            torch.ones((), dtype=torch.float64, device="cpu"), every.double() - 127
        )
        powers[255] = math.nan
        return powers
    return every.view(torch_dtype(TensorSpec(dtype, ()))).to(torch.float64)


def _long_change(one: bytearray, first: str, other: bytearray, second: str) -> torch.Tensor:
    """The change of 64-bit integers, rounded once: by halves, each of which is exact."""
    high, low = _halves(one, first)
    other_high, other_low = _halves(other, second)
    return (other_high - high) * 2.0**32 + (other_low - low)


def _halves(block: bytearray, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    whole = torch.frombuffer(block, dtype=torch.int64)
    high = whole >> 32  # with its sign
    if dtype == "U64":
        high &= 0xFFFFFFFF
    return high.to(torch.float64), (whole & 0xFFFFFFFF).to(torch.float64)
