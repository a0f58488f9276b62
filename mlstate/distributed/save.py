"""Saving by all ranks together: each tensor is gathered on its owner, hashed and stored there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from mlstate.digests import Bytes, Digest
from mlstate.distributed.coordination import Coordinator
from mlstate.distributed.gathering import Gathering
from mlstate.distributed.placements import replicas
from mlstate.distributed.plan import Held, Plan, agreed_plan
from mlstate.errors import FormatError, IntegrityError, UnsupportedStoreError, concerning
from mlstate.format import tensor_object
from mlstate.format.encode import EncodedState, TensorSource, check_not_empty
from mlstate.format.state_object import (
    InlineTensor,
    StateObject,
    TensorRef,
    check_bytes_state,
)
from mlstate.format.tensor_object import TensorSpec
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore, MemoryObjectStore
from mlstate.objects.saving import ObjectSaver, absent
from mlstate.states import StateKey
from mlstate.stores.save import SavingStore
from mlstate.stores.save_request import SaveRequest
from mlstate.stores.state_saver import StateSaver
from mlstate.tensors.memory import as_bytes

__all__ = ["save_sharded"]


def save_sharded(
    store: SavingStore,
    state: Callable[[], Mapping[str, Any]],
    key: StateKey,
    request: SaveRequest,
    *,
    group: Any,
    check_replicas: bool,
) -> None:
    """Save a state that the ranks of a group hold together; all of them call it.

    Args:
        store: The same store on every rank: a folder that all see, or a bucket.
        state: Gives the state dict of this rank: DTensors, and tensors that are whole.
        key: The key, the same on every rank.
        request: Files, meta and options: those of rank 0 count.
        group: The process group; None is that of all ranks.
        check_replicas: Compare the values that are there on several ranks, bit for bit.

    Raises:
        PeerError: Another rank failed, was killed or stopped. No state was saved.
        MlstateError: As `SavingStore.save_state_dict`, the same on all ranks.
    """
    with concerning(key), Coordinator(group, "no state was saved") as job:
        saver = _saver_of(store)
        held = Held(state(), job.global_ranks)
        plan = agreed_plan(job, held, f"save {key}")
        check_not_empty(plan.tensors)
        if check_replicas:
            _compare_replicas(job, plan, held)
        _Saving(job, saver, plan=plan, held=held, key=key, request=request).save()


def _saver_of(store: SavingStore) -> StateSaver:
    saver = store.saver
    if not isinstance(saver, StateSaver) or isinstance(saver.objects, MemoryObjectStore):
        raise UnsupportedStoreError(
            "the ranks of a job cannot save into this store together",
            expected="a store that all of them reach: a folder that they share, or a bucket",
            found=store.phrase,
            remedy="save into a LocalStateStore or an S3StateStore, and copy the state from there",
        )
    return saver


@dataclass(frozen=True)
class _Elsewhere:
    """A tensor whose bytes were on another rank, in the place of its source."""

    name: str
    spec: TensorSpec
    memory: None = None

    def data(self) -> AbstractContextManager[Bytes]:
        """Nothing: nobody puts it again from here; see `_Saving._put_lost`."""
        raise NotImplementedError


class _Saving:
    """One act of saving, on one rank."""

    def __init__(
        self,
        job: Coordinator,
        saver: StateSaver,
        *,
        plan: Plan,
        held: Held,
        key: StateKey,
        request: SaveRequest,
    ) -> None:
        self._job, self._saver, self._plan = job, saver, plan
        self._key, self._request = key, request
        self._gathering = Gathering(job, plan, held, saver.threads)
        self._sizes, self._owners = self._gathering.sizes, self._gathering.owners
        self._collections = 0
        self._verify = False
        self._check_specs()

    def _check_specs(self) -> None:
        """Refuse what the format forbids, before anything is sent."""
        check_bytes_state({name: tensor.spec for name, tensor in self._plan.tensors.items()})
        for tensor in self._plan.large:
            with concerning(tensor=tensor.name):
                tensor_object.header(tensor.spec)

    def save(self) -> None:
        """Save; what rank 0 finds out about the key decides for all."""
        wanted: list[StateEntry] = []

        def look() -> list[bool]:
            wanted.append(self._request.entry(self._key))
            exists = self._saver.existing(wanted[0], self._request)[0] is not None
            return [exists, self._request.verify]

        exists, self._verify = self._job.told("request", look)
        inline = self._gathering.small()
        if exists and self._stays(wanted, inline):
            return
        objects = self._saver.object_saver(verify=self._verify)
        with objects.settled():
            digests = self._gathering.run(self._sizes, objects.store)
            if self._job.rank == 0:
                self._saver.take_files(objects, wanted[0], self._request)
        objects.flush()
        found = self._collected(digests)
        self._job.told("published", lambda: self._publish(objects, found, inline, wanted[0]))
        self._put_lost(objects, digests)
        self._job.finish("saved")

    def _stays(self, wanted: list[StateEntry], inline: Mapping[str, InlineTensor]) -> bool:
        """Whether the state is stored already, and stays; then what it lacks is put again."""
        digests = self._gathering.run(self._sizes, lambda parts: Digest.of(*parts))
        found = self._collected(digests)

        def settle() -> bool:
            encoded = self._encoded(found, inline)
            existing, is_saved = self._saver.existing(wanted[0], self._request)
            if existing is None:
                return False
            stays = self._request.stays(existing, encoded.digest, wanted[0], is_saved=is_saved)
            if stays:
                self._request.warn_of_other_meta(existing, wanted[0])
            return stays

        stays: bool = self._job.told("stays", settle)
        if stays:
            self._put_again(wanted, found, inline, digests)
        return stays

    def _put_again(
        self,
        wanted: list[StateEntry],
        found: Mapping[str, Digest],
        inline: Mapping[str, InlineTensor],
        digests: Mapping[str, Digest],
    ) -> None:
        """Put the objects that a stored state lacks; with ``verify`` those that are damaged."""
        objects = self._saver.object_saver(verify=self._verify)
        sizes = {
            digest: tensor_object.object_size(self._plan.tensors[name].spec)
            for name, digest in digests.items()
        }
        lacking = {*(sizes if self._verify else absent(self._saver.objects, sizes))}
        names = [name for name, digest in digests.items() if digest in lacking]
        self._put(objects, self._union("lacking", names))
        if self._job.rank == 0:
            encoded = self._encoded(found, inline)
            with objects.settled():
                self._saver.take_files(objects, wanted[0], self._request)
            with objects.settled():
                objects.take(encoded.digest, [encoded.data])
        objects.flush()
        self._job.finish("put again")

    def _put_lost(self, objects: ObjectSaver, digests: Mapping[str, Digest]) -> None:
        """Put objects again that a pruning took before the state named them."""
        lost = self._union("lost", list(digests) if objects.lost() else [])
        if lost:
            again = self._saver.object_saver(verify=False)
            self._put(again, lost)
            again.flush()

    def _put(self, objects: ObjectSaver, names: Iterable[str]) -> None:
        def store(parts: Sequence[Bytes]) -> Digest:
            digest = Digest.of(*parts)
            objects.take(digest, parts)
            return digest

        with objects.settled():
            self._gathering.run({name: self._sizes[name] for name in names}, store)

    def _union(self, what: str, names: list[str]) -> list[str]:
        texts = self._job.gathered(what, json.dumps(names).encode())
        return sorted({name for text in {*texts} for name in json.loads(text)})

    def _publish(
        self,
        objects: ObjectSaver,
        found: Mapping[str, Digest],
        inline: Mapping[str, InlineTensor],
        wanted: StateEntry,
    ) -> str:
        encoded = self._encoded(found, inline)
        self._check_shared(encoded)
        with objects.settled():
            objects.take(encoded.digest, [encoded.data])
        self._saver.publish(objects, encoded, wanted, self._request)
        return encoded.digest

    def _check_shared(self, encoded: EncodedState) -> None:
        """Refuse ranks that saved into folders of their own: no reader would find all objects."""
        if not isinstance(self._saver.objects, FolderObjectStore):
            return
        sizes = encoded.sizes()
        del sizes[encoded.digest]
        if lacking := absent(self._saver.objects, sizes):
            name = encoded.sources[lacking[0]].name
            raise FormatError(
                "the ranks do not save into the same folder; no state was saved",
                tensor=name,
                path=self._saver.objects.locate(lacking[0]),
                found=f"rank {self._owners[name]} stored it, and rank 0 does not see it",
                remedy="give a folder that all ranks see: on a shared file system, or a bucket",
            )

    def _encoded(
        self, found: Mapping[str, Digest], inline: Mapping[str, InlineTensor]
    ) -> EncodedState:
        ties = {name: found[first] for name, first in self._plan.ties.items() if first in found}
        refs = {
            name: TensorRef(self._plan.tensors[name].spec, digest)
            for name, digest in {**found, **ties}.items()
        }
        state = StateObject(inline, refs)
        data = state.encode()
        sources: dict[Digest, TensorSource] = {
            digest: _Elsewhere(name, self._plan.tensors[name].spec)
            for name, digest in found.items()
        }
        return EncodedState(state, data, Digest.of(data), sources)

    def _collected(self, digests: Mapping[str, Digest]) -> dict[str, Digest]:
        """The digests of all ranks, for rank 0."""
        self._collections += 1
        name = f"digests {self._collections}"
        self._job.set(f"{name}/{self._job.rank}", json.dumps(digests).encode())
        self._job.agree(name)
        found: dict[str, Digest] = {}
        for rank in range(self._job.world) if self._job.rank == 0 else ():
            found.update(json.loads(self._job.get(f"{name}/{rank}")))
        return {one: Digest(digest) for one, digest in found.items()}


def _compare_replicas(job: Coordinator, plan: Plan, held: Held) -> None:
    """Refuse, by an IntegrityError, copies of a part that are not equal, bit for bit."""
    listed = [t for t in plan.tensors.values() if replicas(t.copies, t.shape)]
    own = {t.name: Digest.of(as_bytes(held.bits(t.name))) for t in listed if t.name in held}
    texts = job.gathered("replicas", json.dumps(own).encode())
    parsed = {text: json.loads(text) for text in {*texts}}
    for tensor in listed:
        for ranks in replicas(tensor.copies, tensor.shape):
            digests = {rank: parsed[texts[rank]].get(tensor.name) for rank in ranks}
            other = [rank for rank in ranks if digests[rank] != digests[ranks[0]]]
            if other:
                raise IntegrityError(
                    "copies of a tensor on several ranks are not equal; nothing was stored",
                    tensor=tensor.name,
                    expected=f"{digests[ranks[0]]}, on rank {ranks[0]}",
                    found=f"{digests[other[0]]}, on rank {other[0]}",
                    remedy="without check_replicas the value of the lowest rank is saved",
                )
