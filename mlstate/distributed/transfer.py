"""Transfers between ranks: parts of tensors to the rank that has the whole, or from it.

A part is contiguous in the memory of its rank. Where it is not contiguous within the whole it goes
in slabs, a few of which are in memory at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from mlstate.distributed.coordination import Coordinator
from mlstate.distributed.placements import Region, boxes, rows, size_of
from mlstate.tensors import Tensor

__all__ = ["Part", "copy_part", "cpu_group", "fill", "move"]

_SLAB = 2 << 20
_SLABS = 4
"""Slabs under way at once."""
_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""By the group of the job itself: one that is made anew has the name of the old one."""


@dataclass(frozen=True)
class Part:
    """A part of a tensor: ``rank`` holds it, and ``whole`` is the rank that has all of it."""

    name: str
    rank: int
    whole: int
    region: Region
    shape: tuple[int, ...]  # of the whole

    @property
    def is_block(self) -> bool:
        """Whether it is contiguous in the whole: rows of a matrix, say."""
        if any(len(runs) != 1 for runs in self.region):
            return False
        sizes = size_of(self.region)
        dim = next((i for i, size in enumerate(sizes) if size > 1), len(sizes))
        return sizes[dim + 1 :] == self.shape[dim + 1 :]

    def slabs(self, width: int) -> list[Region]:
        """The messages that it goes in, for elements of so many bytes."""
        return [self.region] if self.is_block else rows(self.region, width, _SLAB)


def cpu_group(job: Coordinator) -> Any:
    """A group of the same ranks whose messages are in the memory of the CPU.

    That of the job itself, if it can do that; else a gloo group, made once, by all ranks.
    """
    group = job.group
    if "gloo" in str(dist.get_backend_config(group)):
        return group
    if group not in _groups:
        made = job.exchange(
            lambda: dist.new_group(job.global_ranks, backend="gloo", use_local_synchronization=True)
        )
        _groups[group] = made
    return _groups[group]


def fill(whole: Tensor, region: Region, part: Tensor) -> None:
    """Copy what a rank holds, in any shape, into its place in the whole."""
    shaped = part.view(size_of(region))
    for inside, outside in boxes(region):
        whole[outside].copy_(shaped[inside])


def copy_part(part: Tensor, region: Region, whole: Tensor) -> None:
    """Copy its part out of the whole."""
    shaped = part.view(size_of(region))
    for inside, outside in boxes(region):
        shaped[inside].copy_(whole[outside])


def move(
    job: Coordinator,
    group: Any,
    listed: Iterable[Part],
    parts: Callable[[Part], Tensor],
    wholes: Mapping[str, Tensor],
    *,
    gather: bool,
) -> None:
    """Send and receive parts: all ranks call it with the same list, in a thread that may wait.

    Args:
        job: The ranks.
        group: From `cpu_group`.
        listed: The parts that move.
        parts: Gives the memory of a part that this rank holds, integers in one dimension.
        wholes: The tensors that this rank has whole, as integers.
        gather: From parts to wholes; else the other way round.
    """
    ends = _Ends(job, group)
    later: list[Callable[[], Iterable[Callable[[], None]]]] = []
    for part in listed:
        if job.rank not in (part.rank, part.whole):
            continue
        if part.rank == part.whole:
            _within(parts(part), part.region, wholes[part.name], gather=gather)
        elif job.rank == part.rank:
            ends.part(parts(part), part, sends=gather)
        else:
            later.append(ends.whole(wholes[part.name], part, sends=not gather))
    ends.in_turns(later)
    ends.finish()


def _within(part: Tensor, region: Region, whole: Tensor, *, gather: bool) -> None:
    if gather:
        fill(whole, region, part)
    else:
        copy_part(part, region, whole)


class _Ends:
    """The messages that this rank sends and receives in one go."""

    def __init__(self, job: Coordinator, group: Any) -> None:
        self._ranks, self._group = job.global_ranks, group
        self._tags: dict[tuple[int, int], int] = {}
        self._works: list[tuple[Any, Tensor]] = []

    def part(self, memory: Tensor, part: Part, *, sends: bool) -> None:
        """Begin to send, or receive, all messages of a part that is here."""
        position = 0
        for slab in part.slabs(memory.element_size()):
            piece = memory[position : position + prod(size_of(slab))]
            self._works.append(
                (self._start(piece, part.whole, self._tag(part), sends=sends), piece)
            )
            position += len(piece)

    def whole(
        self, whole: Tensor, part: Part, *, sends: bool
    ) -> Callable[[], Iterable[Callable[[], None]]]:
        """The other end of such a part: what begins a slab, and then waits for it, one by one."""
        slabs = part.slabs(whole.element_size())
        tags = [self._tag(part) for _ in slabs]

        def begin() -> Iterable[Callable[[], None]]:
            for slab, tag in zip(slabs, tags, strict=True):
                if part.is_block:
                    box = next(iter(boxes(slab)))[1]
                    memory = whole[box].view(-1)
                else:
                    memory = torch.empty(prod(size_of(slab)), dtype=whole.dtype, device="cpu")
                if sends and not part.is_block:
                    copy_part(memory, slab, whole)
                work = self._start(memory, part.rank, tag, sends=sends)

                def end(work: Any = work, memory: Tensor = memory, slab: Region = slab) -> None:
                    work.wait()
                    if not sends and not part.is_block:
                        fill(whole, slab, memory)

                yield end

        return begin

    def in_turns(self, later: list[Callable[[], Iterable[Callable[[], None]]]]) -> None:
        """Go through such slabs, of all parts in turn, a few at once."""
        running = deque(iter(begin()) for begin in later)
        under_way: deque[Callable[[], None]] = deque()
        while running:
            one = running.popleft()
            end = next(one, None)
            if end is None:
                continue
            running.append(one)
            under_way.append(end)
            if len(under_way) > _SLABS:
                under_way.popleft()()
        for end in under_way:
            end()

    def finish(self) -> None:
        """Wait for the rest."""
        for work, _ in self._works:
            work.wait()

    def _tag(self, part: Part) -> int:
        """The number of the next message between two ranks, the same at both ends."""
        ends = (part.rank, part.whole)
        self._tags[ends] = self._tags.get(ends, -1) + 1
        return self._tags[ends]

    def _start(self, memory: Tensor, peer: int, tag: int, *, sends: bool) -> Any:
        call = dist.isend if sends else dist.irecv
        # Bytes: gloo has not all types of integers.
        return call(memory.view(torch.uint8), self._ranks[peer], self._group, tag)
