"""Blocks: how each plane of one is stored, chosen by a sample, and how it is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mlstate.digests import Bytes
from mlstate.encoded.elements import integers, part_of
from mlstate.encoded.sparse import Entries, SparseEncoder, sparse_entries
from mlstate.encoded.transform import Plane, Transform
from mlstate.encoded.zstd import Compressors, decompressed
from mlstate.format.encoded_object import BLOCK, SPARSE_SHARE, Block, Kind, Part

__all__ = ["BlockDecoder", "BlockEncoder"]

_RUNS, _RUN = 8, 256
"""A sample is so many runs of so many elements, spread over the block."""
_INCOMPRESSIBLE = 7.85
"""The bits of entropy from which on a plane is stored raw."""
_REPEATING = 0.5
"""The bits of entropy below which repeated bytes are searched for: there are long runs."""
_LINE = 64
"""The bytes of a line of the processor's cache, at which planes in memory begin."""


@dataclass(frozen=True, slots=True)
class _Sampled:
    """What a sample says of a plane.

    Attributes:
        entropy: Of a byte, in bits.
        zeros: The share of bytes that are 0.
    """

    entropy: float
    zeros: float


_Layout = tuple[list[Plane], list[int]]
"""Planes in the memory of a thread, and where each of them begins in it."""


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
        self._sparse = SparseEncoder(BLOCK // width, self._compressors)
        self._memory = bytearray(BLOCK + _LINE * width)
        self._layouts: dict[tuple[int, frozenset[int]], _Layout] = {}
        self._offsets = 256 * torch.arange(width, dtype=torch.int32, device="cpu")

    def encode(self, data: Bytes, base: Bytes | None) -> tuple[list[Part], list[bytes]]:
        """The planes of a block, the lowest first, and the bytes of each of them."""
        parts: list[Part] = []
        stored: list[bytes] = []
        with torch.inference_mode():
            values = integers(data, self._width)
            bases = None if base is None else integers(base, self._width)
            sampled = self._sampled(values, bases)
            pairs = self._pairs(sampled)
            planes, starts = self._layout(len(values), pairs)
            self._transform.split(values, bases, planes)
            for plane, start in zip(planes, starts, strict=True):
                end = start + plane.data.nbytes
                if plane.index in pairs:
                    stored.append(bytes(memoryview(self._memory)[start:end]))
                    parts += [Part(Kind.PAIR, end - start), Part(Kind.PAIR, 0)]
                else:
                    may_be_sparse = base is not None and plane.index >= self._width - 2
                    kind, content = self._stored(
                        plane.data, start, sampled[plane.index], may_be_sparse
                    )
                    stored.append(content)
                    parts.append(Part(kind, len(content)))
        return parts, stored

    def entropy(self, data: Bytes, base: Bytes | None) -> float:
        """The bits of entropy of an element, all planes together, estimated from a sample."""
        with torch.inference_mode():
            bases = None if base is None else integers(base, self._width)
            return sum(plane.entropy for plane in self._sampled(integers(data, self._width), bases))

    def _sampled(self, values: torch.Tensor, base: torch.Tensor | None) -> list[_Sampled]:
        """What a sample says of each plane."""
        sample = self._transform.transformed(
            _sample(values), None if base is None else _sample(base)
        )
        digits = sample.view(torch.uint8).view(-1, self._width) + self._offsets
        counts = torch.bincount(digits.view(-1), minlength=256 * self._width).float()
        counts = counts.view(self._width, 256)
        weighted = torch.special.xlogy(counts, counts).sum(dim=1).tolist()
        kinds = counts.count_nonzero(dim=1).tolist()
        return [
            _Sampled(_entropy(len(sample), *plane), zeros / len(sample))
            for zeros, *plane in zip(counts[:, 0].tolist(), weighted, kinds, strict=True)
        ]

    def _pairs(self, sampled: Sequence[_Sampled]) -> frozenset[int]:
        """The planes that are stored as a pair with the next one: both are incompressible."""
        if self._repeats:
            return frozenset()
        return frozenset(
            plane
            for plane in range(0, self._width - 3, 2)
            if min(one.entropy for one in sampled[plane : plane + 2]) > _INCOMPRESSIBLE
        )

    def _layout(self, elements: int, pairs: frozenset[int]) -> _Layout:
        """The planes of a block; the last layout is kept, for most blocks have it, too."""
        if (elements, pairs) not in self._layouts:
            self._layouts = {(elements, pairs): self._laid_out(elements, pairs)}
        return self._layouts[elements, pairs]

    def _laid_out(self, elements: int, pairs: frozenset[int]) -> _Layout:
        planes, starts, start = [], [], 0
        for index in range(self._width):
            if index - 1 in pairs and index % 2:
                continue
            dtype = torch.uint16 if index in pairs else torch.uint8
            data = torch.frombuffer(self._memory, dtype=dtype, count=elements, offset=start)
            planes.append(Plane(index, data))
            starts.append(start)
            start += -(-data.nbytes // _LINE) * _LINE
        return planes, starts

    def _stored(
        self, data: torch.Tensor, start: int, sampled: _Sampled, may_be_sparse: bool
    ) -> tuple[Kind, bytes]:
        """How a plane in memory is stored, and what is."""
        end = start + len(data)
        plane = memoryview(self._memory)[start:end]
        if sampled.entropy == 0 and self._memory.startswith(
            bytes(plane[:1]) * len(plane), start, end
        ):
            return Kind.CONSTANT, bytes(plane[:1])
        if may_be_sparse and sampled.zeros > 1 - 1 / SPARSE_SHARE:
            listed = self._sparse.frame(data)
            if listed is not None and len(listed) < len(plane):
                return Kind.SPARSE, listed
        if self._repeats or sampled.entropy <= _INCOMPRESSIBLE:
            search = self._repeats or sampled.entropy < _REPEATING
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
            FormatError: A plane is not one zstd frame of its size, or lists what it cannot have.
        """
        planes: list[Plane] = []
        sparse: list[tuple[int, Iterator[Entries]]] = []
        constants: dict[int, int] = {}
        start, view = 0, memoryview(data)
        for index, part in enumerate(block.parts):
            end = start + part.length
            if part.kind is Kind.CONSTANT:
                constants[index] = data[start]
            elif part.kind is Kind.ZSTD:
                plain = decompressed(view[start:end], block.elements)
                planes.append(Plane(index, part_of(plain, torch.uint8, 0, block.elements)))
            elif part.kind is Kind.SPARSE:
                sparse.append((index, sparse_entries(view[start:end], block.elements)))
            elif part.length:  # of the second of a pair, all is in the first
                dtype = torch.uint16 if part.kind is Kind.PAIR else torch.uint8
                planes.append(Plane(index, part_of(data, dtype, start, block.elements)))
            start = end
        with torch.inference_mode():
            bases = None if base is None else integers(base, self._width)
            values = integers(out, self._width)
            self._transform.join(planes, constants, bases, values)
            for index, listed in sparse:
                for entries in listed:
                    self._transform.add(index, entries.places, entries.values, values)


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
