"""Placements: which part of a tensor each rank holds. Computed, without asking any rank.

A region is a list of runs of indices for each dimension. It is one box for most placements; after a
`_StridedShard`, as FSDP2 over tensor parallelism has it, a rank holds several runs of a dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import prod
from typing import Any

from torch.distributed.tensor import DTensor, Replicate, Shard

from mlstate.errors import FormatError
from mlstate.phrases import Phrase

__all__ = [
    "Layout",
    "Region",
    "Split",
    "boxes",
    "is_empty",
    "layout_of",
    "region_of",
    "replicas",
    "rows",
    "size_of",
    "sources",
]

Run = tuple[int, int]
"""The first index, and the one behind the last."""
Region = tuple[tuple[Run, ...], ...]
"""The runs of each dimension, in order; the part of a tensor that has these indices in each."""
Box = tuple[slice, ...]


@dataclass(frozen=True, order=True)
class Split:
    """A dimension of a tensor, split over one of the mesh.

    Attributes:
        mesh_dim: The dimension of the mesh.
        dim: The dimension of the tensor.
        factor: More than 1 for a `_StridedShard`: into so many pieces first, each then over the
            ranks.
    """

    mesh_dim: int
    dim: int
    factor: int = 1


@dataclass(frozen=True, order=True)
class Layout:
    """A mesh of ranks, and how a tensor is split over it; where it is not split it is replicated.

    Attributes:
        ranks: The ranks of the mesh, the last dimension first, as in memory.
        mesh: Its shape.
        splits: The splits, in the order in which they are made.
    """

    ranks: tuple[int, ...]
    mesh: tuple[int, ...]
    splits: tuple[Split, ...] = ()

    @classmethod
    def whole_on(cls, ranks: Sequence[int]) -> Layout:
        """The layout of a tensor that each of these ranks holds whole."""
        return cls(tuple(ranks), (len(ranks),))


def layout_of(tensor: DTensor, ranks: Sequence[int]) -> Layout:
    """How a DTensor lies; ``ranks`` are the global numbers of those that save or load.

    Raises:
        FormatError: Its values are partial sums, it is placed in a way that is not known, or on
            ranks that take no part.
    """
    mesh = tensor.device_mesh
    own = {number: rank for rank, number in enumerate(ranks)}
    try:
        listed = tuple(own[number] for number in mesh.mesh.flatten().tolist())
    except KeyError as missing:
        raise FormatError(
            "it lies on ranks that take no part in this",
            found=f"global rank {missing}",
            remedy=Phrase(
                "give group= a process group that has all ranks of the tensor's mesh", ""
            ),
        ) from None
    splits = []
    for mesh_dim, placement in enumerate(tensor.placements):
        if isinstance(placement, Replicate):
            continue
        if placement.is_partial():
            raise FormatError(
                "it is a sum of which each rank has a part, and has no value yet",
                found=placement,
                remedy="redistribute it to Replicate on all ranks first, which sums it",
            )
        factor = getattr(placement, "split_factor", 1)
        if not isinstance(placement, Shard) and not hasattr(placement, "split_factor"):
            raise FormatError(
                "it is placed in a way that is not known here",
                expected="Shard, _StridedShard or Replicate",
                found=placement,
                remedy="redistribute it to one of these first, on all ranks",
            )
        dim: Any = placement.dim  # type: ignore[attr-defined]  # both have it
        splits.append(Split(mesh_dim, int(dim) % max(1, tensor.dim()), int(factor)))
    return Layout(listed, tuple(mesh.mesh.shape), _in_order(tensor, splits))


def _in_order(tensor: DTensor, splits: list[Split]) -> tuple[Split, ...]:
    """The splits in the order in which they are made: the mesh's, or what the tensor says."""
    entries = getattr(tensor._spec, "shard_order", None)
    if not entries or any(split.factor > 1 for split in splits):
        return tuple(splits)
    order = {mesh_dim: i for entry in entries for i, mesh_dim in enumerate(entry.mesh_dims)}
    return tuple(sorted(splits, key=lambda split: (order.get(split.mesh_dim, 0), split.mesh_dim)))


