"""What a rank stores for the items of a plan of DCP, and the state that all of it becomes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem

from mlstate.digests import Bytes
from mlstate.errors import FormatError, concerning
from mlstate.format.encode import TensorSource
from mlstate.format.state_object import InlineTensor, StateObject, TensorRef, check_name
from mlstate.format.tensor_object import DATA_OFFSET, TensorSpec
from mlstate.objects import ObjectStore
from mlstate.tensors import tensor_sources
from mlstate.tensors.dcp import plain_value
from mlstate.tensors.dcp_index import (
    ChunkBox,
    ChunkedTensor,
    DcpIndex,
    chunk_name,
    is_plain_value,
)
from mlstate.tensors.memory import spec_of

__all__ = [
    "ChunkSource",
    "Entry",
    "Objects",
    "PlainValue",
    "StoredChunk",
    "bytes_source",
    "joined",
    "nbytes",
]

_PLAIN = (
    "save plain values in its place: numbers, texts, tensors, and lists and mappings of them; "
    "of an array of NumPy, torch.from_numpy(array)"
)


@dataclass(frozen=True)
class PlainValue:
    """A plain value, which the index holds."""

    value: Any


Entry = TensorRef | InlineTensor | PlainValue
"""What a rank tells the coordinator of an item: the small ones come along."""


def nbytes(stored: Entry) -> int:
    """The bytes of it, which DCP adds up."""
    return len(repr(stored.value)) if isinstance(stored, PlainValue) else stored.spec.nbytes


class Objects:
    """The objects among the items of a plan, which are looked at before anything is stored."""

    def __init__(self) -> None:
        self._known: dict[bytes, Any] = {}  # many parameters have the same options

    def look(self, item: WriteItem, planner: SavePlanner) -> tuple[PlainValue | None, bytes]:
        """The plain value of an item, or None if the index cannot hold it; and its bytes.

        Raises:
            FormatError: It is no object that could be read again without running anything.
        """
        with concerning(tensor=item.index.fqn):
            data = bytes(planner.resolve_data(item).getbuffer())  # type: ignore[union-attr]
            if data not in self._known:
                try:
                    self._known[data] = plain_value(data)
                except FormatError as error:
                    error.message = "an object cannot be kept in a checkpoint; nothing was saved"
                    error.remedy = _PLAIN
                    raise
        value = self._known[data]
        return (PlainValue(value) if is_plain_value(value) else None), data


def bytes_source(item: WriteItem, data: bytes) -> TensorSource:
    """The bytes of an object as a tensor of the state."""
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return tensor_sources({item.index.fqn: raw})[0]


@dataclass(frozen=True)
class ChunkSource:
    """A chunk that a planner gives when it is asked for; see `TensorSource`."""

    name: str
    spec: TensorSpec
    item: WriteItem
    planner: SavePlanner

    @classmethod
    def of(cls, item: WriteItem, planner: SavePlanner) -> ChunkSource:
        """The chunk of an item, of which nothing but type and shape is looked at.

        Raises:
            FormatError: The format has no such element type, or the name is not possible.
        """
        name, said = item.index.fqn, item.tensor_data
        assert said is not None
        with concerning(tensor=name):
            box = _box(said.chunk)
            blank = torch.empty(box.sizes, dtype=said.properties.dtype, device="meta")
            chunk = check_name(chunk_name(name, tuple(said.size), box))
            return cls(chunk, spec_of(blank), item, planner)

    @property
    def memory(self) -> Hashable:
        """See `TensorSource.memory`."""
        return self.name

    @contextmanager
    def data(self) -> Iterator[Bytes]:
        """See `TensorSource.data`."""
        with concerning(tensor=self.name):
            (source,) = tensor_sources({self.name: self.planner.resolve_data(self.item)})
            if source.spec != self.spec:
                raise FormatError(
                    "a planner gives another tensor than it announced",
                    expected=f"{self.spec.dtype} {list(self.spec.shape)}",
                    found=f"{source.spec.dtype} {list(source.spec.shape)}",
                )
            with source.data() as data:
                yield data


@dataclass(frozen=True)
class StoredChunk:
    """A chunk that a rank has stored; its bytes are needed only if it is gone since."""

    name: str
    ref: TensorRef
    objects: ObjectStore

    @property
    def spec(self) -> TensorSpec:
        """See `TensorSource.spec`."""
        return self.ref.spec

    @property
    def memory(self) -> Hashable:
        """See `TensorSource.memory`."""
        return self.ref.digest

    @contextmanager
    def data(self) -> Iterator[Bytes]:
        """See `TensorSource.data`."""
        with concerning(tensor=self.name), self.objects.open(self.ref.digest) as file:
            yield memoryview(file.read())[DATA_OFFSET:]


def joined(
    metadata: Metadata, stored: Mapping[MetadataIndex, Entry]
) -> tuple[DcpIndex, StateObject]:
    """The index of a checkpoint, and its state object, of what all ranks have stored.

    Raises:
        FormatError: It could not be read again: names that are there twice, too large an index.
    """
    tensors: dict[str, ChunkedTensor] = {}
    values: dict[str, Any] = {}
    refs: dict[str, TensorRef] = {}
    inline: dict[str, InlineTensor] = {}
    pickled: set[str] = set()

    def take(name: str, place: MetadataIndex) -> Entry:
        entry = stored[place]
        if isinstance(entry, TensorRef):
            refs[name] = entry
        elif isinstance(entry, InlineTensor):
            inline[name] = entry
        return entry

    for name, said in metadata.state_dict_metadata.items():
        if isinstance(said, BytesStorageMetadata):
            entry = take(name, MetadataIndex(name))
            if isinstance(entry, PlainValue):
                values[name] = entry.value
            else:
                pickled.add(name)
        else:
            tensors[name] = _tensor(name, said, take)
    state = StateObject(inline, refs)
    index = DcpIndex(tensors, values, frozenset(pickled), _paths(metadata))
    DcpIndex.parse(index.encode()).check_fits(state.specs)
    return index, state


def _tensor(
    name: str, said: TensorStorageMetadata, take: Callable[[str, MetadataIndex], Entry]
) -> ChunkedTensor:
    dtype = spec_of(torch.empty(0, dtype=said.properties.dtype, device="meta")).dtype
    shape = tuple(said.size)
    boxes = tuple(map(_box, said.chunks))
    for box in boxes:
        take(chunk_name(name, shape, box), MetadataIndex(name, box.offsets))
    return ChunkedTensor(dtype, shape, boxes)


def _paths(metadata: Metadata) -> dict[str, tuple[str | int, ...]]:
    """The paths of entries that were nested; a planner that does not flatten gives none."""
    said = metadata.planner_data or {}
    paths = {name: tuple(said[name]) for name in metadata.state_dict_metadata if name in said}
    for name, path in paths.items():
        if not all(type(key) in (str, int) for key in path):
            raise FormatError(
                "a path of a checkpoint has other keys than texts and numbers",
                tensor=name,
                found=repr(path),
            )
    return {name: path for name, path in paths.items() if path != (name,)}


def _box(chunk: Any) -> ChunkBox:
    return ChunkBox(tuple(chunk.offsets), tuple(chunk.sizes))
