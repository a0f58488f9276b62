"""The element types that can be stored. This table belongs to the format and never changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType

from mlstate.digests import Bytes
from mlstate.errors import FormatError

__all__ = ["BITS", "TensorSpec", "check_values"]

BITS = MappingProxyType(
    {
        "BOOL": 8,
        "U8": 8,
        "I8": 8,
        "F8_E4M3": 8,
        "F8_E5M2": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "U16": 16,
        "I16": 16,
        "F16": 16,
        "BF16": 16,
        "U32": 32,
        "I32": 32,
        "F32": 32,
        "U64": 64,
        "I64": 64,
        "F64": 64,
        "C64": 64,
        "F4": 4,
    }
)
"""Element type -> width in bits."""

_MAX_BYTES = 2**63 - 1


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor is, apart from its values.

    Attributes:
        dtype: A name of the table `BITS`.
        shape: The dimensions, in elements; empty for a scalar.
        nbytes: The size of the data in bytes.

    Raises:
        FormatError: An unknown element type, a negative dimension, or a size that is not a whole
            number of bytes below 2^63.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.dtype, str) or self.dtype not in BITS:
            raise FormatError(
                "unknown element type", expected=", ".join(BITS), found=repr(self.dtype)
            )
        if any(type(size) is not int or not 0 <= size <= _MAX_BYTES for size in self.shape):
            raise FormatError("a shape is a list of whole numbers from 0 on", found=self.shape)
        # Step by step: readers multiply so, and a 0 further on does not undo an overflow.
        bits = BITS[self.dtype]
        for size in self.shape:
            bits *= size
            if bits // 8 > _MAX_BYTES:
                break
        if bits % 8 or bits // 8 > _MAX_BYTES:
            raise FormatError(
                f"{self.dtype} of this shape is not a whole number of bytes below 2^63",
                found=self.shape,
            )
        object.__setattr__(self, "nbytes", bits // 8)


def check_values(spec: TensorSpec, data: Bytes) -> None:
    """Refuse data that no value of this type has: a BOOL byte is 0 or 1.

    Raises:
        FormatError: Such a byte is there.
    """
    if spec.dtype == "BOOL":
        for start in range(0, len(data), 1 << 20):
            if bytes(data[start : start + (1 << 20)]).translate(None, b"\x00\x01"):
                raise FormatError("a BOOL tensor holds a byte other than 0 and 1")
