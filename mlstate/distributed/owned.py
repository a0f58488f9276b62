"""The objects of a state while ranks load it: each is read and verified once, by its owner.

Ranks of the same machine that see the same file map it, and so have what the owner has verified;
all others are sent their parts by the owner. Until all is there nobody's model changes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from mlstate.digests import Digest
from mlstate.distributed.coordination import Coordinator
from mlstate.distributed.placements import Layout, Region, is_empty, region_of, size_of
from mlstate.distributed.plan import LEAST_ROUND, bits_of, owners_of, rounds_of
from mlstate.distributed.transfer import Part, cpu_group, move
from mlstate.distributed.watch import this_machine
from mlstate.errors import ObjectNotFoundError, concerning
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.format.tensor_object import DATA_OFFSET, TensorCheck, object_size
from mlstate.objects import ObjectStore
from mlstate.objects.verified import check_tensor, open_tensor
from mlstate.parallel import for_each
from mlstate.stores.abstract import Found
from mlstate.stores.access import Access
from mlstate.tensors import Tensor
from mlstate.tensors.memory import as_bytes, as_tensor, mapped_tensor, torch_dtype, torch_shape
from mlstate.tensors.read import OpenedObject, inline_tensors

__all__ = ["Loaded", "Wanted", "bring_parts"]

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Wanted:
    """What ranks want of a state: of each rank the names, and how each is to lie there.

    Names without a layout are wanted whole.
    """

    ranks: tuple[Mapping[str, Layout | None], ...]

    def region(self, name: str, rank: int, shape: tuple[int, ...]) -> Region:
        """The part of a tensor that a rank wants."""
        layout = self.ranks[rank].get(name) or Layout.whole_on([rank])
        return region_of(layout, shape, rank)


@dataclass(frozen=True)
class Loaded:
    """What this rank has of a tensor: all of it, which others may see too, or its part alone."""

    region: Region
    whole: Tensor | None = None
    part: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """All that is here."""
        found = self.part if self.whole is None else self.whole
        assert found is not None
        return found


def bring_parts(
    job: Coordinator,
    found: Found,
    access: Access,
    *,
    state: StateObject,
    wanted: Wanted,
    prefix: str = "",
) -> dict[str, Loaded]:
    """Bring and verify what the ranks want; nothing of it is in any model yet.

    ``prefix`` is what the whole state has before the names of this part of it.

    Raises:
        IntegrityError: An object is damaged or missing, and cannot be fetched anew.
        MlstateError: As a fetch.
    """
    bringing = _Bringing(job, found, access, state=state, wanted=wanted, prefix=prefix)
    return bringing.bring()


class _Bringing:
    def __init__(
        self,
        job: Coordinator,
        found: Found,
        access: Access,
        *,
        state: StateObject,
        wanted: Wanted,
        prefix: str,
    ) -> None:
        self._job, self._found, self._access = job, found, access.watched(job.check)
        self._state, self._wanted, self._prefix = state, wanted, prefix
        self._refs: dict[Digest, TensorRef] = {}
        self._names: dict[Digest, list[str]] = {}  # of each object, those that somebody wants
        for name in sorted({name for names in wanted.ranks for name in names}):
            if name in state.refs:
                ref = state.refs[name]
                self._refs[ref.digest] = ref
                self._names.setdefault(ref.digest, []).append(name)
        sizes = {str(digest): ref.spec.nbytes for digest, ref in self._refs.items()}
        everyone = range(job.world)
        owners = owners_of(sizes, dict.fromkeys(sizes, everyone))
        self._owners = {Digest(digest): rank for digest, rank in owners.items()}
        self._own = [digest for digest in self._refs if self._owners[digest] == job.rank]
        self._wholes: dict[Digest, Tensor] = {}  # mapped here
        self._parts: dict[str, Tensor] = {}  # sent to this rank
        self._local: dict[int, bool] = {}

    def bring(self) -> dict[str, Loaded]:
        """Verify what this rank owns, see what the others have verified, receive the rest."""
        identities = self._verified_own()
        texts = self._job.gathered("objects", json.dumps([this_machine(), identities]).encode())
        lacking = self._map_others([json.loads(text) for text in texts])
        listed = self._job.gathered("lacking", json.dumps(lacking).encode())
        self._send([{Digest(one) for one in json.loads(text)} for text in listed])
        own = self._wanted.ranks[self._job.rank]
        small = inline_tensors(self._state, [name for name in own if name in self._state.inline])
        return {name: self._loaded(name, small) for name in own if name in self._state.specs}

    def _loaded(self, name: str, small: Mapping[str, Tensor]) -> Loaded:
        region = self._region(name, self._job.rank)
        if name in small:
            return Loaded(region, whole=small[name])
        digest = self._state.refs[name].digest
        if digest in self._wholes:
            return Loaded(region, whole=self._wholes[digest])
        spec = self._state.specs[name]
        part = self._parts[name].view(torch_dtype(spec))
        return Loaded(region, part=part.view(size_of(region)))

    def _region(self, name: str, rank: int) -> Region:
        return self._wanted.region(name, rank, torch_shape(self._state.specs[name]))

    def _verified_own(self) -> dict[str, list[int] | None]:
        """Fetch and verify the objects that this rank owns; say which file each is in.

        Those that cannot be mapped are read when they are sent, a few at a time, and have no file.
        """
        names = [self._prefix + self._names[digest][0] for digest in self._own]
        if names:
            self._access.bring(self._found.entry, names, files=False)
        identities: dict[str, list[int] | None] = {}

        def verify(digest: Digest) -> None:
            self._job.check()
            identities[digest] = self._repaired(digest, self._verify_mapped)

        # The largest first, so that the threads end together.
        for_each(verify, sorted(self._own, key=lambda one: -self._refs[one].spec.nbytes))
        return identities

    def _repaired(self, digest: Digest, work: Callable[[Digest], _Result]) -> _Result:
        name = self._names[digest][0]
        with concerning(tensor=name):
            return self._access.repaired(
                self._found.entry, lambda: work(digest), [self._prefix + name], files=False
            )

    def _verify_mapped(self, digest: Digest) -> list[int] | None:
        ref = self._refs[digest]
        with open_tensor(self._found.objects, ref) as file:
            raw = mapped_tensor(file, object_size(ref.spec), self._local)
            identity = _identity(file)
        if raw is None:
            return None
        seen = TensorCheck(ref.spec)
        seen.update(as_bytes(raw))
        check_tensor(self._found.objects, ref, seen)
        self._wholes[digest] = _data_of(raw, ref)
        return identity

    def _map_others(self, said: list[Any]) -> list[str]:
        """Map what others have verified in files that this rank sees; the rest is lacking."""
        machine = this_machine()
        known = {
            Digest(digest): identity
            for where, identities in said
            for digest, identity in identities.items()
            if where == machine and identity is not None
        }
        own = self._wanted.ranks[self._job.rank]
        lacking = []
        for digest, names in self._names.items():
            if digest in self._wholes or not any(
                name in own and not is_empty(self._region(name, self._job.rank)) for name in names
            ):
                continue
            whole = None
            if digest in known:
                whole = _mapped(self._found.objects, self._refs[digest], known[digest])
            if whole is None:
                lacking.append(str(digest))
            else:
                self._wholes[digest] = whole
        return lacking

    def _send(self, lacking: list[set[Digest]]) -> None:
        """Send parts of objects to the ranks that lack them, round by round."""
        anywhere = sorted({digest for one in lacking for digest in one})
        self._fill_empty()
        if not anywhere:
            return
        group = cpu_group(self._job)
        sizes = {str(digest): self._refs[digest].spec.nbytes for digest in anywhere}
        owners = {digest: self._owners[Digest(digest)] for digest in sizes}
        budget = max([LEAST_ROUND, *sizes.values()])
        for number, digests in enumerate(rounds_of(sizes, owners, budget)):
            self._job.check()
            parts = self._listed(list(map(Digest, digests)), lacking)
            wholes = self._opened(list(map(Digest, digests)))
            for part in parts:
                if part.rank == self._job.rank:
                    self._parts[part.name] = self._empty(part)
            self._job.agree(f"objects, round {number}")
            self._job.exchange(partial(self._move, group, parts, wholes))

    def _move(self, group: Any, parts: list[Part], wholes: Mapping[str, Tensor]) -> None:
        move(self._job, group, parts, lambda part: self._parts[part.name], wholes, gather=False)

    def _fill_empty(self) -> None:
        """Parts without elements need nobody."""
        for name in self._wanted.ranks[self._job.rank]:
            if name in self._state.refs and is_empty(self._region(name, self._job.rank)):
                dtype = torch_dtype(self._state.specs[name])
                self._parts[name] = torch.empty(0, dtype=dtype, device="cpu")

    def _listed(self, digests: list[Digest], lacking: list[set[Digest]]) -> list[Part]:
        return [
            Part(name, rank, self._owners[digest], region, torch_shape(self._state.specs[name]))
            for digest in digests
            for name in self._names[digest]
            for rank, lacks in enumerate(lacking)
            if digest in lacks and name in self._wanted.ranks[rank]
            for region in [self._region(name, rank)]
            if not is_empty(region)
        ]

    def _empty(self, part: Part) -> Tensor:
        dtype = torch_dtype(self._state.specs[part.name])
        count = 1
        for size in size_of(part.region):
            count *= size
        return bits_of(torch.empty(count, dtype=dtype, device="cpu"))

    def _opened(self, digests: list[Digest]) -> dict[str, Tensor]:
        """Those of these that this rank owns, by their names; what is not mapped is read now."""
        found = {}
        for digest in digests:
            if self._owners[digest] == self._job.rank:
                whole = self._wholes.get(digest)
                if whole is None:
                    whole = self._repaired(digest, self._verify_read)
                found.update(dict.fromkeys(self._names[digest], bits_of(whole)))
        return found

    def _verify_read(self, digest: Digest) -> Tensor:
        objects, ref = self._found.objects, self._refs[digest]
        return OpenedObject(objects, ref, self._names[digest], None, self._local).verified(None)


def _identity(file: Any) -> list[int] | None:
    """Which file it is, for processes of this machine; None of what is no file."""
    try:
        found = os.fstat(file.fileno())
    except OSError:
        return None
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]


def _mapped(objects: ObjectStore, ref: TensorRef, identity: list[int]) -> Tensor | None:
    """A tensor in the file that another rank has verified; None if this rank sees another file."""
    try:
        file = objects.open(ref.digest)
    except ObjectNotFoundError:
        return None
    with file:
        if _identity(file) != identity:
            return None
        raw = mapped_tensor(file, object_size(ref.spec))
    return None if raw is None else _data_of(raw, ref)


def _data_of(raw: Tensor, ref: TensorRef) -> Tensor:
    """The tensor in the bytes of its object, with a storage of its data alone."""
    data = torch.frombuffer(as_bytes(raw), dtype=torch.uint8, offset=DATA_OFFSET)
    return as_tensor(data, ref.spec)
