"""The index of a checkpoint of ``torch.distributed.checkpoint`` (DCP) that is a state.

It is a file of the state, `INDEX_NAME`: JSON that says which chunks each tensor has. Each index has
exactly one text, as `DcpIndex.encode` writes it, and `DcpIndex.parse` refuses any other. The name
of a chunk in the state follows from the tensor's name and the chunk's place, so an index cannot
give one tensor the values of another. Nothing in it is a pickle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlstate.errors import FormatError, concerning
from mlstate.format.tensor_object import TensorSpec
from mlstate.pickled.distributed import check_whole
from mlstate.tensors.memory import TORCH_DTYPES, torch_shape
from mlstate.texts import parse_json

__all__ = [
    "INDEX_NAME",
    "MAX_INDEX",
    "ChunkBox",
    "ChunkedTensor",
    "DcpIndex",
    "chunk_name",
    "index_of_plain",
    "is_plain_value",
]

INDEX_NAME = "dcp.json"
"""The file of a state that makes it a checkpoint of DCP."""
MAX_INDEX = 100_000_000
"""The longest index that is read, in bytes."""

_VERSION = 1
_WHAT = "the index of a distributed checkpoint"
_TUPLE = "tuple"
_MOST_PATH = 64
_MOST_POSITION = 1_000_000
"""The last position in a list: torch fills a list up to it."""
_MOST_NUMBER = 2**63 - 1
_FIELDS = {"bytes", "paths", "tensors", "values", "version"}

Path = tuple[str | int, ...]
"""The keys from the top of what was saved to a value: names of mappings, positions in lists."""


@dataclass(frozen=True, slots=True)
class ChunkBox:
    """A part of a tensor: where it begins, and its shape; as torch counts elements."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChunkedTensor:
    """A tensor: its element type in the format, its shape as torch counts it, and its chunks."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[ChunkBox, ...]

    @property
    def is_whole(self) -> bool:
        """Whether it is one chunk."""
        return self.chunks == (_whole(self.shape),)


@dataclass(frozen=True)
class DcpIndex:
    """What a checkpoint holds; see the module.

    Attributes:
        tensors: Name -> tensor.
        values: Name -> a plain value: see `is_plain_value`.
        pickled: The names of objects that are kept as the bytes that ``torch.save`` made.
        paths: Name -> its path, of each that was inside another mapping or list.
    """

    tensors: Mapping[str, ChunkedTensor]
    values: Mapping[str, Any] = field(default_factory=dict)
    pickled: frozenset[str] = frozenset()
    paths: Mapping[str, Path] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Its text."""
        said = {
            "bytes": sorted(self.pickled),
            "paths": {name: list(path) for name, path in self.paths.items()},
            "tensors": {name: _said(tensor) for name, tensor in self.tensors.items()},
            "values": {
                name: {_TUPLE: list(value)} if type(value) is tuple else value
                for name, value in self.values.items()
            },
            "version": _VERSION,
        }
        return json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def parse(cls, data: bytes) -> DcpIndex:
        """Read a text; the inverse of `encode`.

        Raises:
            FormatError: Anything that `encode` would not have written exactly so; chunks that
                overlap or are not all of a tensor.
        """
        said = parse_json(data, _WHAT, most=MAX_INDEX)
        version = said.get("version") if isinstance(said, dict) else None
        if type(version) is int and version > _VERSION:
            raise FormatError(
                f"{_WHAT} is of a newer version",
                expected=_VERSION,
                found=version,
                remedy="use a newer mlstate",
            )
        if not isinstance(said, dict) or said.keys() != _FIELDS:
            raise _malformed("an object with other fields", said)
        index = cls(
            {name: _tensor(name, one) for name, one in _mapping(said, "tensors").items()},
            {name: _value(name, one) for name, one in _mapping(said, "values").items()},
            _names(said["bytes"]),
            {name: _path(name, one) for name, one in _mapping(said, "paths").items()},
        )
        if index.encode() != data:
            raise FormatError(
                f"{_WHAT} is not in canonical form",
                expected="sorted names, no spaces, no name twice, nothing that goes without saying",
            )
        index.check_names()
        return index

    def chunk_names(self) -> dict[str, tuple[str, ChunkBox]]:
        """The name of each chunk in the state -> its tensor, and its place in it.

        Raises:
            FormatError: Two would have the same name, or an object the name of a chunk.
        """
        found: dict[str, tuple[str, ChunkBox]] = {}
        for name, tensor in self.tensors.items():
            for box in tensor.chunks:
                chunk = chunk_name(name, tensor.shape, box)
                if chunk in found or chunk in self.pickled:
                    raise FormatError(
                        "two entries of a distributed checkpoint have one name", tensor=chunk
                    )
                found[chunk] = name, box
        return found

    def check_names(self) -> None:
        """Refuse, by a FormatError, names that are in it twice, and paths of others."""
        names = [*self.tensors, *self.values, *self.pickled]
        if len({*names}) != len(names) or not self.paths.keys() <= {*names}:
            raise _malformed("a name twice, or a path of no name", None)
        self.chunk_names()

    def check_fits(self, specs: Mapping[str, TensorSpec]) -> None:
        """Compare it with the tensors that the state has.

        Raises:
            FormatError: The state lacks a chunk, has one of another type or shape, or has tensors
                that are not in the index.
        """
        chunks = self.chunk_names()
        for chunk, (name, box) in chunks.items():
            spec, wanted = specs.get(chunk), self.tensors[name].dtype
            with concerning(tensor=chunk):
                if spec is None or spec.dtype != wanted or torch_shape(spec) != box.sizes:
                    raise FormatError(
                        "a chunk of a distributed checkpoint is not what its index says",
                        expected=f"{wanted} {list(box.sizes)}",
                        found="no such tensor" if spec is None else f"{spec.dtype} {[*spec.shape]}",
                    )
        for name in self.pickled:
            if name not in specs or specs[name].dtype != "U8" or len(specs[name].shape) != 1:
                raise FormatError(f"{_WHAT} names bytes that the state does not have", tensor=name)
        if others := specs.keys() - chunks.keys() - self.pickled:
            raise FormatError(f"{_WHAT} does not name all of the state", tensor=min(others))


