"""Distributed checkpoints (``torch.distributed.checkpoint``): what their ``.metadata`` says.

A folder of one has a pickle, ``.metadata``, and files with chunks of tensors. The pickle is read
into inert values as any other: nothing of it runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Protocol

from mlstate.errors import FormatError, concerning
from mlstate.pickled.caps import MAX_DIMENSIONS, capped
from mlstate.pickled.constructors import dtype_of, understand
from mlstate.pickled.interpreter import read_pickle
from mlstate.pickled.source import Cursor, Source
from mlstate.pickled.tensor import CheckpointTensor, StorageClaim, itemsize_of, whole_number
from mlstate.pickled.values import Call, Global, Items, Pairs, Value, kind_of

__all__ = ["Box", "Chunk", "Distributed", "ShardedTensor", "check_whole", "read_distributed"]

_MAX_SPLIT = 6
"""The most dimensions along which a tensor may be split. Meshes of devices have two or three."""
_BYTES = "an object that was saved as bytes"


class Box(Protocol):
    """A part of a tensor: where it begins, and its shape; in elements, for each dimension."""

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where it begins in the tensor."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its shape."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a tensor, and the range of a file that has it as ``torch.save`` wrote it.

    Attributes:
        offsets: Where it begins in the tensor, in elements, for each dimension.
        sizes: Its shape.
        file: The name of the file in the folder.
        start: Where its range begins, in bytes.
        length: The size of the range in bytes.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class ShardedTensor:
    """A tensor: the chunks that are not empty, by their offsets. Together they are all of it."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Distributed:
    """A distributed checkpoint: its structure was read, nothing of its chunks.

    Attributes:
        root: What was saved, nested as it was: mappings, and a `CheckpointTensor` for each tensor,
            whose storage has the tensor's whole name as its key.
        tensors: The whole name of each tensor -> the tensor.
        files: The names of all files that the folder is to have.
    """

    root: Pairs = field(repr=False)
    tensors: Mapping[str, ShardedTensor] = field(repr=False)
    files: tuple[str, ...]


def read_distributed(source: Source) -> Distributed:
    """Read a ``.metadata``.

    Raises:
        FormatError: It is damaged or something else; a tensor has chunks that overlap, or lacks
            some; a chunk was written through an extension, compressed say.
    """
    said = _fields(read_pickle(Cursor(source), understand), "Metadata")
    places = _places(_pairs(said, "storage_data"))
    tensors: dict[str, ShardedTensor] = {}
    leaves: dict[str, Value] = {}
    for name, value in _pairs(said, "state_dict_metadata").items():
        if type(name) is not str:
            raise _unread("a name that is no text", name)
        with concerning(tensor=name):
            if _is(value, "BytesStorageMetadata"):
                leaves[name] = Items(_BYTES)
                continue
            tensors[name] = _tensor(name, _fields(value, "TensorStorageMetadata"), places)
            leaves[name] = _leaf(name, tensors[name])
    files = {chunk[0] for chunk in places.values()}
    return Distributed(_nested(leaves, said.get("planner_data")), tensors, tuple(sorted(files)))


_Place = tuple[str, int, int]
_Key = tuple[str, tuple[int, ...] | None]


def _places(pairs: Pairs) -> dict[_Key, _Place]:
    """Name and offsets of each chunk -> file, start and length."""
    places: dict[_Key, _Place] = {}
    for index, value in pairs.items():
        wanted, info = _fields(index, "MetadataIndex"), _fields(value, "_StorageInfo")
        name, file = wanted.get("fqn"), info.get("relative_path")
        if type(name) is not str or type(file) is not str:
            raise _unread("a chunk without a name or a file", name)
        if info.get("transform_descriptors"):
            raise FormatError(
                "the chunks of this checkpoint were written through an extension",
                tensor=name,
                found=str(info["transform_descriptors"])[:60],
                remedy="load it with torch and the extension, and save it without",
            )
        offset = wanted.get("offset")
        key = name, None if offset is None else _numbers(offset, "the offset of a chunk")
        place = (
            file,
            whole_number(info.get("offset"), "the place of a chunk"),
            whole_number(info.get("length"), "the length of a chunk"),
        )
        if places.setdefault(key, place) != place:
            raise FormatError("a chunk of this checkpoint is in two places", tensor=name)
    return places


def _tensor(name: str, said: Mapping[str, Value], places: Mapping[_Key, _Place]) -> ShardedTensor:
    shape, chunks = _numbers(said.get("size"), "a shape"), said.get("chunks")
    dtype = _dtype(said.get("properties"))
    if not isinstance(chunks, list):
        raise _unread("a tensor without a list of chunks", chunks)
    found: list[Chunk] = []
    for chunk in chunks:
        part = _fields(chunk, "ChunkStorageMetadata")
        offsets = _numbers(part.get("offsets"), "the offset of a chunk")
        sizes = _numbers(part.get("sizes"), "the size of a chunk")
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            raise _unread("a chunk with other dimensions than its tensor", sizes)
        if not math.prod(sizes):
            continue
        if (name, offsets) not in places:
            raise FormatError("this checkpoint does not say where a chunk is", found=str(offsets))
        found.append(Chunk(offsets, sizes, *places[name, offsets]))
    found.sort(key=lambda chunk: chunk.offsets)
    check_whole(shape, found)
    return ShardedTensor(dtype, shape, tuple(found))


