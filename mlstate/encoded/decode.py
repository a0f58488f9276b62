"""Decoding: an encoded object becomes the tensor's data, in memory of the caller's own.

All sizes come from the reference to the object. The head and the index are held against it before
anything is decoded, and each zstd frame's header before that frame is.
"""

from __future__ import annotations

from typing import Protocol

from mlstate.digests import Bytes, Digest
from mlstate.encoded.blocks import BlockDecoder
from mlstate.encoded.tools import Tools
from mlstate.errors import FormatError, IntegrityError
from mlstate.format import tensor_object
from mlstate.format.encoded_object import (
    BLOCK,
    HEAD_SIZE,
    Block,
    Head,
    element_width,
    index_size,
    parse_index,
)
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import TensorSpec
from mlstate.parallel import THREADS, for_each

__all__ = ["Source", "decode", "decode_verified", "read_blocks", "read_head"]


class Source(Protocol):
    """An encoded object whose bytes are read by ranges, from any thread."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    def read(self, start: int, size: int) -> bytes:
        """Read a range; an `MlstateError` if it is not there, whole."""


def read_head(source: Source, spec: TensorSpec) -> Head:
    """Read what says which base an encoded tensor needs.

    Raises:
        FormatError: It is not the encoded form of a tensor of this type and shape, or its size is
            not possible.
    """
    least = HEAD_SIZE + index_size(spec)
    if not least <= source.size <= least + spec.nbytes:
        raise FormatError(
            "an encoded object has a size that is not possible",
            expected=f"{least} to {least + spec.nbytes} bytes",
            found=f"{source.size} bytes",
        )
    return Head.parse(source.read(0, HEAD_SIZE), spec)


def read_blocks(source: Source, spec: TensorSpec, *, has_base: bool) -> list[Block]:
    """Read where the blocks of an encoded tensor are.

    Raises:
        FormatError: It is not an encoded form of such a tensor, or one that is decoded with a base
            where there is none, or the other way round.
    """
    head = read_head(source, spec)
    if (head.base is not None) != has_base:
        raise FormatError(
            "an encoded object is decoded with the base that it names",
            expected=head.base or "no base",
            found="a base" if has_base else "no base",
        )
    start = source.size - index_size(spec)
    return parse_index(source.read(start, index_size(spec)), spec, source.size, head.method)


def decode(
    source: Source,
    spec: TensorSpec,
    out: memoryview,
    base: Bytes | None = None,
    *,
    threads: int = THREADS,
) -> None:
    """Fill memory with the data of a tensor; what they are is not verified.

    Beside the tensor and the base, each thread has a few blocks in memory.

    Args:
        source: Its encoded form.
        spec: Its type and shape.
        out: Where its data go, as many bytes as these give. After an error there is anything.
        base: The data of the base that the head names, or None.
        threads: How many blocks are decoded at once.

    Raises:
        FormatError: It is not an encoded form of such a tensor.
    """
    blocks = read_blocks(source, spec, has_base=base is not None)
    for what in (out, *(() if base is None else (base,))):
        if len(what) != spec.nbytes:
            raise FormatError(
                "a tensor's data has the wrong length", expected=spec.nbytes, found=len(what)
            )
    tools = Tools(lambda: BlockDecoder(element_width(spec)))

    def decode_block(number: int) -> None:
        block, place = blocks[number], slice(number * BLOCK, (number + 1) * BLOCK)
        data = source.read(block.start, block.length)
        bases = None if base is None else memoryview(base)[place]
        with tools.borrowed() as decoder:
            decoder.decode(data, block, bases, out[place])

    for_each(decode_block, range(len(blocks)), min(threads, len(blocks)))


def decode_verified(
    source: Source,
    ref: TensorRef,
    out: memoryview,
    base: Bytes | None = None,
    *,
    threads: int = THREADS,
) -> None:
    """Fill memory with the data of the tensor that a state object refers to.

    Args:
        source: The encoded form of the tensor object.
        ref: Its type, shape and digest.
        out: Where its data go. After an error there is anything.
        base: The data of the base that the head names, or None.
        threads: How many blocks are decoded at once.

    Raises:
        FormatError: It is not an encoded form of such a tensor.
        IntegrityError: What came out is another tensor. The error names the base if that is not
            what its own digest says.
    """
    decode(source, ref.spec, out, base, threads=threads)
    header = tensor_object.header(ref.spec)
    found = Digest.of(header, out)
    if found == ref.digest:
        tensor_object.check_values(ref.spec, out)
        return
    named = read_head(source, ref.spec).base
    if base is not None and named is not None and (other := Digest.of(header, base)) != named:
        raise IntegrityError(
            "the base of an encoded object is damaged", expected=named, found=other
        )
    raise IntegrityError(
        "an encoded object decodes to something else than its name says",
        expected=ref.digest,
        found=found,
    )