def chunk_name(name: str, shape: tuple[int, ...], box: ChunkBox) -> str:
    """The name of a chunk in the state: the tensor's, and of a part the part, as Python slices.

    Example:
        >>> chunk_name("weight", (4, 6), ChunkBox((2, 0), (2, 6)))
        'weight[2:4,0:6]'
    """
    if box == _whole(shape):
        return name
    slices = (
        f"{offset}:{offset + size}" for offset, size in zip(box.offsets, box.sizes, strict=True)
    )
    return f"{name}[{','.join(slices)}]"


def index_of_plain(specs: Mapping[str, TensorSpec]) -> DcpIndex:
    """The index of a state that is no checkpoint of DCP: each tensor is one chunk."""
    tensors = {}
    for name, spec in specs.items():
        shape = torch_shape(spec)
        tensors[name] = ChunkedTensor(spec.dtype, shape, (_whole(shape),))
    return DcpIndex(tensors)


def is_plain_value(value: Any) -> bool:
    """Whether JSON gives a value back as it is.

    It is None, a bool, a finite number, a text, or a list or tuple of these.
    """
    if type(value) in (list, tuple):
        return all(map(_is_scalar, value))
    return _is_scalar(value)


def _is_scalar(value: Any) -> bool:
    match value:
        case None | bool():
            return True
        case int():
            return type(value) is int and abs(value) <= _MOST_NUMBER
        case float():
            return type(value) is float and math.isfinite(value)
        case str():
            return type(value) is str and not any("\ud800" <= one <= "\udfff" for one in value)
    return False


def _whole(shape: tuple[int, ...]) -> ChunkBox:
    return ChunkBox((0,) * len(shape), shape)


def _said(tensor: ChunkedTensor) -> dict[str, Any]:
    said: dict[str, Any] = {"dtype": tensor.dtype, "shape": list(tensor.shape)}
    if not tensor.is_whole:
        said["chunks"] = [[*box.offsets, *box.sizes] for box in tensor.chunks]
    return said


def _tensor(name: str, said: Any) -> ChunkedTensor:
    with concerning(tensor=name):
        if not isinstance(said, dict) or not said.keys() <= {"chunks", "dtype", "shape"}:
            raise _malformed("a tensor with other fields", said)
        dtype, shape = said.get("dtype"), _numbers(said.get("shape"))
        if type(dtype) is not str or dtype not in TORCH_DTYPES:
            raise _malformed("an element type that this torch does not have", dtype)
        listed = said.get("chunks", [[*_whole(shape).offsets, *shape]])
        if not isinstance(listed, list):
            raise _malformed("chunks that are no list", listed)
        boxes = tuple(_box(_numbers(numbers), len(shape)) for numbers in listed)
        if any(
            offset + size > most
            for box in boxes
            for offset, size, most in zip(box.offsets, box.sizes, shape, strict=True)
        ):
            raise _malformed("a chunk that is not inside its tensor", shape)
        check_whole(shape, [box for box in boxes if math.prod(box.sizes)])
        return ChunkedTensor(dtype, shape, boxes)


def _box(numbers: tuple[int, ...], dimensions: int) -> ChunkBox:
    if len(numbers) != 2 * dimensions:
        raise _malformed("a chunk of other dimensions", numbers)
    return ChunkBox(numbers[:dimensions], numbers[dimensions:])


def _numbers(said: Any) -> tuple[int, ...]:
    if not isinstance(said, list) or not all(
        type(one) is int and 0 <= one <= _MOST_NUMBER for one in said
    ):
        raise _malformed("a shape or a place that is none", said)
    return tuple(said)


def _value(name: str, said: Any) -> Any:
    value = said
    if isinstance(said, dict):
        value = tuple(said[_TUPLE]) if isinstance(said.get(_TUPLE), list) else said
    with concerning(tensor=name):
        if not is_plain_value(value):
            raise _malformed("a value that is not plain", said)
    return value


def _names(said: Any) -> frozenset[str]:
    if not isinstance(said, list) or not all(isinstance(one, str) for one in said):
        raise _malformed("names that are no texts", said)
    return frozenset(said)


def _path(name: str, said: Any) -> Path:
    with concerning(tensor=name):
        if (
            not isinstance(said, list)
            or not 0 < len(said) <= _MOST_PATH
            or not all(
                type(key) is str or (type(key) is int and 0 <= key <= _MOST_POSITION)
                for key in said
            )
        ):
            raise _malformed("a path that is none", said)
    return tuple(said)


def _mapping(said: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = said[name]
    if not isinstance(found, dict):
        raise _malformed(f"no {name}", found)
    return found


def _malformed(what: str, found: Any) -> FormatError:
    return FormatError(
        f"{_WHAT} cannot be read: it has {what}",
        found=None if found is None else str(found)[:80],
    )
