"""The plan of a save: which tensors the ranks have among them, who owns each, in which rounds."""

from __future__ import annotations

import heapq
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from mlstate.distributed.coordination import Coordinator
from mlstate.distributed.placements import Layout, Split, is_empty, layout_of, region_of, sources
from mlstate.errors import FormatError, concerning
from mlstate.format.state_object import INLINE_LIMIT
from mlstate.format.tensor_object import TensorSpec
from mlstate.tensors import Tensor, tensor_sources
from mlstate.tensors.encode import stored_form
from mlstate.tensors.memory import TORCH_DTYPES, torch_shape

__all__ = ["Held", "Plan", "Planned", "agreed_plan", "bits_of", "owners_of", "rounds_of"]

LEAST_ROUND = 8 << 20
"""The bytes of a round are those of the largest tensor, or these if that is smaller."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Planned:
    """A tensor of the whole state: its type and shape, and how it lies on the ranks.

    Others than those of ``layout`` may hold it once more, such as each rank of tensor parallelism
    what FSDP2 shards over the others: ``copies`` are all layouts.
    """

    name: str
    spec: TensorSpec
    layout: Layout
    copies: tuple[Layout, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape as torch counts it."""
        return torch_shape(self.spec)

    @property
    def dtype(self) -> torch.dtype:
        """Integers as wide as its elements."""
        return _BITS[TORCH_DTYPES[self.spec.dtype].itemsize]

    @property
    def is_small(self) -> bool:
        """Whether it is inside the state object."""
        return self.spec.nbytes < INLINE_LIMIT

    @property
    def sources(self) -> tuple[tuple[int, Any], ...]:
        """The ranks that give its values, each with its region."""
        return sources(self.layout, self.shape)


