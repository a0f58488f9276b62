"""Reading checkpoints of ``torch.distributed.checkpoint`` (DCP) out of a store; see `dcp`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from mlstate.digests import Digest
from mlstate.errors import FormatError, IncompatibleStateError, IntegrityError, concerning
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.format.tensor_object import DATA_OFFSET, TensorCheck, object_size
from mlstate.integrations.common import StoreLike, reading_store
from mlstate.objects import ObjectStore
from mlstate.objects.verified import check_tensor, open_tensor
from mlstate.parallel import for_each
from mlstate.reading import Only
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import Found
from mlstate.stores.arguments import check_pin
from mlstate.tensors import read_tensors
from mlstate.tensors.dcp import (
    chunks_by_place,
    metadata_of,
    opened_checkpoint,
    pickled_value,
    plain_value,
)
from mlstate.tensors.dcp_index import INDEX_NAME, DcpIndex
from mlstate.tensors.memory import as_bytes, as_tensor, mapped_tensor

__all__ = ["MlstateReader", "checkpoint_key"]

_PIECE = 1 << 20


class MlstateReader(StorageReader):
    """Loads checkpoints out of a store: ``dcp.load(state, storage_reader=MlstateReader(...))``.

    Any layout loads into any other. All that a rank needs is verified while ranks plan, so that
    damage is an error of all ranks before any value changes. What comes out of the index is made of
    plain values; no pickle is read but with ``weights_only=True``.

    A state that is no checkpoint of DCP loads, too: its tensors have their names in the state.

    Args:
        store: The store, or what `mlstate.open_store` takes.
        key: The key of the checkpoint, or its type: then ``checkpoint_id`` of ``dcp.load`` is the
            training id.
        digest: Refuse anything but the state with exactly this digest.
    """

    def __init__(
        self, store: StoreLike, key: StateKey | StateType | str, *, digest: str | None = None
    ) -> None:
        super().__init__()
        self.store = reading_store(store)
        self._given = checkpoint_key(key)
        self._key = self._given
        self._digest = None if digest is None else Digest(digest)
        self._opened: _Opened | None = None
        self._verified: dict[str, torch.Tensor] = {}

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
        self._opened = None
        self._verified = {}

    def read_metadata(self) -> Metadata:
        """What the checkpoint holds: its index, verified, and compared with its tensors.

        Raises:
            StateNotFoundError: There is no such state.
            FormatError: Its index is not one, or does not fit its tensors.
            IntegrityError: Bytes are damaged or missing, or the digest is another.
        """
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

        self._opened = self.store.reading(key, look, Only.STATE_OBJECT)
        return metadata_of(self._opened.index)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Look where the chunks are."""
        self._places = chunks_by_place(self._open().index)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Fetch and verify all that this rank needs; on each rank before any value changes.

        Raises:
            IntegrityError: Bytes are damaged or missing.
            FetchError: Something is missing, and no mirror could give it.
        """
        opened = self._open()
        names = {self._name(item) for item in plan.items} & opened.state.specs.keys()

        def verify(found: Found) -> None:
            opened.check_same(found)
            self.store.access.bring(found.entry, [*names], files=False)
            self._verified = _verified_tensors(found.objects, opened.state, names)

        with concerning(opened.found.entry.key):
            self.store.reading(
                opened.found.entry.key, verify, [*names], files=False, found=opened.found
            )
        return dataclasses.replace(plan, storage_data=opened.identity)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are, if all ranks have read the same state.

        Raises:
            IntegrityError: It was replaced between two of them.
        """
        if len({plan.storage_data for plan in plans}) > 1:
            raise IntegrityError(
                "the state was replaced while ranks began to load it; nothing was loaded",
                path=self.store,
                remedy="load it again",
            )
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what the plan names to its places."""
        opened = self._open()
        by_name: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_name.setdefault(self._name(item), []).append(item)
        with concerning(opened.found.entry.key):
            for name, items in by_name.items():
                with concerning(tensor=name):
                    self._give(name, items, planner)
        self._verified = {}
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _give(self, name: str, items: list[ReadItem], planner: LoadPlanner) -> None:
        index = self._open().index
        if items[0].type is LoadItemType.BYTE_IO:
            for item in items:
                planner.load_bytes(item, pickled_value(self._value(name, index)))
            return
        chunk = self._tensor(name)
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
        return plain_value(bytes(as_bytes(self._tensor(name))))

    def _tensor(self, name: str) -> torch.Tensor:
        """A tensor of the state, verified."""
        if name in self._verified:
            return self._verified[name]
        opened = self._open()

        def read(found: Found) -> torch.Tensor:
            opened.check_same(found)
            self.store.access.bring(found.entry, [name], files=False)
            return read_tensors(found.objects, opened.state, [name])[name]

        key = opened.found.entry.key
        return self.store.reading(key, read, [name], files=False, found=opened.found)

    def _name(self, item: ReadItem) -> str:
        """The name in the state of what an item reads."""
        if item.type is LoadItemType.BYTE_IO:
            return item.storage_index.fqn
        return self._places[item.storage_index]

    def _open(self) -> _Opened:
        if self._opened is None:
            self.read_metadata()
        assert self._opened is not None
        return self._opened

    _places: dict[MetadataIndex, str]


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A checkpoint that is being read; `identity` is the same for all ranks that read the same."""

    found: Found
    state: StateObject
    index: DcpIndex
    identity: str

    def check_same(self, found: Found) -> None:
        """Refuse, by an IntegrityError, a state that has taken its place."""
        if found.entry.pinned_digest != self.found.entry.pinned_digest:
            raise IntegrityError(
                "the state was replaced while it was loaded",
                expected=self.found.entry.digest,
                found=found.entry.digest,
                remedy="load it again",
            )


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


def _verified_tensors(
    objects: ObjectStore, state: StateObject, names: Iterable[str]
) -> dict[str, torch.Tensor]:
    """Verify tensors; returns those that are mapped, or inside the state object.

    What cannot be mapped is verified, and read again when it is used: it would take memory.

    Raises:
        IntegrityError: An object is missing or damaged.
        FormatError: An object is not what the state object says.
    """
    names = set(names)
    found = read_tensors(objects, state, names & state.inline.keys())
    large = sorted(names & state.refs.keys(), key=lambda name: -state.refs[name].spec.nbytes)
    local: dict[int, bool] = {}

    def verify(name: str) -> None:
        with concerning(tensor=name):
            tensor = _verified_object(objects, state.refs[name], local)
            if tensor is not None:
                found[name] = tensor

    for_each(verify, large)
    return found


def _verified_object(
    objects: ObjectStore, ref: TensorRef, local: dict[int, bool]
) -> torch.Tensor | None:
    seen = TensorCheck(ref.spec)
    with open_tensor(objects, ref) as file:
        raw = mapped_tensor(file, object_size(ref.spec), local)
        if raw is None:
            file.seek(0)
            while piece := file.read(_PIECE):
                seen.update(piece)
    data = None
    if raw is not None:
        view = as_bytes(raw)
        seen.update(view)
        data = torch.frombuffer(view, dtype=torch.uint8, offset=DATA_OFFSET)
    check_tensor(objects, ref, seen)
    return None if data is None else as_tensor(data, ref.spec)
