"""Encoded objects: the head and the index of a file that holds a tensor object in another form.

The head says how it was encoded and against which base, the index says where each part of each
block is. All lengths are checked here, against what the reference to the object says, before
anything is decoded; `mlstate.encoded` does that.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError
from mlstate.format.tensor_object import BITS, TensorSpec

__all__ = [
    "BLOCK",
    "DEPTH_LIMIT",
    "HEAD_SIZE",
    "SPARSE_SHARE",
    "Block",
    "Head",
    "Kind",
    "Method",
    "Part",
    "element_width",
    "encode_index",
    "index_size",
    "parse_index",
]

BLOCK = 1 << 20
"""The bytes of data that are encoded together; the last block of a tensor may have fewer."""
DEPTH_LIMIT = 8
"""The most bases that are decoded one after the other."""
HEAD_SIZE = 64
SPARSE_SHARE = 8
"""At most one of so many bytes of a sparse plane is listed."""

_MAGIC = b"\x89mlsenc\n"
_VERSION = 1
_HEAD = struct.Struct("<8sBBBB4xQ8x32s")
_NO_BASE = bytes(32)
_WIDTHS = (1, 2, 4, 8)
_LENGTH_OF_DATA = 63  # in bits: a tensor has fewer than 2^63 bytes
_LENGTH_BITS = 30
_ENTRY = 4


class Method(IntEnum):
    """How an object is encoded; 2 is reserved: planes grouped by the exponent of the base."""

    PLANES = 1
    SPARSE_PLANES = 3  # of differences, whose two highest planes may be sparse


class Kind(IntEnum):
    """What is stored of a plane of bytes, in a block."""

    RAW = 0
    CONSTANT = 1
    ZSTD = 2
    PAIR = 3
    SPARSE = 4  # in the index 3, too: no plane can be both


@dataclass(frozen=True, slots=True)
class Part:
    """A plane of a block: what is stored of it, in how many bytes."""

    kind: Kind
    length: int


@dataclass(frozen=True, slots=True)
class Block:
    """A block: where it begins in the file, how many elements it has, and its planes.

    The lowest plane comes first. Of two planes that are stored as a pair, the lower one has the
    bytes of both.
    """

    start: int
    elements: int
    parts: tuple[Part, ...]

    @property
    def length(self) -> int:
        """The bytes of all its parts."""
        return sum(part.length for part in self.parts)


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an encoded object.

    Attributes:
        width: The bytes of an element, 1, 2, 4 or 8; of a complex number, those of its real part.
        nbytes: The bytes of the tensor's data.
        base: The object that it is the difference to: of a tensor of the same type and shape.
        depth: How many bases have to be decoded one after the other; 0 without a base.
        method: How it is encoded.
    """

    width: int
    nbytes: int
    base: Digest | None
    depth: int
    method: Method

    @classmethod
    def of(cls, spec: TensorSpec, base: Digest | None = None, depth: int = 0) -> Head:
        """The head that writers give; a FormatError if base and depth do not fit each other."""
        _check_depth(base, depth)
        method = Method.PLANES if base is None else Method.SPARSE_PLANES
        return cls(element_width(spec), spec.nbytes, base, depth, method)

    def encode(self) -> bytes:
        """Its bytes."""
        base = _NO_BASE if self.base is None else bytes.fromhex(self.base)
        return _HEAD.pack(_MAGIC, _VERSION, self.method, self.width, self.depth, self.nbytes, base)

    @classmethod
    def parse(cls, data: Bytes, spec: TensorSpec) -> Head:
        """Read the head of the encoded form of a tensor; the inverse of `encode`.

        Raises:
            FormatError: It is the head of something else, or needs a newer mlstate.
        """
        head = cls.peek(data)
        if (head.width, head.nbytes) != (element_width(spec), spec.nbytes):
            raise FormatError(
                "an encoded object is not of the tensor that the state object names",
                expected=f"elements of {element_width(spec)} bytes, {spec.nbytes} bytes",
                found=f"elements of {head.width} bytes, {head.nbytes} bytes",
            )
        return head

    @classmethod
    def peek(cls, data: Bytes) -> Head:
        """Read the head of the encoded form of a tensor whose type and shape are not known.

        Raises:
            FormatError: As of `parse`.
        """
        if len(data) != HEAD_SIZE or bytes(data[: len(_MAGIC)]) != _MAGIC:
            raise FormatError(
                "this is not an encoded object",
                expected=f"{HEAD_SIZE} bytes that begin with {_MAGIC!r}",
                found=f"{len(data)} bytes: {bytes(data[:16])!r}",
            )
        _, version, method, width, depth, nbytes, base = _HEAD.unpack(data)
        methods = [Method.PLANES] if base == _NO_BASE else list(Method)
        if version != _VERSION or method not in methods:
            newer = version > _VERSION or method not in {0, *Method}
            raise FormatError(
                "an encoded object has a form that is not known",
                expected=f"version {_VERSION}, method {' or '.join(map(str, map(int, methods)))}",
                found=f"version {version}, method {method}",
                remedy="install a newer mlstate" if newer else None,
            )
        if width not in _WIDTHS or nbytes >> _LENGTH_OF_DATA:
            raise FormatError(
                "the head of an encoded object says what no tensor has",
                expected=f"elements of {', '.join(map(str, _WIDTHS))} bytes",
                found=f"elements of {width} bytes, {nbytes} bytes",
            )
        named = None if base == _NO_BASE else Digest(base.hex())
        _check_depth(named, depth)
        head = cls(width, nbytes, named, depth, Method(method))
        if head.encode() != data:
            raise FormatError(
                "the head of an encoded object has bytes that are not 0 where they must be"
            )
        return head

    def check_base(self, base: Head) -> None:
        """Refuse, by a FormatError, a base whose own encoded form has no lower depth.

        So each base is nearer to the end of its chain, and no chain is a circle.
        """
        if base.depth >= self.depth:
            raise FormatError(
                "an encoded object is built on one that is not of a lower depth",
                expected=f"less than {self.depth}",
                found=base.depth,
            )