def bits_of(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor as integers, which torch copies whatever they stand for."""
    return tensor.view(_BITS[tensor.element_size()])


class Held:
    """What this rank holds of the entries of a state dict.

    Raises:
        FormatError: An entry cannot be stored; the error names it.
    """

    def __init__(self, state: Mapping[str, Any], ranks: list[int]) -> None:
        local: dict[str, Any] = {}
        self.layouts: dict[str, Layout] = {}
        self._specs: dict[str, TensorSpec] = {}
        same: dict[int, str] = {}
        self.ties: dict[str, str] = {}
        for name, value in state.items():
            local[name] = value
            if isinstance(value, torch.Tensor) and same.setdefault(id(value), name) != name:
                self.ties[name] = same[id(value)]
            if isinstance(value, DTensor):
                with concerning(tensor=name):
                    self.layouts[name] = layout_of(value, ranks)
                local[name] = value.to_local()
        self._tensors: dict[str, Tensor] = {}
        for source in tensor_sources(local):
            self._tensors[source.name] = source.tensor  # type: ignore[attr-defined]  # ours have it
            spec = source.spec
            if source.name in self.layouts:
                spec = _whole(spec, state[source.name])
            self._specs[source.name] = spec

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def bits(self, name: str) -> Tensor:
        """The bits of what this rank holds of a tensor, as they are stored, on the CPU."""
        return bits_of(stored_form(self._tensors[name]))

    def describe(self) -> bytes:
        """The names with type, shape and layout: the same text on ranks that hold equal parts."""
        layouts: dict[Layout, int] = {}
        tensors = []
        for name, spec in self._specs.items():
            layout = self.layouts.get(name)
            number = None if layout is None else layouts.setdefault(layout, len(layouts))
            tensors.append([name, spec.dtype, spec.shape, number, self.ties.get(name)])
        text = json.dumps({"layouts": [astuple(one) for one in layouts], "tensors": tensors})
        return zlib.compress(text.encode(), 1)


def _whole(spec: TensorSpec, tensor: DTensor) -> TensorSpec:
    """The spec of all of a tensor, from that of a part; 4-bit elements come in pairs."""
    pair = 2 if spec.dtype == "F4" else 1
    shape = tuple(tensor.shape)
    return TensorSpec(spec.dtype, (*shape[:-1], shape[-1] * pair) if shape else shape)


@dataclass(frozen=True)
class Plan:
    """All tensors of the state, by name; `ties` are names of one tensor, each with the first."""

    tensors: Mapping[str, Planned]
    ties: Mapping[str, str]

    @property
    def small(self) -> list[Planned]:
        """Those that are inside the state object."""
        return [tensor for tensor in self.tensors.values() if tensor.is_small]

    @property
    def large(self) -> list[Planned]:
        """All others, of names that are one tensor the first."""
        return [
            tensor
            for name, tensor in self.tensors.items()
            if not tensor.is_small and name not in self.ties
        ]


def agreed_plan(job: Coordinator, held: Held, what: str) -> Plan:
    """Join what all ranks hold: pipeline stages have other names, copies the same ones.

    Raises:
        FormatError: Ranks save under other keys, or say different things of one name.
    """
    texts = job.gathered("plan", what.encode() + b"\n" + held.describe())
    by_text: dict[bytes, list[int]] = {}
    for rank, text in enumerate(texts):
        by_text.setdefault(text, []).append(rank)
    said: dict[str, dict[tuple[TensorSpec, Layout | None], list[int]]] = {}
    ties: dict[str, str] = {}
    for text, ranks in by_text.items():
        other, _, body = text.partition(b"\n")
        if other.decode() != what:
            raise FormatError(
                "the ranks of a group do one thing together, and these do not; nothing was done",
                expected=f"{what}, as rank {job.rank}",
                found=f"{other.decode()}, on rank {ranks[0]}",
            )
        for name, spec, layout, tie in _parsed(body):
            said.setdefault(name, {}).setdefault((spec, layout), []).extend(ranks)
            if tie is not None:
                ties.setdefault(name, tie)
    tensors = {name: _joined(name, said[name]) for name in sorted(said)}
    alike = {
        name: first
        for name, first in ties.items()
        if (tensors[first].spec, tensors[first].layout)
        == (tensors[name].spec, tensors[name].layout)
    }
    return Plan(tensors, alike)


def _parsed(body: bytes) -> Iterable[tuple[str, TensorSpec, Layout | None, str | None]]:
    read = json.loads(zlib.decompress(body))
    layouts = [
        Layout(tuple(ranks), tuple(mesh), tuple(Split(*split) for split in splits))
        for ranks, mesh, splits in read["layouts"]
    ]
    for name, dtype, shape, number, tie in read["tensors"]:
        layout = None if number is None else layouts[number]
        yield name, TensorSpec(dtype, tuple(shape)), layout, tie


def _joined(name: str, said: Mapping[tuple[TensorSpec, Layout | None], list[int]]) -> Planned:
    ordered = sorted(said.items(), key=lambda one: min(one[1]))
    first = ordered[0]
    for second in ordered[1:]:
        if _is_copy(*first[0], *second[0]):
            continue
        raise FormatError(
            "ranks hold different things under one name; nothing was stored",
            tensor=name,
            expected=f"{_shown(*first[0])}, as on rank {min(first[1])}",
            found=f"{_shown(*second[0])}, on rank {min(second[1])}",
            remedy="give each tensor a name of its own, as pipeline stages have, or one placement",
        )
    layouts = []
    for (spec, layout), ranks in ordered:
        if layout is None:
            layouts.append(Layout.whole_on(sorted(ranks)))
            continue
        lacking = {rank for rank, _ in sources(layout, torch_shape(spec))} - {*ranks}
        if lacking:
            raise FormatError(
                "a rank that holds a part of this tensor did not give it; nothing was stored",
                tensor=name,
                found=f"rank {min(lacking)} has no entry of this name",
                remedy="save the same entries on all ranks of the tensor's mesh",
            )
        layouts.append(layout)
    return Planned(name, first[0][0], layouts[0], tuple(layouts))


def _is_copy(
    spec: TensorSpec, layout: Layout | None, other_spec: TensorSpec, other: Layout | None
) -> bool:
    """Whether a tensor is placed on other ranks as the first one is on its own."""
    return (
        layout is not None
        and other is not None
        and (spec, layout.mesh, layout.splits) == (other_spec, other.mesh, other.splits)
        and not {*layout.ranks} & {*other.ranks}
    )


def _shown(spec: TensorSpec, layout: Layout | None) -> str:
    placed = "whole" if layout is None else f"split {[astuple(s) for s in layout.splits]}"
    return f"{spec.dtype} {list(spec.shape)}, {placed}"


def owners_of(sizes: Mapping[str, int], holders: Mapping[str, Iterable[int]]) -> dict[str, int]:
    """The owner of each: the one of its holders that has the fewest bytes so far, largest first."""
    loads: dict[int, int] = {}
    owners = {}
    queues: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        ranks = tuple(holders[name])
        queue = queues.setdefault(ranks, [(0, rank) for rank in sorted(ranks)])
        while queue[0][0] != loads.get(queue[0][1], 0):  # it has got others since
            heapq.heapreplace(queue, (loads.get(queue[0][1], 0), queue[0][1]))
        load, rank = queue[0]
        owners[name] = rank
        loads[rank] = load + sizes[name]
    return owners


def rounds_of(sizes: Mapping[str, int], owners: Mapping[str, int], budget: int) -> list[list[str]]:
    """The tensors in rounds, in each of which an owner has at most so many bytes, or one tensor."""
    rounds: list[list[str]] = []
    filled: dict[int, tuple[int, int]] = {}  # of each owner, its round and the bytes in it
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        number, used = filled.get(owners[name], (0, 0))
        if used and used + sizes[name] > budget:
            number, used = number + 1, 0
        filled[owners[name]] = (number, used + sizes[name])
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(name)
    return rounds


def holders_of(tensor: Planned) -> tuple[int, ...]:
    """The ranks that hold something of a tensor."""
    shape = tensor.shape
    return tuple(
        rank
        for rank in sorted(tensor.layout.ranks)
        if not is_empty(region_of(tensor.layout, shape, rank))
    )
