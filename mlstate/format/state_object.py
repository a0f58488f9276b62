"""State objects: one mapping from names to tensors, one safetensors file.

Small tensors are inside, under their own names; all others are referred to by digest. The digest
of this file is the state digest, so each mapping must have exactly one encoding: `parse` encodes
again what it read and refuses anything that differs in a single byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError
from mlstate.format.tensor_object import (
    BITS,
    MAX_HEADER,
    TensorSpec,
    check_values,
    encode_header,
    entry_text,
    parse_json,
    parse_spec,
    quoted,
    spec_text,
)

__all__ = [
    "BYTES_NAME",
    "INLINE_LIMIT",
    "MAX_HEADER",
    "InlineTensor",
    "StateObject",
    "TensorRef",
    "check_bytes_state",
    "check_name",
    "is_state_object",
]

INLINE_LIMIT = 16_384
"""Tensors of fewer bytes are inside the state object."""
BYTES_NAME = "mlstate.bytes"
"""The only tensor of a state that is opaque bytes: U8, one dimension."""

_ALIGNMENT = 64
_METADATA = "__metadata__"
_VERSION = "1"


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor outside the state object: its type and shape, and the digest of its object."""

    spec: TensorSpec
    digest: Digest


@dataclass(frozen=True, slots=True)
class InlineTensor:
    """A tensor inside the state object: its type and shape, and its data in C order."""

    spec: TensorSpec
    data: Bytes = field(repr=False)


def check_name(name: object) -> str:
    """The name, if it can be a tensor's: a FormatError if it is no UTF-8 text, or reserved."""
    if not isinstance(name, str):
        raise FormatError("a tensor's name is text", found=repr(name))
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise FormatError("a tensor's name holds a lone surrogate", found=repr(name)) from None
    if name == _METADATA or (name.startswith("mlstate.") and name != BYTES_NAME):
        raise FormatError("this tensor name is reserved", found=repr(name))
    return name


def check_bytes_state(specs: Mapping[str, TensorSpec]) -> None:
    """Refuse, by a FormatError, a state that has the name for opaque bytes and others."""
    spec = specs.get(BYTES_NAME)
    if spec and (len(specs) != 1 or spec.dtype != "U8" or len(spec.shape) != 1):
        raise FormatError(
            f"{BYTES_NAME} is the only tensor of its state, U8 of one dimension",
            found=", ".join(sorted(specs)),
        )


