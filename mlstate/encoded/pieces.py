"""The data of an encoded tensor piece by piece, for what is written somewhere as it is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mlstate.digests import Bytes
from mlstate.encoded.blocks import BlockDecoder
from mlstate.encoded.decode import Source, read_blocks
from mlstate.errors import FormatError
from mlstate.format.encoded_object import BLOCK, element_width
from mlstate.format.tensor_object import TensorSpec

__all__ = ["decoded_pieces"]


def decoded_pieces(
    source: Source, spec: TensorSpec, base: Callable[[int], Bytes] | None = None
) -> Iterator[memoryview]:
    """The data of a tensor, from front to back; what they are is not verified.

    A few blocks are in memory, however large the tensor is. All pieces are in the same memory, so
    each is valid until the next one is asked for.

    Args:
        source: Its encoded form.
        spec: Its type and shape.
        base: Gives the next bytes of the data of the base that the head names, as many as it is
            asked for; None without a base.

    Raises:
        FormatError: It is not an encoded form of such a tensor.
    """
    blocks, width = read_blocks(source, spec, has_base=base is not None), element_width(spec)
    decoder, memory = BlockDecoder(width), memoryview(bytearray(min(BLOCK, spec.nbytes)))
    for block in blocks:
        out = memory[: block.elements * width]
        of_base = None if base is None else base(len(out))
        if of_base is not None and len(of_base) != len(out):
            raise FormatError(
                "a tensor's data has the wrong length", expected=spec.nbytes, found="fewer bytes"
            )
        decoder.decode(source.read(block.start, block.length), block, of_base, out)
        yield out
