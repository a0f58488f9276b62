"""The tensors of a distributed checkpoint (DCP) on this machine, read and joined without torch."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from mlstate.candidates import missing_shards
from mlstate.digests import Bytes
from mlstate.errors import FormatError, concerning
from mlstate.files import read_file
from mlstate.format.encode import TensorSource
from mlstate.locations import check_file_names
from mlstate.pickled import BytesSource, CheckpointTensor, FileSource, read_checkpoint, spec_of
from mlstate.pickled.caps import MAX_PICKLE
from mlstate.pickled.distributed import Chunk, Distributed, ShardedTensor, read_distributed
from mlstate.pickled.select import Selected, choose_tensors
from mlstate.pickled.source import Part
from mlstate.pickled.tensor import itemsize_of
from mlstate.weights.checkpoints import TensorInCheckpoint
from mlstate.weights.opened import ONE_COPY, PIECE, OpenFile, TensorInFile

__all__ = ["TensorInChunks", "distributed_sources", "files_of"]

_SAFETENSORS = b"\0\0\0\0{"


@dataclass(frozen=True)
class TensorInChunks(TensorInFile):
    """A tensor whose parts lie in several places.

    Attributes:
        tensor: Its shape as torch counts it, and its chunks.
        parts: What each chunk is in its file.
    """

    tensor: ShardedTensor = field(repr=False)
    parts: tuple[TensorInCheckpoint, ...] = field(repr=False)

    @property
    def memory(self) -> Hashable:
        """See `TensorSource.memory`."""
        return id(self.parts)

    def pieces(self) -> Iterator[Bytes]:
        """Its bytes, piece by piece: of a tensor that is split by rows never the whole."""
        if all(chunk.sizes[1:] == self.tensor.shape[1:] for chunk in self.tensor.chunks):
            for part in self.parts:
                yield from part.pieces()
            return
        with ONE_COPY:
            whole = memoryview(self._joined())
        for at in range(0, len(whole), PIECE):
            yield whole[at : at + PIECE]

    @contextmanager
    def data(self) -> Iterator[Bytes]:
        """See `TensorSource.data`."""
        with ONE_COPY:
            yield self._joined()

    def _joined(self) -> bytearray:
        shape = self.tensor.shape
        whole = bytearray(self.spec.nbytes)
        itemsize = itemsize_of(self.tensor.dtype)
        for chunk, part in zip(self.tensor.chunks, self.parts, strict=True):
            _put(whole, b"".join(part.pieces()), shape, chunk, itemsize)
        return whole


def _put(
    whole: bytearray, data: bytes, shape: tuple[int, ...], chunk: Chunk, itemsize: int
) -> None:
    """Copy a chunk to its place, as many elements at a time as lie side by side in both."""
    sizes = chunk.sizes
    inner = max((at for at in range(len(shape)) if sizes[at] != shape[at]), default=0)
    steps = [itemsize * math.prod(shape[at + 1 :]) for at in range(len(shape))]
    run = itemsize * math.prod(sizes[inner:])
    first = sum(offset * step for offset, step in zip(chunk.offsets, steps, strict=True))
    have = memoryview(data)
    for number, index in enumerate(product(*map(range, sizes[:inner]))):
        at = first + sum(i * step for i, step in zip(index, steps[:inner], strict=True))
        whole[at : at + run] = have[number * run : (number + 1) * run]


def files_of(metadata: Path) -> list[Path]:
    """The files with the chunks of a distributed checkpoint, by its ``.metadata``.

    Raises:
        FormatError: It cannot be read, or some of them are missing.
    """
    return _files(_read(metadata), metadata.parent)


def distributed_sources(
    metadata: Path, stack: ExitStack, *, select: str | None = None, tensors_only: bool = False
) -> tuple[list[TensorSource], Selected]:
    """The tensors of a distributed checkpoint; nothing in it is run, and no torch is imported.

    Args:
        metadata: The path of its ``.metadata``.
        stack: Keeps its files open.
        select: The dotted path of the state dict inside.
        tensors_only: Pass over entries that are no tensors.

    Returns:
        A source for each tensor, and what was chosen inside.

    Raises:
        FormatError: See `read_distributed`, `read_checkpoint` and `choose_tensors`; a file is
            missing; a chunk is not what the ``.metadata`` says; or the format cannot hold a tensor.
    """
    found = _read(metadata)
    folder = metadata.parent
    size = sum(file.stat().st_size for file in _files(found, folder))
    chosen = choose_tensors(found.root, size, select, tensors_only)
    files: dict[str, OpenFile] = {}
    sources: list[TensorSource] = []
    for name, leaf in chosen.tensors.items():
        tensor = found.tensors[leaf.storage.key]
        spec = spec_of(name, leaf)
        parts = []
        for chunk in tensor.chunks:
            if chunk.file not in files:
                path = folder / chunk.file
                file = stack.enter_context(path.open("rb"))
                files[chunk.file] = OpenFile(file, str(path))
            with concerning(tensor=name, path=files[chunk.file].path):
                parts.append(_part(name, tensor.dtype, chunk, files[chunk.file]))
        whole = len(parts) == 1 and parts[0].spec == spec
        sources.append(parts[0] if whole else TensorInChunks(name, spec, tensor, tuple(parts)))
    return sources, chosen


def _read(metadata: Path) -> Distributed:
    with concerning(path=metadata):
        return read_distributed(BytesSource(read_file(metadata, MAX_PICKLE)))


def _files(found: Distributed, folder: Path) -> list[Path]:
    check_file_names(found.files)
    files = [folder / name for name in found.files]
    if lacking := [file.name for file in files if not file.is_file()]:
        raise missing_shards(lacking, folder)
    return files


def _part(name: str, dtype: str, chunk: Chunk, file: OpenFile) -> TensorInCheckpoint:
    """A chunk in its file: a checkpoint of one tensor, from a place in it on."""
    source = Part(FileSource(file.file), chunk.start, chunk.length)
    if source.read(0, min(9, chunk.length))[4:] == _SAFETENSORS:
        raise FormatError(
            "this distributed checkpoint was written as safetensors, which torch cannot load again",
            remedy="save it with the usual serialization_format, or with HuggingFaceStorageWriter",
        )
    checkpoint = read_checkpoint(source)
    tensor = checkpoint.root
    if (
        not isinstance(tensor, CheckpointTensor)
        or tensor.dtype != dtype
        or tensor.shape != chunk.sizes
    ):
        raise FormatError(
            "a chunk of this distributed checkpoint is not what its .metadata says",
            expected=f"{dtype} {list(chunk.sizes)}",
            found=f"{tensor.dtype} {list(tensor.shape)}"
            if isinstance(tensor, CheckpointTensor)
            else type(tensor).__name__,
        )
    places = {
        key: replace(place, start=place.start + chunk.start)
        for key, place in checkpoint.places.items()
    }
    moved = replace(checkpoint, places=places)
    return TensorInCheckpoint(name, spec_of(name, tensor), tensor, moved, file)
