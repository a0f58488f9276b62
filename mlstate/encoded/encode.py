"""Encoding: a tensor's data becomes an encoded object, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlstate.digests import Bytes, Digest
from mlstate.encoded.blocks import BlockEncoder
from mlstate.encoded.tools import Tools
from mlstate.errors import FormatError
from mlstate.format import tensor_object
from mlstate.format.encoded_object import (
    BLOCK,
    HEAD_SIZE,
    Head,
    Part,
    element_width,
    encode_index,
    index_size,
)
from mlstate.format.tensor_object import TensorSpec
from mlstate.parallel import THREADS, for_each

__all__ = ["Base", "encode", "estimated_size", "saves_enough"]

_SHARE = 0.9
"""The most of the plain object's size that an encoded one is worth keeping at."""
_AHEAD = 2
"""The blocks that are encoded together, for each thread."""
_SAMPLES = 16
"""The blocks that an estimate looks at."""
_WHOLE_NUMBERS = frozenset("BIU")  # how the names of their types begin

_Encoded = tuple[list[Part], list[bytes]]
"""The planes of a block, and their bytes."""


@dataclass(frozen=True, slots=True)
class Base:
    """What a tensor is encoded as the difference to.

    Attributes:
        digest: The tensor object of the base, of the same type and shape.
        data: Its data, verified.
        depth: The depth of its own encoded form; 0 if it is plain.
    """

    digest: Digest
    data: Bytes
    depth: int = 0


def encode(
    data: Bytes, spec: TensorSpec, base: Base | None = None, *, threads: int = THREADS
) -> Iterator[bytes]:
    """The encoded form of a tensor object, piece by piece.

    Only a few blocks for each thread are in memory at a time. It is not known before the end how
    large it gets: see `estimated_size` and `saves_enough`. The bytes are not canonical: another
    version of zstd may give others.

    Args:
        data: The tensor's data: its elements in C order, little-endian.
        spec: Its type and shape.
        base: What it is the difference to, or None.
        threads: How many blocks are encoded at once.

    Raises:
        FormatError: The data or the base do not have the size that the type and shape give, or the
            base is at the end of a chain already.
    """
    depth = 0 if base is None else base.depth + 1
    head = Head.of(spec, None if base is None else base.digest, depth)
    for what in (data, *(() if base is None else (base.data,))):
        _check_size(what, spec)
    return _pieces(head, data, spec, base, threads)


def estimated_size(data: Bytes, spec: TensorSpec, base: Base | None = None) -> int:
    """About how many bytes the encoded form takes, from samples, in far less time.

    Whole numbers that repeat take less.

    Raises:
        FormatError: As `encode`.
    """
    for what in (data, *(() if base is None else (base.data,))):
        _check_size(what, spec)
    blocks = _Blocks(data, None if base is None else base.data, spec)
    if not blocks.count:
        return HEAD_SIZE
    encoder = blocks.encoder()
    chosen = range(0, blocks.count, -(-blocks.count // _SAMPLES))
    looked_at = bits = 0.0
    for number in chosen:
        data_of_block, base_of_block = blocks.at(number)
        looked_at += len(data_of_block)
        bits += encoder.entropy(data_of_block, base_of_block) * len(data_of_block)
    elements = spec.nbytes // element_width(spec)
    return HEAD_SIZE + round(bits / looked_at * elements / 8) + index_size(spec)


def saves_enough(size: int, spec: TensorSpec) -> bool:
    """Whether an encoded form of this size, in bytes, is worth keeping instead of the object."""
    return size <= _SHARE * tensor_object.object_size(spec)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The data of a tensor and of its base, by blocks."""

    data: Bytes
    base: Bytes | None
    spec: TensorSpec

    @property
    def count(self) -> int:
        return -(-self.spec.nbytes // BLOCK)

    def at(self, number: int) -> tuple[memoryview, memoryview | None]:
        """The data of a block, and the base's."""
        place = slice(number * BLOCK, (number + 1) * BLOCK)
        base = None if self.base is None else memoryview(self.base)[place]
        return memoryview(self.data)[place], base

    def encoder(self) -> BlockEncoder:
        """What encodes them, for one thread."""
        repeats = self.spec.dtype[0] in _WHOLE_NUMBERS and self.spec.dtype != "BF16"
        return BlockEncoder(element_width(self.spec), repeats=repeats)


def _pieces(
    head: Head, data: Bytes, spec: TensorSpec, base: Base | None, threads: int
) -> Iterator[bytes]:
    blocks = _Blocks(data, None if base is None else base.data, spec)
    tools = Tools(blocks.encoder)
    index: list[list[Part]] = []
    yield head.encode()
    for first in range(0, blocks.count, threads * _AHEAD):
        batch = range(first, min(first + threads * _AHEAD, blocks.count))
        for parts, stored in _together(blocks, tools, batch, threads):
            index.append(parts)
            yield from stored
    yield encode_index(index)


def _together(
    blocks: _Blocks, tools: Tools[BlockEncoder], batch: range, threads: int
) -> list[_Encoded]:
    """Some blocks, encoded at the same time, in order."""
    found: dict[int, _Encoded] = {}

    def encode_block(number: int) -> None:
        with tools.borrowed() as encoder:
            found[number] = encoder.encode(*blocks.at(number))

    for_each(encode_block, batch, min(threads, len(batch)))
    return [found[number] for number in batch]


def _check_size(data: Bytes, spec: TensorSpec) -> None:
    if len(data) != spec.nbytes:
        raise FormatError(
            "a tensor's data has the wrong length", expected=spec.nbytes, found=len(data)
        )
