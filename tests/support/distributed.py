"""Distributed checkpoints: as torch writes them, and split in any way, as many ranks would."""

from __future__ import annotations

import itertools
import math
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata as meta
from torch.distributed.checkpoint.filesystem import _StorageInfo

__all__ = ["Box", "grid", "metadata_of", "save_distributed", "write_chunks"]

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""The offsets and sizes of a chunk."""


def save_distributed(value: Mapping[str, Any], folder: Path, **options: Any) -> Path:
    """Save by torch, in this process alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if options:
            dcp.save({**value}, storage_writer=dcp.FileSystemWriter(folder, **options))
        else:
            dcp.save({**value}, checkpoint_id=folder)
    return folder


def grid(shape: Sequence[int], cuts: Sequence[Sequence[int]]) -> list[Box]:
    """The boxes between cuts along each dimension."""
    ends = [
        sorted({0, size, *(cut for cut in own if 0 < cut < size)})
        for size, own in zip(shape, cuts, strict=True)
    ]
    spans = [[*itertools.pairwise(own)] for own in ends]
    return [
        (tuple(a for a, _ in box), tuple(b - a for a, b in box))
        for box in itertools.product(*spans)
    ]


def write_chunks(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    boxes: Mapping[str, list[Box]],
    ranks: int = 2,
) -> meta.Metadata:
    """Write the chunks of tensors into files of ranks in turn, and the ``.metadata`` of torch."""
    folder.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {}
    places: dict[Any, Any] = {}
    files = [bytearray() for _ in range(ranks)]
    turn = itertools.cycle(range(ranks))
    for name, tensor in tensors.items():
        chunks = []
        for number, (offsets, sizes) in enumerate(boxes[name]):
            rank = next(turn)
            part = tensor[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))]
            start = len(files[rank])
            files[rank] += _saved(part.clone())
            chunks.append(meta.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            index = meta.MetadataIndex(name, torch.Size(offsets), number)
            length = len(files[rank]) - start
            places[index] = _StorageInfo(f"__{rank}_0.distcp", start, length)
        properties = meta.TensorProperties.create_from_tensor(tensor)
        described[name] = meta.TensorStorageMetadata(properties, tensor.size(), chunks)
    for rank, data in enumerate(files):
        (folder / f"__{rank}_0.distcp").write_bytes(data)
    said = meta.Metadata(described, {name: (name,) for name in tensors}, places)
    (folder / ".metadata").write_bytes(pickle.dumps(said))
    return said


def metadata_of(folder: Path) -> meta.Metadata:
    """What torch wrote, to be changed and written again."""
    found = pickle.loads((folder / ".metadata").read_bytes())
    assert isinstance(found, meta.Metadata)
    return found


def _saved(tensor: torch.Tensor) -> bytes:
    import io

    assert math.prod(tensor.shape) == tensor.numel()
    file = io.BytesIO()
    torch.save(tensor, file)
    return file.getvalue()
