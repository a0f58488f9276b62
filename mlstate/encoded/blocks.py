"""Blocks: how each plane of one is stored, chosen by a sample, and how it is read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mlstate.digests import Bytes
from mlstate.encoded.elements import integers, part_of
from mlstate.encoded.transform import Plane, Transform
from mlstate.encoded.zstd import Compressors, decompressed
from mlstate.format.encoded_object import BLOCK, Block, Kind, Part

__all__ = ["BlockDecoder", "BlockEncoder"]

_RUNS, _RUN = 8, 256
"""A sample is so many runs of so many elements, spread over the block."""
_INCOMPRESSIBLE = 7.85
"""The bits of entropy from which on a plane is stored raw."""
_REPEATING = 0.5
"""The bits of entropy below which repeated bytes are searched for: there are long runs."""


class BlockEncoder:
    """Encodes blocks of elements of a width, for one thread.

    Args:
        width: The bytes of an element.
        repeats: Whether these are whole numbers, which may be in order, or repeat: the entropy of
            single bytes says little of them, and repeated bytes are always searched for.
    """

    def __init__(self, width: int, *, repeats: bool) -> None:
        self._width = width
        self._repeats = repeats
        self._transform = Transform(width)
        self._compressors = Compressors()
        self._memory = bytearray(BLOCK)
        self._offsets = 256 * torch.arange(width, dtype=torch.int32, device="cpu")

    def encode(self, data: Bytes, base: Bytes | None) -> tuple[list[Part], list[bytes]]:
        """The planes of a block, the lowest first, and the bytes of each of them."""
        with torch.inference_mode():
            values = integers(data, self._width)
            bases = None if base is None else integers(base, self._width)
            entropies = self._entropies(values, bases)
            pairs = self._pairs(entropies)
            planes, places = self._laid_out(len(values), pairs)
            self._transform.split(values, bases, planes)
        parts: list[Part] = []
        stored: list[bytes] = []
        for plane, (start, end) in zip(planes, places, strict=True):
            if plane.index in pairs:
                stored.append(bytes(memoryview(self._memory)[start:end]))
                parts += [Part(Kind.PAIR, end - start), Part(Kind.PAIR, 0)]
            else:
                kind, content = self._stored(start, end, entropies[plane.index])
                stored.append(content)
                parts.append(Part(kind, len(content)))
        return parts, stored

    def entropy(self, data: Bytes, base: Bytes | None) -> float:
        """The bits of entropy of an element, all planes together, estimated from a sample."""
        with torch.inference_mode():
            bases = None if base is None else integers(base, self._width)
            return sum(self._entropies(integers(data, self._width), bases))

    def _entropies(self, values: torch.Tensor, base: torch.Tensor | None) -> list[float]:
        """The bits of entropy of a byte of each plane, in a sample."""
        sample = self._transform.transformed(
            _sample(values), None if base is None else _sample(base)
        )
        digits = sample.view(torch.uint8).view(-1, self._width) + self._offsets
        counts = torch.bincount(digits.view(-1), minlength=256 * self._width).float()
        counts = counts.view(self._width, 256)
        weighted = torch.special.xlogy(counts, counts).sum(dim=1).tolist()
        kinds = counts.count_nonzero(dim=1).tolist()
        return [_entropy(len(sample), *plane) for plane in zip(weighted, kinds, strict=True)]

    def _pairs(self, entropies: Sequence[float]) -> set[int]:
        """The planes that are stored as a pair with the next one: both are incompressible."""
        if self._repeats:
            return set()
        return {
            plane
            for plane in range(0, self._width - 3, 2)
            if min(entropies[plane : plane + 2]) > _INCOMPRESSIBLE
        }

    def _laid_out(
        self, elements: int, pairs: set[int]
    ) -> tuple[list[Plane], list[tuple[int, int]]]:
        """Planes in the memory of this thread, and where each of them is in it."""
        planes, places, start = [], [], 0
        for index in range(self._width):
            if index - 1 in pairs and index % 2:
                continue
            dtype, size = (torch.uint16, 2) if index in pairs else (torch.uint8, 1)
            data = torch.frombuffer(self._memory, dtype=dtype, count=elements, offset=start)
            planes.append(Plane(index, data))
            places.append((start, start + size * elements))
            start += size * elements
        return planes, places

    def _stored(self, start: int, end: int, entropy: float) -> tuple[Kind, bytes]:
        """What is stored of a plane in memory, and how."""
        plane = memoryview(self._memory)[start:end]
        if entropy == 0 and self._memory.startswith(bytes(plane[:1]) * len(plane), start, end):
            return Kind.CONSTANT, bytes(plane[:1])
        if self._repeats or entropy <= _INCOMPRESSIBLE:
            search = self._repeats or entropy < _REPEATING
            frame = self._compressors.compress(plane, search=search)
            if len(frame) < len(plane):
                return Kind.ZSTD, frame
        return Kind.RAW, bytes(plane)


class BlockDecoder:
    """Decodes blocks of elements of a width, for one thread."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._transform = Transform(width)

    def decode(self, data: bytes, block: Block, base: Bytes | None, out: memoryview) -> None:
        """Fill the memory of a block's elements from its bytes in the file.

        Raises:
            FormatError: A plane is not one zstd frame of its size.
        """
        planes: list[Plane] = []
        constants: dict[int, int] = {}
        start, view = 0, memoryview(data)
        for index, part in enumerate(block.parts):
            end = start + part.length
            if part.kind is Kind.CONSTANT:
                constants[index] = data[start]
            elif part.kind is Kind.ZSTD:
                plain = decompressed(view[start:end], block.elements)
                planes.append(Plane(index, part_of(plain, torch.uint8, 0, block.elements)))
            elif part.length:  # of the second of a pair, all is in the first
                dtype = torch.uint16 if part.kind is Kind.PAIR else torch.uint8
                planes.append(Plane(index, part_of(data, dtype, start, block.elements)))
            start = end
        with torch.inference_mode():
            bases = None if base is None else integers(base, self._width)
            self._transform.join(planes, constants, bases, integers(out, self._width))


def _sample(values: torch.Tensor) -> torch.Tensor:
    """Some of the elements of a block, or all of a small one."""
    if len(values) <= _RUNS * _RUN:
        return values
    runs = values[: len(values) // _RUNS * _RUNS].view(_RUNS, -1)
    return runs[:, :_RUN].reshape(-1)


def _entropy(count: int, weighted: float, kinds: int) -> float:
    """The bits of entropy of a byte in a plane, from those of a sample.

    Args:
        count: The bytes in the sample.
        weighted: The sum of n log n over all values, where n is how often a value occurs.
        kinds: How many values occur. A sample has too few, which is made up for (Miller, Madow).
    """
    if kinds == 1:
        return 0.0
    found = math.log(count) - weighted / count + (kinds - 1) / (2 * count)
    return min(8.0, max(0.0, found / math.log(2)))
