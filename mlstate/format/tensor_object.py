"""Tensor objects: one tensor, one safetensors file, its data at byte 4096 exactly.

The element types, the entries of a safetensors header and the check of a tensor object are here,
too; state objects and plain files build on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from types import MappingProxyType
from typing import Any

from mlstate.digests import Bytes, Digest, Hasher
from mlstate.errors import FormatError
from mlstate.texts import load_json

__all__ = [
    "BITS",
    "DATA_OFFSET",
    "MAX_HEADER",
    "TensorCheck",
    "TensorSpec",
    "check_values",
    "encode_header",
    "entry_text",
    "header",
    "object_size",
    "parse_json",
    "parse_spec",
    "quoted",
    "spec_in_header",
    "spec_text",
]

DATA_OFFSET = 4096
"""Where the data begins. A page, so that it can be mapped, and blocks shared, as it lies."""
MAX_HEADER = 100_000_000
"""The longest header that safetensors reads, in bytes."""

_WIDTHS = {
    8: "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    16: "U16 I16 F16 BF16",
    32: "U32 I32 F32",
    64: "U64 I64 F64 C64",
    4: "F4",
}
BITS = MappingProxyType({name: bits for bits, names in _WIDTHS.items() for name in names.split()})
"""Element type -> width in bits. This table belongs to the format and never changes."""

_MAX_BYTES = 2**63 - 1


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The element type and shape of a tensor: all but its values.

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
    """Refuse, by a FormatError, a BOOL tensor with a byte other than 0 and 1."""
    if spec.dtype == "BOOL":
        for start in range(0, len(data), 1 << 20):
            if bytes(data[start : start + (1 << 20)]).translate(None, b"\x00\x01"):
                raise FormatError("a BOOL tensor holds a byte other than 0 and 1")


@lru_cache(128)  # most tensors of a model are shaped like another one
def header(spec: TensorSpec) -> bytes:
    """The first 4096 bytes of the tensor object of a tensor of this type and shape."""
    data = encode_header({"tensor": entry_text(spec, 0)}, DATA_OFFSET, "a tensor's header")
    if len(data) > DATA_OFFSET:
        raise FormatError(
            "a tensor has too many dimensions for its header", found=f"{len(spec.shape)} dimensions"
        )
    return data


def spec_in_header(data: Bytes) -> TensorSpec | None:
    """The type and shape that the first 4096 bytes of a tensor object say; None of other bytes."""
    try:
        found = parse_spec("tensor", parse_json(bytes(data[8:DATA_OFFSET]), "it")["tensor"])
    except (FormatError, KeyError):
        return None
    return found if header(found) == data[:DATA_OFFSET] else None


def object_size(spec: TensorSpec) -> int:
    """The size of the whole tensor object in bytes."""
    return DATA_OFFSET + spec.nbytes


class TensorCheck:
    """The check of a tensor object whose bytes come piece by piece, from front to back.

    Of the tensor that it should be, only the values of BOOL are looked at. ``size`` is how many
    bytes came.
    """

    def __init__(self, spec: TensorSpec | None) -> None:
        self.size = 0
        self._head = b""
        self._hasher = Hasher()
        self._spec = spec if spec is not None and spec.dtype == "BOOL" else None
        self._impossible: FormatError | None = None

    def update(self, piece: Bytes) -> None:
        """Take the next bytes."""
        self._hasher.update(piece)
        lacking = DATA_OFFSET - self.size
        if lacking > 0:
            self._head += bytes(piece[:lacking])
        if self._spec is not None and self._impossible is None:
            try:
                check_values(self._spec, piece[max(0, lacking) :])
            except FormatError as error:
                self._impossible = error
        self.size += len(piece)

    def digest(self) -> Digest:
        """The digest of all bytes so far."""
        return self._hasher.digest()

    def problem(self, spec: TensorSpec) -> FormatError | None:
        """Why the bytes, which have the right digest, are not this tensor; None if they are it."""
        if self.size != object_size(spec) or self._head != header(spec):
            return FormatError(
                "a tensor object is not the tensor that the state object says it is",
                expected=f"{spec.dtype} {list(spec.shape)}, {object_size(spec)} bytes",
                found=f"{self._head[8:200].rstrip()!r}, {self.size} bytes",
            )
        return self._impossible if spec.dtype == "BOOL" else None


def encode_header(entries: Mapping[str, str], alignment: int, what: str) -> bytes:
    """The first bytes of a safetensors file: its header as canonical JSON, padded with spaces.

    Equal entries (the JSON text of each name's value) have one text: names sorted by code point, no
    spaces, non-ASCII escaped. The data begins at a multiple of ``alignment``. More than 100,000,000
    bytes are a FormatError, which says ``what`` header it is.
    """
    items = ",".join([f"{quoted(name)}:{text}" for name, text in sorted(entries.items())])
    text = f"{{{items}}}".encode("ascii")
    length = len(text) + -(8 + len(text)) % alignment
    if length > MAX_HEADER:
        raise FormatError(
            f"{what} is too long", expected=f"at most {MAX_HEADER} bytes", found=f"{length} bytes"
        )
    return length.to_bytes(8, "little") + text.ljust(length, b" ")


def entry_text(spec: TensorSpec, start: int) -> str:
    """A tensor's entry in a header: its place among the data, its type and its shape."""
    return f'{{"data_offsets":[{start},{start + spec.nbytes}],{spec_text(spec)}}}'


@lru_cache(4096)
def spec_text(spec: TensorSpec) -> str:
    """The part of an entry that gives type and shape."""
    return f'"dtype":"{spec.dtype}","shape":[{",".join(map(str, spec.shape))}]'


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in a text; a FormatError, which names ``what`` it is, if there is none.

    Whether the text was canonical is for the caller to check by encoding it again.
    """
    return load_json(data, what, most=MAX_HEADER)


def parse_spec(name: str, entry: Any) -> TensorSpec:
    """Type and shape of a tensor, from its entry in a header; a FormatError names the tensor."""
    try:
        if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list):
            raise FormatError("a tensor's entry is malformed", found=entry)
        dtype, shape = entry.get("dtype"), entry["shape"]
        try:
            return _known_spec(dtype, *shape)
        except TypeError:  # something that cannot be looked up, and is no spec
            return TensorSpec(dtype, tuple(shape))  # type: ignore[arg-type]
    except FormatError as error:
        error.tensor = name
        raise


@lru_cache(4096, typed=True)  # typed: 1 and true are not the same
def _known_spec(dtype: Any, *shape: int) -> TensorSpec:
    """A spec that was checked before: most tensors of a model are like another one."""
    return TensorSpec(dtype, shape)
