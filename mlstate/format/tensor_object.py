"""Tensor objects: one tensor, one safetensors file, its data at byte 4096 exactly."""

from __future__ import annotations

from functools import lru_cache

from mlstate.errors import FormatError
from mlstate.format import canonical
from mlstate.format.dtypes import TensorSpec

__all__ = ["DATA_OFFSET", "header", "object_size"]

DATA_OFFSET = 4096
"""Where the data begins. A page, so that it can be mapped, and blocks shared, as it lies."""


@lru_cache(128)  # most tensors of a model are shaped like another one
def header(spec: TensorSpec) -> bytes:
    """The first 4096 bytes of the tensor object of a tensor of this type and shape.

    Raises:
        FormatError: So many dimensions that their header does not fit.
    """
    entry = {"data_offsets": [0, spec.nbytes], "dtype": spec.dtype, "shape": list(spec.shape)}
    text = canonical.dumps({"tensor": entry})
    room = DATA_OFFSET - 8
    if len(text) > room:
        raise FormatError(
            "a tensor has too many dimensions for its header", found=f"{len(spec.shape)} dimensions"
        )
    return room.to_bytes(8, "little") + text.ljust(room, b" ")


def object_size(spec: TensorSpec) -> int:
    """The size of the whole tensor object in bytes."""
    return DATA_OFFSET + spec.nbytes