def check_whole(shape: tuple[int, ...], chunks: Sequence[Box]) -> None:
    """Refuse chunks, none of them empty, that are not the whole tensor, each element once.

    A box is a sum of corners with signs, and no other set of corners has the same sum: so chunks
    are the whole exactly if the signs at each corner add up to those of the whole.

    Raises:
        FormatError: They overlap or leave something out; or too many dimensions are split.
    """
    if not math.prod(shape):
        return
    whole = (tuple(0 for _ in shape), shape)
    boxes = [(chunk.offsets, chunk.sizes) for chunk in chunks]
    split = [
        at
        for at in range(len(shape))
        if any(offsets[at] or sizes[at] != shape[at] for offsets, sizes in boxes)
    ]
    if len(split) > _MAX_SPLIT:
        raise capped("a tensor that is split along too many dimensions", _MAX_SPLIT, len(split))
    signs: Counter[tuple[int, ...]] = Counter()
    for weight, (offsets, sizes) in [(-1, whole), *((1, box) for box in boxes)]:
        for ends in product((0, 1), repeat=len(split)):
            corner = tuple(
                offsets[at] + end * sizes[at] for at, end in zip(split, ends, strict=True)
            )
            signs[corner] += weight * (-1) ** sum(ends)
    if any(signs.values()):
        raise FormatError(
            "the chunks of a tensor overlap, or are not all of it",
            expected=f"chunks of {list(shape)}",
            found=f"{len(chunks)} chunks",
        )


def _leaf(name: str, tensor: ShardedTensor) -> CheckpointTensor:
    strides, step = [], 1
    for size in reversed(tensor.shape):
        strides.append(step)
        step *= size
    nbytes = math.prod(tensor.shape) * itemsize_of(tensor.dtype)
    claim = StorageClaim(name, tensor.dtype, nbytes, 0, nbytes)
    return CheckpointTensor(claim, tensor.dtype, tensor.shape, tuple(reversed(strides)), 0)


def _nested(leaves: Mapping[str, Value], paths: Value) -> Pairs:
    """What was saved, nested as ``planner_data`` says: name -> keys from the top on."""
    tree: dict[Value, Value] = {}
    for name, leaf in leaves.items():
        path = paths.get(name) if isinstance(paths, Pairs) else None
        keys = path if isinstance(path, tuple) and path else (name,)
        here = tree
        for key in keys[:-1]:
            inside = here.setdefault(key, {}) if type(key) in (str, int) else None
            if not isinstance(inside, dict):
                raise _unread("keys that contradict each other", name)
            here = inside
        if type(keys[-1]) not in (str, int) or keys[-1] in here:
            raise _unread("keys that contradict each other", name)
        here[keys[-1]] = leaf
    return _as_pairs(tree)


def _as_pairs(tree: Mapping[Value, Value], depth: int = 0) -> Pairs:
    if depth > MAX_DIMENSIONS:
        raise capped("mappings inside each other", MAX_DIMENSIONS)
    pairs = Pairs()
    for key, value in tree.items():
        pairs.put(key, _as_pairs(value, depth + 1) if isinstance(value, dict) else value)
    return pairs


def _dtype(properties: Value) -> str:
    """The element type that the properties of a tensor begin with."""
    state = properties.parts[0] if _is(properties, "TensorProperties") and properties.parts else ()
    first = state.get("dtype") if isinstance(state, Pairs) else (*state[:1], None)[0]
    dtype = dtype_of(first)
    if dtype is None:
        raise FormatError("a tensor has an element type that is not read", found=str(first)[:60])
    return dtype


def _numbers(value: Value, what: str) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > MAX_DIMENSIONS:
        raise _unread(f"{what} that is none", value)
    return tuple(whole_number(number, what) for number in value)


def _is(value: Value, name: str) -> bool:
    """Whether a value is an object of a class of DCP with this name."""
    function = value.function if isinstance(value, Call) else None
    return (
        isinstance(function, Global)
        and function.name == name
        and function.module.startswith("torch.distributed.")
    )


def _fields(value: Value, name: str) -> dict[str, Value]:
    """The attributes of an object of a class of DCP."""
    if not _is(value, name):
        raise _unread(f"something else in the place of a {name}", value)
    return {
        key: inside
        for part in value.parts
        if isinstance(part, Pairs)
        for key, inside in part.items()
        if type(key) is str
    }


def _pairs(said: Mapping[str, Value], name: str) -> Pairs:
    found = said.get(name)
    if not isinstance(found, Pairs):
        raise _unread(f"no {name}", found)
    return found


def _unread(what: str, found: Value) -> FormatError:
    return FormatError(
        f"the .metadata of this distributed checkpoint cannot be read: it has {what}",
        found=str(found)[:60] if isinstance(found, str | int | tuple) else kind_of(found),
    )