@dataclass(frozen=True)
class StateObject:
    """A state as its state object says it: every name with its type and shape.

    Small tensors are `inline`, with their data; all others are `refs`, by digest.
    """

    inline: Mapping[str, InlineTensor]
    refs: Mapping[str, TensorRef]

    def __post_init__(self) -> None:
        for name in (*self.inline, *self.refs):
            check_name(name)
        if both := self.inline.keys() & self.refs.keys():
            raise FormatError("a tensor is both inside and outside", tensor=min(both))
        for name, tensor in self.inline.items():
            if tensor.spec.nbytes >= INLINE_LIMIT:
                raise FormatError("a tensor this large is stored outside", tensor=name)
            if len(tensor.data) != tensor.spec.nbytes:
                raise FormatError(
                    "a tensor's data has the wrong length",
                    tensor=name,
                    expected=tensor.spec.nbytes,
                    found=len(tensor.data),
                )
        for name, ref in self.refs.items():
            if ref.spec.nbytes < INLINE_LIMIT:
                raise FormatError("a tensor this small is stored inside", tensor=name)
        if BYTES_NAME in self.inline or BYTES_NAME in self.refs:
            check_bytes_state(self.specs)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every name with its type and shape."""
        inline = {name: entry.spec for name, entry in self.inline.items()}
        return inline | {name: ref.spec for name, ref in self.refs.items()}

    @property
    def nbytes(self) -> int:
        """The bytes of tensor data, every name counted."""
        return self.inline_nbytes + sum(ref.spec.nbytes for ref in self.refs.values())

    @property
    def inline_nbytes(self) -> int:
        """Those of the tensors that are inside."""
        return sum(tensor.spec.nbytes for tensor in self.inline.values())

    def part(self, names: Mapping[str, str]) -> StateObject:
        """A part of it: the name of each tensor in the part -> its name here.

        Raises:
            FormatError: A name that no tensor of a state can have.
        """
        inline = {new: self.inline[old] for new, old in names.items() if old in self.inline}
        refs = {new: self.refs[old] for new, old in names.items() if old in self.refs}
        return StateObject(inline, refs)

    def encode(self) -> bytes:
        """The state object's bytes; a FormatError if its header exceeds 100,000,000 bytes."""
        names = _order({name: tensor.spec for name, tensor in self.inline.items()})
        return b"".join([self._header(names), *(self.inline[name].data for name in names)])

    def _header(self, names: Iterable[str]) -> bytes:
        """The header, for inline tensors in this order.

        Put together by hand and not by ``json.dumps``, for `parse` does this to every state that
        is read (measured: a third of the time).
        """
        refs = ",".join(
            f'{quoted(name)}:{{"blake3":"{ref.digest}",{spec_text(ref.spec)}}}'
            for name, ref in sorted(self.refs.items())
        )
        entries = {_METADATA: f'{{"mlstate":"{_VERSION}","tensors":{quoted(f"{{{refs}}}")}}}'}
        position = 0
        for name in names:
            spec = self.inline[name].spec
            entries[name] = entry_text(spec, position)
            position += spec.nbytes
        return encode_header(entries, _ALIGNMENT, "a state's header")

    @classmethod
    def parse(cls, data: bytes) -> StateObject:
        """Read a whole state object; the inverse of `encode`.

        Raises:
            FormatError: Anything that `encode` would not have written exactly so.
        """
        header = _header_text(data)
        entries = parse_json(header, "the header of a state object")
        refs = _parse_refs(entries.pop(_METADATA, None))
        specs = {name: _parse_spec(name, entry, "data_offsets") for name, entry in entries.items()}
        inline = {}
        view = memoryview(data)
        position = 8 + len(header)
        names = _order(specs)
        for name in names:
            end = position + specs[name].nbytes
            inline[name] = InlineTensor(specs[name], view[position:end])
            position = end
        state = cls(inline, refs)
        if position != len(data) or state._header(names) != view[: 8 + len(header)]:
            raise FormatError(
                "a state object is not in canonical form",
                expected="sorted names, small tensors inside and in order, no gaps, least padding",
            )
        for name, tensor in inline.items():
            try:
                check_values(tensor.spec, tensor.data)
            except FormatError as error:
                error.tensor = name
                raise
        return state


def is_state_object(header: bytes) -> bool:
    """Whether the JSON header of a safetensors file is that of a state object."""
    return b'"__metadata__":{"mlstate":"' in header  # the canonical form has it so, and only there


def _order(specs: Mapping[str, TensorSpec]) -> list[str]:
    """Inline tensors lie by element width, widest first, then by name: each is then aligned."""
    return sorted(specs, key=lambda name: (-BITS[specs[name].dtype], name))


def _header_text(data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        raise FormatError(
            "a state object is cut short or its header is too long",
            expected=f"a header of at most {min(MAX_HEADER, max(len(data) - 8, 0))} bytes",
            found=f"{length} in a file of {len(data)}",
        )
    return data[8 : 8 + length]


def _parse_refs(metadata: Any) -> dict[str, TensorRef]:
    if (
        not isinstance(metadata, dict)
        or metadata.keys() != {"mlstate", "tensors"}
        or not isinstance(metadata["tensors"], str)
    ):
        raise FormatError(
            "not a state object", expected='"mlstate" and "tensors" in the metadata', found=metadata
        )
    if metadata["mlstate"] != _VERSION:
        raise FormatError(
            "a state object of another version",
            expected=_VERSION,
            found=metadata["mlstate"],
            remedy="use a newer mlstate",
        )
    refs = parse_json(metadata["tensors"].encode("utf-8", "surrogatepass"), "the references")
    parsed = {}
    for name, entry in refs.items():
        spec = _parse_spec(name, entry, "blake3")
        if not isinstance(entry["blake3"], str):
            raise FormatError("a reference without a digest", tensor=name, found=entry)
        parsed[name] = TensorRef(spec, Digest(entry["blake3"]))
    return parsed


def _parse_spec(name: str, entry: Any, third: str) -> TensorSpec:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", third}:
        raise FormatError(
            "a tensor's entry is malformed",
            tensor=name,
            expected=f"dtype, shape and {third}",
            found=entry,
        )
    return parse_spec(name, entry)