@lru_cache(1 << 16)
def region_of(layout: Layout, shape: tuple[int, ...], rank: int) -> Region:
    """The part of a tensor of this shape that a rank holds; nothing of it outside of the mesh."""
    if rank not in layout.ranks:
        return tuple(() for _ in shape) or (((),))
    position = layout.ranks.index(rank)
    runs: list[tuple[Run, ...]] = [((0, size),) if size else () for size in shape]
    for split in layout.splits:
        count = layout.mesh[split.mesh_dim]
        place = position // prod(layout.mesh[split.mesh_dim + 1 :]) % count
        runs[split.dim] = _shard(runs[split.dim], count, place, split.factor)
    return tuple(runs)


def _shard(runs: tuple[Run, ...], count: int, place: int, factor: int) -> tuple[Run, ...]:
    """What is left of these runs on one of so many ranks, as torch chunks."""
    found: list[Run] = []
    for piece in range(factor):
        outer = _chunk(runs, factor, piece)
        for start, end in _chunk(outer, count, place):
            if found and found[-1][1] == start:
                found[-1] = (found[-1][0], end)
            else:
                found.append((start, end))
    return tuple(found)


def _chunk(runs: tuple[Run, ...], count: int, place: int) -> tuple[Run, ...]:
    total = _length(runs)
    size = -(-total // count)
    return _cut(runs, min(place * size, total), min((place + 1) * size, total))


def _cut(runs: tuple[Run, ...], first: int, behind: int) -> tuple[Run, ...]:
    """The part of these runs between two positions within them."""
    found, position = [], 0
    for start, end in runs:
        low, high = max(first, position), min(behind, position + end - start)
        if low < high:
            found.append((start + low - position, start + high - position))
        position += end - start
    return tuple(found)


def _length(runs: tuple[Run, ...]) -> int:
    return sum(end - start for start, end in runs)


def size_of(region: Region) -> tuple[int, ...]:
    """The shape of what a rank holds of a tensor."""
    return tuple(_length(runs) for runs in region)


def is_empty(region: Region) -> bool:
    """Whether a region has no elements. One of a scalar, without dimensions, has one."""
    return any(not _length(runs) for runs in region)


@lru_cache(4096)
def sources(layout: Layout, shape: tuple[int, ...]) -> tuple[tuple[int, Region], ...]:
    """The ranks that give a tensor's values: the lowest of those that hold the same part."""
    first: dict[Region, int] = {}
    for rank in sorted(layout.ranks):
        region = region_of(layout, shape, rank)
        if not is_empty(region):
            first.setdefault(region, rank)
    return tuple((rank, region) for region, rank in first.items())


@lru_cache(4096)
def replicas(layouts: tuple[Layout, ...], shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The ranks that hold the same part of a tensor, together; none of a part held once."""
    found: dict[Region, list[int]] = {}
    for rank, layout in sorted((rank, one) for one in layouts for rank in one.ranks):
        region = region_of(layout, shape, rank)
        if not is_empty(region):
            found.setdefault(region, []).append(rank)
    return tuple(tuple(ranks) for ranks in found.values() if len(ranks) > 1)


def boxes(region: Region) -> Iterator[tuple[Box, Box]]:
    """The boxes of a region: of each its place in what the rank holds, and in the whole tensor."""
    spans = []
    for runs in region:
        ends = [0]
        for start, end in runs:
            ends.append(ends[-1] + end - start)
        spans.append(
            [
                (slice(*inside), slice(*run))
                for inside, run in zip(pairwise(ends), runs, strict=True)
            ]
        )
    for box in product(*spans):
        yield tuple(inside for inside, _ in box), tuple(whole for _, whole in box)


def rows(region: Region, width: int, most: int) -> list[Region]:
    """A region in slabs of at most so many bytes, for elements of ``width``, in memory's order.

    They are cut along the first dimension that has more than one index, an index at least.
    """
    shape = size_of(region)
    dim = next((i for i, size in enumerate(shape) if size > 1), None)
    if dim is None:
        return [region]
    step = max(1, most // (width * prod(shape[dim + 1 :])))
    return [
        (*region[:dim], _cut(region[dim], start, min(start + step, shape[dim])), *region[dim + 1 :])
        for start in range(0, shape[dim], step)
    ]
