"""Checkpoints of ``torch.distributed.checkpoint`` (DCP): what torch is told of one, and folders.

``torch.distributed.checkpoint`` is imported here, so this module is imported only where one is
read or written.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from mlstate.errors import FormatError, concerning
from mlstate.format.state_object import StateObject
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore, read_verified
from mlstate.reading import read_state
from mlstate.tensors.dcp_index import (
    INDEX_NAME,
    MAX_INDEX,
    ChunkBox,
    DcpIndex,
    chunk_name,
    index_of_plain,
)
from mlstate.tensors.memory import TORCH_DTYPES, as_bytes

__all__ = [
    "chunks_by_place",
    "metadata_of",
    "opened_checkpoint",
    "pickled_value",
    "plain_value",
    "write_dcp_folder",
]


def metadata_of(index: DcpIndex) -> Metadata:
    """What torch's planners are told of a checkpoint; where its chunks are is not in it."""
    described: dict[str, Any] = {}
    for name, tensor in index.tensors.items():
        chunks = [_chunk(box) for box in tensor.chunks]
        properties = TensorProperties(dtype=TORCH_DTYPES[tensor.dtype])
        described[name] = TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
    described |= {name: BytesStorageMetadata() for name in (*index.values, *index.pickled)}
    return Metadata(described, {name: index.paths.get(name, (name,)) for name in described})


def chunks_by_place(index: DcpIndex) -> dict[MetadataIndex, str]:
    """What torch's planners call each chunk -> its name in the state."""
    return {
        MetadataIndex(name, box.offsets): chunk_name(name, tensor.shape, box)
        for name, tensor in index.tensors.items()
        for box in tensor.chunks
    }


def opened_checkpoint(entry: StateEntry, objects: ObjectStore) -> tuple[StateObject, DcpIndex]:
    """The state object of a state and its index, verified; of a plain state, that it would have.

    Raises:
        IntegrityError: Bytes are damaged or missing.
        FormatError: The index is not one, or does not fit the tensors of the state.
    """
    state = read_state(entry, objects)
    if INDEX_NAME not in entry.files:
        return state, index_of_plain(state.specs)
    digest, what = entry.files[INDEX_NAME].digest, f"the file {INDEX_NAME!r}"
    with concerning(path=objects.locate(digest)):
        index = DcpIndex.parse(read_verified(objects, digest, what=what, max_size=MAX_INDEX))
        index.check_fits(state.specs)
    return state, index


def plain_value(data: bytes) -> Any:
    """The object in bytes that ``torch.save`` made, if it is made of tensors and plain values.

    Raises:
        FormatError: It is another object, which is not made.
    """
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # bytes of any kind may fail in any way
        raise FormatError(
            "an object of a distributed checkpoint is not plain",
            expected="what torch.load(weights_only=True) reads",
            found=str(error).strip().splitlines()[-1] if str(error).strip() else repr(error),
        ) from error


def pickled_value(value: Any) -> io.BytesIO:
    """A plain value as torch's planners want objects: the bytes that ``torch.save`` makes."""
    data = io.BytesIO()
    torch.save(value, data)
    data.seek(0)
    return data


def write_dcp_folder(
    index: DcpIndex, read: Callable[[str], torch.Tensor], folder: Path
) -> list[str]:
    """Write a checkpoint as a folder that plain ``dcp.load`` reads, with the same chunks.

    Args:
        index: What it holds.
        read: Gives a tensor of the state, verified: a chunk, or the bytes of an object.
        folder: Where to: a folder that is empty.

    Returns:
        The names of the files, the last one that which makes them a checkpoint.
    """
    metadata = metadata_of(index)
    planner = _StoredPlanner(index, read)
    writer = FileSystemWriter(folder)
    writer.set_up_storage_writer(True)
    (plan,) = writer.prepare_global_plan([SavePlan(_items(metadata))])
    written = writer.write_data(plan, planner)
    writer.finish(metadata, [written.value()])
    names = sorted(path.name for path in folder.iterdir())
    return sorted(names, key=lambda name: name.startswith("."))


class _StoredPlanner(DefaultSavePlanner):
    """Gives what a state has to a writer, each as it is asked for."""

    def __init__(self, index: DcpIndex, read: Callable[[str], torch.Tensor]) -> None:
        super().__init__()
        self._index = index
        self._names = chunks_by_place(index)
        self._read = read

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        name = write_item.index.fqn
        if write_item.type != WriteItemType.BYTE_IO:
            return self._read(self._names[write_item.index])
        if name in self._index.values:
            return pickled_value(self._index.values[name])
        with concerning(tensor=name):
            # Made anew of the plain value: torch runs what it reads in such a folder.
            return pickled_value(plain_value(bytes(as_bytes(self._read(name)))))


def _items(metadata: Metadata) -> list[WriteItem]:
    described: Mapping[str, Any] = metadata.state_dict_metadata
    items = []
    for name, one in described.items():
        if isinstance(one, BytesStorageMetadata):
            items.append(WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO))
            continue
        for at, chunk in enumerate(one.chunks):
            data = TensorWriteData(chunk, one.properties, one.size)
            place = MetadataIndex(name, chunk.offsets, at)
            items.append(WriteItem(place, WriteItemType.SHARD, tensor_data=data))
    return items


def _chunk(box: ChunkBox) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes))