def _check_depth(base: Digest | None, depth: int) -> None:
    if (base is None) != (depth == 0) or not 0 <= depth <= DEPTH_LIMIT:
        raise FormatError(
            "the depth of an encoded object does not fit its base",
            expected=f"0 without a base, 1 to {DEPTH_LIMIT} with one",
            found=f"{depth} {'without' if base is None else 'with'} a base",
        )


def element_width(spec: TensorSpec) -> int:
    """The bytes of what is taken for an element: two 4-bit elements, half a complex number."""
    return 4 if spec.dtype == "C64" else max(1, BITS[spec.dtype] // 8)


def index_size(spec: TensorSpec) -> int:
    """The bytes of the index of a tensor, which are the last ones of the file."""
    return _blocks(spec.nbytes) * element_width(spec) * _ENTRY


def encode_index(blocks: Sequence[Sequence[Part]]) -> bytes:
    """The index of blocks with these planes."""
    entries = [
        min(part.kind, Kind.PAIR) << _LENGTH_BITS | part.length
        for parts in blocks
        for part in parts
    ]
    return struct.pack(f"<{len(entries)}I", *entries)


def parse_index(
    data: Bytes, spec: TensorSpec, size: int, method: Method = Method.PLANES
) -> list[Block]:
    """Read the index of the encoded form of a tensor.

    Args:
        data: The last `index_size` bytes of the file.
        spec: The tensor's type and shape.
        size: The size of the file.
        method: What the head says.

    Raises:
        FormatError: A kind or length that no writer gives, or another sum than the file's size.
    """
    if len(data) != index_size(spec):
        raise FormatError(
            "the index of an encoded object is cut short",
            expected=f"{index_size(spec)} bytes",
            found=f"{len(data)} bytes",
        )
    width = element_width(spec)
    sparse = range(max(0, width - 2), width if method is Method.SPARSE_PLANES else 0)
    blocks: list[Block] = []
    position, remaining = HEAD_SIZE, spec.nbytes // width
    for entries in struct.iter_unpack(f"<{width}I", data):
        elements = min(remaining, BLOCK // width)
        parts = tuple(
            Part(_kind(entry, plane in sparse), entry & ((1 << _LENGTH_BITS) - 1))
            for plane, entry in enumerate(entries)
        )
        _check_parts(parts, elements, len(blocks))
        blocks.append(Block(position, elements, parts))
        position += blocks[-1].length
        remaining -= elements
    if position + len(data) != size:
        raise FormatError(
            "an encoded object does not have the size that its index gives",
            expected=f"{position + len(data)} bytes",
            found=f"{size} bytes",
        )
    return blocks


def _kind(entry: int, may_be_sparse: bool) -> Kind:
    kind = Kind(entry >> _LENGTH_BITS)
    return Kind.SPARSE if may_be_sparse and kind is Kind.PAIR else kind


def _check_parts(parts: tuple[Part, ...], elements: int, number: int) -> None:
    allowed: Sequence[int]
    for plane, part in enumerate(parts):
        if part.kind is Kind.PAIR:
            first = plane % 2 == 0
            other = parts[plane + 1 if first else plane - 1].kind if len(parts) > 1 else None
            good = plane < len(parts) - 2 and other is Kind.PAIR
            allowed = [2 * elements if first else 0] if good else []
        elif part.kind in (Kind.ZSTD, Kind.SPARSE):
            allowed = range(1, elements)
            if part.kind is Kind.SPARSE and elements < SPARSE_SHARE:
                allowed = []
        else:
            allowed = [1 if part.kind is Kind.CONSTANT else elements]
        if part.length not in allowed:
            raise FormatError(
                "the index of an encoded object has a length that is not possible",
                expected=f"a part of a plane of {elements} bytes",
                found=f"block {number}, plane {plane}: {part.kind.name}, {part.length} bytes",
            )


def _blocks(nbytes: int) -> int:
    return -(-nbytes // BLOCK)
