"""The transform: numbers become planes of bytes that compress well, and planes numbers again.

With a base, it is the difference to the base's number in the same place, which wraps around. A bias
is added before the highest byte is taken: small differences of either sign then have the same one,
and the byte below it is one with a sign. Without a base, a number is rotated left by one bit, so
that the exponent of a float fills a byte and its sign is the lowest bit. Single bytes are left as
they are.

Operations are in place where that can be, and in few elements at a time, which stay in the
processor's cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from mlstate.encoded.elements import CHUNK, INTEGERS, chunks

__all__ = ["Plane", "Transform"]


@dataclass(frozen=True, slots=True)
class Plane:
    """A byte of every element of a block, or two of them.

    Attributes:
        index: Which byte, the lowest is 0; of two, the lower.
        data: uint8, or uint16 for two bytes.
    """

    index: int
    data: torch.Tensor


class Transform:
    """The transform of elements of a width, with memory for one thread's operations.

    Its calls belong into ``torch.inference_mode()``, in which operations take less time.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._bits = 8 * width
        integer = INTEGERS[width]
        self._first = torch.empty(CHUNK, dtype=integer, device="cpu")
        self._second = torch.empty(CHUNK, dtype=integer, device="cpu")
        self._numbers = _numbers(integer)
        self._biases = [  # by how many bytes the number is shifted
            _number(1 << (self._bits - 9 - 8 * shifted), integer) for shifted in range(width - 1)
        ]

    def transformed(self, values: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
        """At most `CHUNK` elements as their bytes go into planes; valid until the next call."""
        found = self._lower(values, base)
        if base is not None and self.width > 1:
            found.add_(self._biases[0]).bitwise_xor_(self._biases[0])
        return found

    def split(
        self, values: torch.Tensor, base: torch.Tensor | None, planes: Sequence[Plane]
    ) -> None:
        """Fill planes, which are listed from the lowest on, from the elements of a block."""
        parts = [(plane.index, chunks(plane.data)) for plane in planes]
        bases = None if base is None else chunks(base)
        biased = self.width - 1 if bases is not None and self.width > 1 else None
        for number, piece in enumerate(chunks(values)):
            found, shifted = self._lower(piece, None if bases is None else bases[number]), 0
            for index, part in parts:
                if index == biased:
                    found.add_(self._biases[shifted])
                if index > shifted:
                    found.bitwise_right_shift_(self._numbers[8 * (index - shifted)])
                    shifted = index
                part[number].copy_(found)

    def join(
        self,
        planes: Sequence[Plane],
        constants: Mapping[int, int],
        base: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """Make a block's elements of its planes.

        Args:
            planes: The planes, the lowest first, but for those that are...
            constants: ...the same byte everywhere: index -> that byte.
            base: The base's elements, or None.
            out: Where the elements go.
        """
        bases = None if base is None else chunks(base)
        constant = self._constant(constants, bases is not None)
        lowest = None
        if planes and planes[0].index == 0:
            lowest = chunks(self._signed(planes[0], bases))
        terms = [
            (self._factor(plane.index, bases is not None), chunks(self._signed(plane, bases)))
            for plane in (planes if lowest is None else planes[1:])
        ]
        for number, piece in enumerate(chunks(out)):
            wide = self._first[: len(piece)]
            low = None if lowest is None else lowest[number]
            if bases is None:
                self._begin(piece, low, wide)
            elif low is None:
                piece.copy_(bases[number])
            else:
                piece.copy_(low).add_(bases[number])
            if constant is not None:
                piece.add_(constant)
            for factor, part in terms:
                piece.add_(wide.copy_(part[number]), alpha=factor)

    def _lower(self, values: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
        """What all bytes but the highest are taken from; without a base, and of single bytes, all.

        It is valid until the next call.
        """
        found = self._second[: len(values)]
        if base is not None:
            return torch.sub(values, base, out=found)
        if self.width == 1:
            return found.copy_(values)
        signs = self._first[: len(values)]
        torch.lt(values, self._numbers[0], out=signs)  # 1 or 0, in the place of the lowest bit
        return torch.add(signs, values, alpha=2, out=found)

    def _begin(self, out: torch.Tensor, low: torch.Tensor | None, wide: torch.Tensor) -> None:
        """Give elements, which are no differences, the part that is in the lowest plane."""
        if low is None:
            out.zero_()
        elif self.width == 1:
            out.copy_(low)
        else:
            torch.bitwise_right_shift(wide.copy_(low), self._numbers[1], out=out)
            out.add_(wide, alpha=-(1 << (self._bits - 1)))  # the lowest bit is the sign

    def _signed(self, plane: Plane, bases: object) -> torch.Tensor:
        """The bytes of a plane: those below the highest of a difference have a sign."""
        signed = bases is not None and plane.index == self.width - 2
        return plane.data.view(torch.int8) if signed else plane.data

    def _factor(self, index: int, difference: bool) -> int:
        """What a plane's bytes are multiplied with, if it is not the lowest of a rotation."""
        return 1 << (8 * index if difference or self.width == 1 else 8 * index - 1)

    def _constant(self, constants: Mapping[int, int], difference: bool) -> torch.Tensor | None:
        """What planes that are the same byte everywhere add to each element; None for nothing."""
        total = 0
        for index, byte in constants.items():
            if index == 0 and not difference and self.width > 1:
                total += (byte >> 1) + ((byte & 1) << (self._bits - 1))
            else:
                negative = difference and index == self.width - 2 and byte > 127
                total += (byte - 256 if negative else byte) * self._factor(index, difference)
        return _number(total, INTEGERS[self.width]) if total else None


def _number(value: int, dtype: torch.dtype) -> torch.Tensor:
    """A number, wrapped around, without a dimension: operations take it faster than an int."""
    bits = 8 * dtype.itemsize
    wrapped = value % (1 << bits)
    if dtype.is_signed and wrapped >> (bits - 1):
        wrapped -= 1 << bits
    return torch.tensor(wrapped, dtype=dtype, device="cpu")


@lru_cache
def _numbers(dtype: torch.dtype) -> list[torch.Tensor]:
    """Every number of bits by which such an element can be shifted."""
    return [_number(shift, dtype) for shift in range(8 * dtype.itemsize)]
