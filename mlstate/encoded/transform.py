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
from functools import cached_property, lru_cache

import torch

from mlstate.encoded.elements import CHUNK, INTEGERS, Pieces, chunks
from mlstate.format.encoded_object import BLOCK

__all__ = ["Plane", "Transform"]


@dataclass(frozen=True)
class Plane:
    """A byte of every element of a block, or two of them.

    Attributes:
        index: Which byte, the lowest is 0; of two, the lower.
        data: uint8, or uint16 for two bytes.
    """

    index: int
    data: torch.Tensor

    @cached_property
    def pieces(self) -> Pieces:
        """The bytes, some at a time."""
        return chunks(self.data)


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
        self._wide = chunks(torch.empty(BLOCK // width, dtype=integer, device="cpu"))
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
        parts = [(plane.index, plane.pieces) for plane in planes]
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
        pieces, terms = chunks(out), list(planes)
        lowest = None
        if terms and terms[0].index == 0:
            lowest = chunks(self._signed(terms.pop(0), base))
        if base is None:
            self._begin(pieces, lowest)
        else:
            torch._foreach_copy_(pieces, chunks(base) if lowest is None else lowest)
            if lowest is not None:
                torch._foreach_add_(pieces, chunks(base))
        constant = self._constant(constants, base is not None)
        if constant:
            torch._foreach_add_(pieces, constant)
        for plane in terms:
            wide = self._widened(chunks(self._signed(plane, base)))
            torch._foreach_add_(pieces, wide, alpha=self._factor(plane.index, base is not None))

    def add(
        self, index: int, places: torch.Tensor, digits: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Add to some of a block's differences what a plane has in their places."""
        signed = self._signed(Plane(index, digits), out)
        terms = signed.to(out.dtype).mul_(self._factor(index, True))
        out.index_add_(0, places, terms)

    def _lower(self, values: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
        """What all bytes but the highest are taken from; without a base, and of single bytes, all.

        It is valid until the next call.
        """
        found = _begun(self._second, len(values))
        if base is not None:
            return torch.sub(values, base, out=found)
        if self.width == 1:
            return found.copy_(values)
        signs = _begun(self._first, len(values))
        torch.lt(values, self._numbers[0], out=signs)  # 1 or 0, in the place of the lowest bit
        return torch.add(signs, values, alpha=2, out=found)

    def _begin(self, pieces: Pieces, lowest: Pieces | None) -> None:
        """Give elements, which are no differences, the part that is in the lowest plane."""
        if lowest is None:
            torch._foreach_zero_(pieces)
        elif self.width == 1:
            torch._foreach_copy_(pieces, lowest)
        else:
            wide = self._widened(lowest)
            for piece, bits in zip(pieces, wide, strict=True):
                torch.bitwise_right_shift(bits, self._numbers[1], out=piece)
            torch._foreach_add_(pieces, wide, alpha=-(1 << (self._bits - 1)))  # the sign

    def _widened(self, parts: Pieces) -> Pieces:
        """Bytes as elements of the full width, in memory that is valid until the next call."""
        wide = self._wide[: len(parts)]
        if len(parts[-1]) < len(wide[-1]):
            wide = (*wide[:-1], wide[-1][: len(parts[-1])])
        torch._foreach_copy_(wide, parts)
        return wide

    def _signed(self, plane: Plane, base: object) -> torch.Tensor:
        """The bytes of a plane: those below the highest of a difference have a sign."""
        signed = base is not None and plane.index == self.width - 2
        return plane.data.view(torch.int8) if signed else plane.data

    def _factor(self, index: int, difference: bool) -> int:
        """What a plane's bytes are multiplied with, if it is not the lowest of a rotation."""
        return 1 << (8 * index if difference or self.width == 1 else 8 * index - 1)

    def _constant(self, constants: Mapping[int, int], difference: bool) -> int:
        """What planes that are the same byte everywhere add to each element."""
        total = 0
        for index, byte in constants.items():
            if index == 0 and not difference and self.width > 1:
                total += (byte >> 1) + ((byte & 1) << (self._bits - 1))
            else:
                negative = difference and index == self.width - 2 and byte > 127
                total += (byte - 256 if negative else byte) * self._factor(index, difference)
        return _wrapped(total, INTEGERS[self.width])


def _begun(memory: torch.Tensor, count: int) -> torch.Tensor:
    """The beginning of some memory; to take all of it is no call of torch's."""
    return memory if len(memory) == count else memory[:count]


def _number(value: int, dtype: torch.dtype) -> torch.Tensor:
    """A number, wrapped around, without a dimension: operations take it faster than an int."""
    return torch.tensor(_wrapped(value, dtype), dtype=dtype, device="cpu")


def _wrapped(value: int, dtype: torch.dtype) -> int:
    bits = 8 * dtype.itemsize
    wrapped = value % (1 << bits)
    return wrapped - (1 << bits) if dtype.is_signed and wrapped >> (bits - 1) else wrapped


@lru_cache
def _numbers(dtype: torch.dtype) -> list[torch.Tensor]:
    """Every number of bits by which such an element can be shifted."""
    return [_number(shift, dtype) for shift in range(8 * dtype.itemsize)]
