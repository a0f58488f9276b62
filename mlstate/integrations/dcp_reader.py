"""Reading checkpoints of ``torch.distributed.checkpoint`` (DCP) out of a store; see `dcp`."""

from __future__ import annotations

import dataclasses
import os
from contextlib import suppress
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from mlstate.digests import Digest
from mlstate.errors import FormatError, IncompatibleStateError, IntegrityError, concerning
from mlstate.format.state_object import StateObject
from mlstate.integrations.common import StoreLike, reading_store
from mlstate.integrations.dcp_objects import FileId, RankObjects, shares
from mlstate.reading import Only
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import Found
from mlstate.stores.arguments import check_pin
from mlstate.tensors.dcp import (
    chunks_by_place,
    metadata_of,
    opened_checkpoint,
    pickled_value,
    plain_value,
)
from mlstate.tensors.dcp_index import INDEX_NAME, DcpIndex
from mlstate.tensors.memory import as_bytes

__all__ = ["MlstateReader", "checkpoint_key"]

_PIECE = 1 << 20


class MlstateReader(StorageReader):
    """Loads checkpoints out of a store: ``dcp.load(state, storage_reader=MlstateReader(...))``.

    Any layout loads into any other. All that any rank needs is verified before a value of any rank
    changes, and damage is an error of all. An object that several ranks of a node need is verified
    by one of them. No pickle is read but with ``weights_only=True``.

    A state that is no checkpoint of DCP loads, too: its tensors have their names in the state.

    Args:
        store: The store, or what `mlstate.open_store` takes.
        key: The key of the checkpoint, or its type: then ``checkpoint_id`` of ``dcp.load`` is the
            training id.
        digest: Refuse anything but the state with exactly this digest.
        process_group: That of ``dcp.load``, if it is not the default one: its ranks share the work
            to verify.
    """

    _places: dict[MetadataIndex, str]
    _objects: RankObjects

    def __init__(
        self,
        store: StoreLike,
        key: StateKey | StateType | str,
        *,
        digest: str | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.store = reading_store(store)
        self._given = checkpoint_key(key)
        self._key = self._given
        self._digest = None if digest is None else Digest(digest)
        self._group = process_group
        self._opened: _Opened | None = None
        self._begun = False  # by `dcp.load`, which takes no error before it plans

    @property
    def checkpoint_id(self) -> str:
        """What is loaded now: the text of its key."""
        return str(self._key)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether this is the text of a key."""
        with suppress(FormatError):
            StateKey.parse(os.fspath(checkpoint_id))
            return True
        return False

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin to read another checkpoint; without an id, that of the reader's own key."""
        self._key = checkpoint_key(self._given, checkpoint_id)
        self._opened, self._begun = None, True

    def read_metadata(self) -> Metadata:
        """What the checkpoint holds: its index, verified, and compared with its tensors.

        After `reset`, as in ``dcp.load``, an error is raised by what uses it: of one that is
        raised here torch keeps nothing but the text.

        Raises:
            StateNotFoundError: There is no such state.
            FormatError: Its index is not one, or does not fit its tensors.
            IntegrityError: Bytes are damaged or missing, or the digest is another.
        """
        begun, self._begun = self._begun, False
        try:
            self._opened = self._read()
        except Exception as error:
            if not begun:
                raise
            return _Unread(error)
        return metadata_of(self._opened.index)

    def _read(self) -> _Opened:
        key = self._key
        if not isinstance(key, StateKey):
            raise FormatError(
                "the checkpoint has no training id",
                expected=f"a key of the type {key}",
                remedy='give one: dcp.load(state, checkpoint_id="step-1000", storage_reader=...)',
            )

        def look(found: Found) -> _Opened:
            check_pin(found.entry.pinned_digest, self._digest)
            self.store.access.bring(found.entry, Only.STATE_OBJECT)
            state, index = opened_checkpoint(*found)
            file = found.entry.files.get(INDEX_NAME)
            return _Opened(found, state, index, f"{found.entry.digest} {file and file.digest}")

        return self.store.reading(key, look, Only.STATE_OBJECT)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Look where the chunks are.

        Raises:
            MlstateError: As `read_metadata`.
        """
        if isinstance(metadata, _Unread):
            raise metadata.error
        self._places = chunks_by_place(self._open().index)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Fetch what this rank needs; alone, verify it, too.

        Raises:
            IntegrityError: Bytes are damaged or missing.
            FetchError: Something is missing, and no mirror could give it.
        """
        opened = self._open()
        names = {self._name(item) for item in plan.items}
        self._objects = RankObjects(self.store, opened.found, opened.state, names)
        needs = _Needs(opened.identity, self._objects.bring())
        if self._ranks() == 1:
            self._objects.verify()
        return dataclasses.replace(plan, storage_data=needs)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans, each with the objects that its rank is to verify for all of its node.

        Raises:
            IntegrityError: The state was replaced between two ranks' looks at it.
        """
        needs = [plan.storage_data for plan in plans]
        if len({one.identity for one in needs}) > 1:
            raise IntegrityError(
                "the state was replaced while ranks began to load it; nothing was loaded",
                path=self.store,
                remedy="load it again",
            )
        return [
            dataclasses.replace(plan, storage_data=_Share(len(plans), frozenset(share)))
            for plan, share in zip(plans, shares([one.files for one in needs]), strict=True)
        ]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Verify what is to be copied, with all ranks, and copy it to its places.

        Raises:
            IntegrityError: Bytes are damaged or missing, for whichever rank; nothing was copied.
        """
        share = plan.storage_data
        if isinstance(share, _Share) and share.ranks == self._ranks() > 1:
            self._objects.verify_together(share.digests, self._group)
        else:
            self._objects.verify()
        by_name: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_name.setdefault(self._name(item), []).append(item)
        with concerning(self._open().found.entry.key):
            for name, items in by_name.items():
                with concerning(tensor=name):
                    self._give(name, items, planner)
        del self._objects
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _ranks(self) -> int:
        """How many ranks load together, as far as this one knows."""
        if not dist.is_available() or not dist.is_initialized():
            return 1
        return dist.get_world_size(self._group)

    def _give(self, name: str, items: list[ReadItem], planner: LoadPlanner) -> None:
        index = self._open().index
        if items[0].type is LoadItemType.BYTE_IO:
            for item in items:
                planner.load_bytes(item, pickled_value(self._value(name, index)))
            return
        chunk = self._objects.tensor(name)
        for item in items:
            part = chunk
            for at, (start, size) in enumerate(
                zip(item.storage_offsets, item.lengths, strict=True)
            ):
                part = part.narrow(at, start, size)
            target = planner.resolve_tensor(item).detach()
            if target.shape != part.shape:
                raise IncompatibleStateError(
                    "a planner asks for a part of another shape than it has room for",
                    expected=list(target.shape),
                    found=list(part.shape),
                )
            target.copy_(part)
            planner.commit_tensor(item, target)

    def _value(self, name: str, index: DcpIndex) -> Any:
        if name in index.values:
            return index.values[name]
        # Torch's own planner would run what is in these bytes; it is given what they mean.
        return plain_value(bytes(as_bytes(self._objects.tensor(name))))

    def _name(self, item: ReadItem) -> str:
        """The name in the state of what an item reads."""
        if item.type is LoadItemType.BYTE_IO:
            return item.storage_index.fqn
        return self._places[item.storage_index]

    def _open(self) -> _Opened:
        if self._opened is None:
            self._opened = self._read()
        return self._opened


class _Unread(Metadata):
    """Of a checkpoint that could not be read: who looks for anything in it gets the error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        if name == "state_dict_metadata":
            raise self.error
        raise AttributeError(name)


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A checkpoint that is being read; `identity` is the same for all ranks that read the same."""

    found: Found
    state: StateObject
    index: DcpIndex
    identity: str


@dataclasses.dataclass(frozen=True)
class _Needs:
    """What a rank tells the coordinator: the state that it has read, and the objects it needs."""

    identity: str
    files: dict[Digest, tuple[FileId | None, int]]


@dataclasses.dataclass(frozen=True)
class _Share:
    """What the coordinator tells a rank: how many ranks there are, and what it is to verify."""

    ranks: int
    digests: frozenset[Digest]


def checkpoint_key(
    given: StateKey | StateType | str,
    checkpoint_id: str | os.PathLike[str] | StateKey | None = None,
) -> StateKey | StateType:
    """The key that an id means: the text of one, or a training id of the type that was given.

    Raises:
        FormatError: It is no such text.
    """
    if isinstance(given, str):
        given = StateKey.parse(given)
    if not isinstance(given, StateKey | StateType):
        raise FormatError("a checkpoint is named by a StateKey, or a StateType", found=repr(given))
    if isinstance(checkpoint_id, StateKey):
        return checkpoint_id
    if not checkpoint_id:
        return given
    text = os.fspath(checkpoint_id)
    if "." in text:
        return StateKey.parse(text)
    return StateKey(given.state_type if isinstance(given, StateKey) else given, text)
