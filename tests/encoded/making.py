"""Tensors' data, encoded forms of them, and files that are changed, for the tests beside this."""

from __future__ import annotations

import random
import struct

from mlstate.digests import Digest
from mlstate.encoded import Base, decode, encode
from mlstate.format import tensor_object
from mlstate.format.encoded_object import BLOCK, HEAD_SIZE, Head, Kind, element_width
from mlstate.format.tensor_object import TensorSpec
from mlstate.pickled.source import BytesSource

__all__ = ["KINDS", "base_of", "decoded", "digest_of", "encoded", "file_of", "pair_of", "spec_of"]

KINDS = ("none", "equal", "near", "sparse", "far", "zeros")


def spec_of(dtype: str, size: int) -> TensorSpec:
    """A tensor of one dimension and about so many bytes."""
    if dtype == "F4":
        return TensorSpec(dtype, (2 * size,))
    return TensorSpec(dtype, (size // max(1, tensor_object.BITS[dtype] // 8),))


def pair_of(spec: TensorSpec, kind: str, seed: int) -> tuple[bytes, bytes | None]:
    """Data of a tensor, and of a base: equal, near, equal but for a few, far from it, or none."""
    chance = random.Random(seed)
    data = bytes(spec.nbytes) if kind == "zeros" else chance.randbytes(spec.nbytes)
    if kind in ("none", "zeros"):
        return data, None
    if kind == "far":
        return data, chance.randbytes(spec.nbytes)
    other = bytearray(data)
    if kind in ("near", "sparse"):  # differences of either sign, which borrow and carry
        width = element_width(spec)
        every = 1 if kind == "near" else chance.choice([10, 100, 1000])
        most = 9 if kind == "near" else 1 << (8 * width - 2)
        for start in range(0, spec.nbytes, width):
            if chance.randrange(every):
                continue
            step = chance.randint(-most, most)
            number = int.from_bytes(data[start : start + width], "little") + step
            other[start : start + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
    return data, bytes(other)


def digest_of(spec: TensorSpec, data: bytes) -> Digest:
    """The digest of a tensor object."""
    return Digest.of(tensor_object.header(spec), data)


def base_of(spec: TensorSpec, data: bytes | None, depth: int = 0) -> Base | None:
    """Data as a base."""
    return None if data is None else Base(digest_of(spec, data), data, depth)


def encoded(spec: TensorSpec, data: bytes, base: bytes | None = None, threads: int = 2) -> bytes:
    """The encoded form of a tensor as one file."""
    return b"".join(encode(data, spec, base_of(spec, base), threads=threads))


def decoded(spec: TensorSpec, file: bytes, base: bytes | None = None, threads: int = 2) -> bytes:
    """What a file decodes to, not verified."""
    out = bytearray(spec.nbytes)
    decode(BytesSource(file), spec, memoryview(out), base, threads=threads)
    return bytes(out)


def file_of(spec: TensorSpec, *parts: tuple[Kind, bytes], base: Digest | None = None) -> bytes:
    """A file of one block with these parts, whatever they are."""
    assert spec.nbytes <= BLOCK
    blocks = b"".join(content for _, content in parts)
    index = [min(kind, 3) << 30 | len(content) for kind, content in parts]
    head = Head.of(spec, base, 0 if base is None else 1).encode()
    assert len(head) == HEAD_SIZE
    return head + blocks + struct.pack(f"<{len(index)}I", *index)
