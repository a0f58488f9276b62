"""Gathering: tensors come together on their owners, round by round, and are stored there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch

from mlstate.digests import Digest
from mlstate.distributed.coordination import Coordinator
from mlstate.distributed.plan import (
    LEAST_ROUND,
    Held,
    Plan,
    Planned,
    holders_of,
    owners_of,
    rounds_of,
)
from mlstate.distributed.transfer import Part, cpu_group, fill, move
from mlstate.errors import concerning
from mlstate.format import tensor_object
from mlstate.format.encode import StoreObject
from mlstate.format.state_object import InlineTensor
from mlstate.parallel import for_each
from mlstate.tensors import Tensor
from mlstate.tensors.memory import as_bytes

__all__ = ["Gathering"]

_ALIGNED = 64


class Gathering:
    """What the ranks hold, on its way to the owners.

    Args:
        job: The ranks.
        plan: What they have among them.
        held: What this rank holds.
        threads: How many objects a rank stores at once.

    Attributes:
        sizes: The bytes of each tensor that has an object.
        owners: The rank that owns each of these.
    """

    def __init__(self, job: Coordinator, plan: Plan, held: Held, threads: int) -> None:
        self._job, self._plan, self._held, self._threads = job, plan, held, threads
        self._group = cpu_group(job)
        self.sizes = {tensor.name: tensor.spec.nbytes for tensor in plan.large}
        self.owners = owners_of(
            self.sizes, {tensor.name: holders_of(tensor) for tensor in plan.large}
        )
        self._budget = max([LEAST_ROUND, *self.sizes.values()])
        self._arenas: list[Tensor] = []
        self._passes = 0

    def _parts(self, tensors: Iterable[Planned], whole: Mapping[str, int]) -> list[Part]:
        return [
            Part(tensor.name, rank, whole[tensor.name], region, tensor.shape)
            for tensor in tensors
            for rank, region in tensor.sources
        ]

    def small(self) -> dict[str, InlineTensor]:
        """The small tensors, on rank 0; those of a rank come in one message."""
        small = self._plan.small
        parts = self._parts(small, {tensor.name: 0 for tensor in small})
        own = [self._held.bits(part.name) for part in parts if part.rank == self._job.rank]
        packed = torch.cat([torch.empty(0, dtype=torch.uint8, device="cpu"), *map(_flat, own)])
        self._job.agree("small tensors")
        received = self._job.exchange(lambda: self._send_small(parts, packed))
        if self._job.rank:
            return {}
        wholes = {
            tensor.name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            for tensor in small
        }
        places = dict.fromkeys(received, 0)
        for part in parts:
            whole = wholes[part.name]
            size = _nbytes(part, whole)
            start = places[part.rank]
            piece = received[part.rank][start : start + size].clone()
            fill(whole, part.region, piece.view(whole.dtype))
            places[part.rank] = start + size
        return {
            tensor.name: InlineTensor(tensor.spec, bytes(as_bytes(wholes[tensor.name])))
            for tensor in small
        }

    def _send_small(self, parts: list[Part], packed: Tensor) -> dict[int, Tensor]:
        """What each rank has packed, on rank 0; nothing elsewhere."""
        sizes: dict[int, int] = {}
        for part in parts:
            dtype = self._plan.tensors[part.name].dtype
            sizes[part.rank] = sizes.get(part.rank, 0) + _nbytes(
                part, torch.empty(0, dtype=dtype, device="cpu")
            )
        wholes = {
            f"{rank}": packed if rank == 0 else torch.empty(size, dtype=torch.uint8, device="cpu")
            for rank, size in sizes.items()
            if self._job.rank == 0 and size
        }
        listed = [
            Part(f"{rank}", rank, 0, (((0, size),),), (size,))
            for rank, size in sorted(sizes.items())
            if rank and size
        ]
        move(self._job, self._group, listed, lambda _: packed, wholes, gather=True)
        return {int(rank): whole for rank, whole in wholes.items()}

    def run(self, sizes: Mapping[str, int], store: StoreObject) -> dict[str, Digest]:
        """Gather tensors round by round, and store each on its owner while the next round comes.

        Returns:
            The digests of those that this rank owns.
        """
        self._passes += 1
        digests: dict[str, Digest] = {}
        storing: list[_Task] = []
        try:
            for number, names in enumerate(rounds_of(sizes, self.owners, self._budget)):
                while len(storing) > 1:
                    storing.pop(0).result(self._job)
                tensors = [self._plan.tensors[name] for name in names]
                own = [t for t in tensors if self.owners[t.name] == self._job.rank]
                parts = self._parts(tensors, self.owners)
                wholes = self._room(own, parts, number % 2)
                self._job.agree(f"pass {self._passes}, round {number}")
                self._job.exchange(partial(self._move, parts, wholes))
                storing.append(_Task(_storing(own, wholes, store, digests, self._threads)))
            for task in storing:
                task.result(self._job)
        finally:
            for task in storing:
                task.wait()
            self._arenas.clear()
        return digests

    def _move(self, parts: list[Part], wholes: Mapping[str, Tensor]) -> None:
        held = {
            part.name: self._held.bits(part.name).view(-1)
            for part in parts
            if part.rank == self._job.rank and not _is_itself(part)
        }
        listed = [part for part in parts if not _is_itself(part)]
        move(self._job, self._group, listed, lambda part: held[part.name], wholes, gather=True)

    def _room(self, own: list[Planned], parts: list[Part], number: int) -> dict[str, Tensor]:
        """Memory for the tensors of a round: that of the round before the last."""
        found: dict[str, Tensor] = {}
        position = 0
        counts: dict[str, int] = {}
        for part in parts:
            counts[part.name] = counts.get(part.name, 0) + 1
        first = {part.name: part.rank for part in parts}
        for tensor in own:
            if counts[tensor.name] == 1 and first[tensor.name] == self._job.rank:
                found[tensor.name] = self._held.bits(tensor.name)  # all of it is here
                continue
            while len(self._arenas) <= number:
                self._arenas.append(
                    torch.empty(self._budget + _ALIGNED, dtype=torch.uint8, device="cpu")
                )
            end = position + tensor.spec.nbytes
            raw = self._arenas[number][position:end]
            found[tensor.name] = raw.view(tensor.dtype).view(tensor.shape)
            position = end + -end % _ALIGNED
        return found


def _is_itself(part: Part) -> bool:
    """Whether a tensor is whole on its owner: nothing moves."""
    return part.rank == part.whole and all(
        runs == ((0, size),) for runs, size in zip(part.region, part.shape, strict=True)
    )


def _storing(
    own: list[Planned],
    wholes: Mapping[str, Tensor],
    store: StoreObject,
    digests: dict[str, Digest],
    threads: int,
) -> Callable[[], None]:
    def one(tensor: Planned) -> None:
        with concerning(tensor=tensor.name):
            data = as_bytes(wholes[tensor.name])
            digests[tensor.name] = store((tensor_object.header(tensor.spec), data))

    return lambda: for_each(one, own, threads)


class _Task:
    """Work in a thread of its own."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, name="mlstate-storing", daemon=True).start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def result(self, job: Coordinator) -> None:
        """Wait for its end, or that of the job; raises what it raised."""
        while not self._done.wait(0.05):
            job.check()
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Wait for its end."""
        self._done.wait()


def _flat(bits: Tensor) -> Tensor:
    return bits.reshape(-1).view(torch.uint8)


def _nbytes(part: Part, like: Tensor) -> int:
    count = 1
    for runs in part.region:
        count *= sum(end - start for start, end in runs)
    return count * like.element_size()
