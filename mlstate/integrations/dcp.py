"""For ``torch.distributed.checkpoint`` (DCP): checkpoints of many ranks as states of a store.

Each chunk of a tensor is an object of the store, so what did not change between two steps is there
once. The ranks store their chunks first, and the coordinator then publishes the state: a save that
is killed leaves none, or the whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch.distributed.checkpoint.metadata import (
    Metadata,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from mlstate.digests import Digest
from mlstate.errors import FormatError, ObjectNotFoundError, UnsupportedStoreError, concerning
from mlstate.format.encode import EncodedState, TensorSource, check_not_empty, encode_state
from mlstate.format.state_object import StateObject
from mlstate.integrations.common import StoreLike, saving_store
from mlstate.integrations.dcp_items import (
    ChunkSource,
    Entry,
    Objects,
    StoredChunk,
    bytes_source,
    joined,
    nbytes,
)
from mlstate.integrations.dcp_reader import MlstateReader, checkpoint_key
from mlstate.integrations.runs import Steps
from mlstate.objects.folder import GRACE_SECONDS
from mlstate.objects.saving import ObjectSaver
from mlstate.states import StateKey, StateType
from mlstate.stores.save_request import SaveRequest
from mlstate.stores.state_saver import StateSaver
from mlstate.tensors.dcp_index import (
    INDEX_NAME,
)

__all__ = ["MlstateReader", "MlstateWriter"]


class MlstateWriter(StorageWriter):
    """Saves checkpoints into a store: ``dcp.save(state, storage_writer=MlstateWriter(...))``.

    A checkpoint is one state: a tensor for each chunk, and the index, the file ``dcp.json``. Its
    meta says ``format = "dcp"``. Its digest depends on the values and on how they are split over
    the ranks. Values that are equal in another state of the store take no room, whoever saved it.

    All ranks make one writer each, of the same store: a folder that all of them see, or a bucket.

    Args:
        store: The store, or what `mlstate.open_store` takes.
        key: The key of the checkpoint, or the type of several: then ``checkpoint_id`` of
            ``dcp.save`` is the training id, ``"step-1000"`` say.
        meta: Free information, kept with it: the step, the loss.
        keep_last: Of checkpoints whose training ids are the same but for the number at their end
            so many stay, the saved one included; earlier ones are deleted after a save. None: all.
        grace_seconds: With ``keep_last``, `prune` takes the objects of what was deleted away after
            this time; 14 days by default. It must be longer than any save that runs meanwhile.
        overwrite: Replace another state that has this key.

    Raises:
        ReadOnlyStoreError: The store does not save.
        UnsupportedStoreError: It cannot take the objects of a state from several processes.
        FormatError: ``key`` or ``keep_last`` is not valid.
    """

    def __init__(
        self,
        store: StoreLike,
        key: StateKey | StateType | str,
        *,
        meta: Mapping[str, Any] | None = None,
        keep_last: int | None = None,
        grace_seconds: float = GRACE_SECONDS,
        overwrite: bool = False,
    ) -> None:
        super().__init__()
        self.store = saving_store(store)
        saver = self.store.saver
        if not isinstance(saver, StateSaver):
            raise UnsupportedStoreError(
                "a checkpoint of several processes cannot be saved into this store",
                path=self.store,
                expected="a folder or a bucket",
            )
        self._saver = saver
        self._given = checkpoint_key(key)
        self._steps = None if keep_last is None else Steps(self.store, keep_last, grace_seconds)
        self._meta = dict(meta or {})
        self._overwrite = overwrite
        self._key = self._given
        if isinstance(self._given, StateKey):
            self._check_key()

    @property
    def checkpoint_id(self) -> str:
        """What is saved now: the text of its key, or of the type of which no key is known yet."""
        return str(self._key)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this is the text of a key."""
        return MlstateReader.validate_checkpoint_id(checkpoint_id)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin another checkpoint; without an id, one of the key that the writer was made with."""
        self._key = checkpoint_key(self._given, checkpoint_id)
        if isinstance(self._key, StateKey):
            self._check_key()

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Refuse what cannot be saved, before anything is."""
        if kwargs.get("use_collectives") is False:
            raise FormatError(
                "ranks that do not speak with each other cannot save one state",
                remedy="call dcp.save without use_collectives=False",
            )
        SaveRequest({}, self._meta, self._overwrite).entry(_known(self._key))

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Store the chunks of this rank: what is new is written, all is durable at the end.

        Raises:
            FormatError: Something in the plan cannot be stored; no state is published.
        """
        stored: list[tuple[WriteItem, Entry]] = []
        sources: dict[str, tuple[WriteItem, TensorSource]] = {}
        source: TensorSource
        with concerning(_known(self._key)):
            objects = Objects()
            for item in plan.items:
                if item.type is WriteItemType.BYTE_IO:
                    value, data = objects.look(item, planner)
                    if value is not None:
                        stored.append((item, value))
                        continue
                    source = bytes_source(item, data)
                else:
                    source = ChunkSource.of(item, planner)
                if sources.setdefault(source.name, (item, source))[1] is not source:
                    raise FormatError("two entries have one name", tensor=source.name)
            state = self._stored([source for _, source in sources.values()])
        for name, (item, _) in sources.items():
            stored.append((item, state.refs.get(name) or state.inline[name]))
        results: Future[list[WriteResult]] = Future()
        results.set_result([WriteResult(item.index, nbytes(one), one) for item, one in stored])
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Publish the state, which all ranks have stored the chunks of; then delete old ones.

        Raises:
            StateExistsError: Another state has this key; it is as it was.
            ObjectNotFoundError: A chunk is not in the store, as the coordinator sees it.
        """
        key = _known(self._key)
        stored = {result.index: result.storage_data for rank in results for result in rank}
        with concerning(key):
            index, state = joined(metadata, stored)
            check_not_empty(state.specs)
            data = state.encode()
            sources: dict[Digest, TensorSource] = {
                ref.digest: StoredChunk(name, ref, self._saver.objects)
                for name, ref in state.refs.items()
            }
            encoded = EncodedState(state, data, Digest.of(data), sources)
            meta = {**self._meta, "format": "dcp", "ranks": len(results)}
            request = SaveRequest({INDEX_NAME: index.encode()}, meta, self._overwrite)
            there = self.store.exists(key)
            try:
                self._saver.receive(encoded, request.entry(key), request)
            except ObjectNotFoundError as error:
                if (
                    not there
                    and self.store.exists(key)
                    and self.store.digest(key) == encoded.digest
                ):
                    self.store.delete(key)  # a pruning took a chunk as it was published
                error.remedy = (
                    "give all ranks a store that all of them see, a shared folder or a bucket; and "
                    "let no prune run meanwhile whose grace period is shorter than a save"
                )
                raise
        if self._steps is not None:
            self._steps.delete_older(key)

    def _stored(self, sources: list[TensorSource]) -> StateObject:
        """Store tensors that no state names yet, durably; they are young, so prunings spare them.

        Returns the state object of these alone.
        """
        objects, threads = self._saver.objects, self._saver.threads
        saver = ObjectSaver(objects, verify=False, threads=threads)
        with saver.settled():
            encoded = encode_state(sources, threads=threads, store=saver.store)
        saver.flush()
        return encoded.state

    def _check_key(self) -> None:
        if self._steps is not None:
            self._steps.check(_known(self._key))


def _known(key: StateKey | StateType) -> StateKey:
    if isinstance(key, StateKey):
        return key
    raise FormatError(
        "the checkpoint has no training id",
        expected=f"a key of the type {key}",
        remedy='give one: dcp.save(state, checkpoint_id="step-1000", storage_writer=writer)',
    )
