"""`describe` tells all that is known of a state without reading its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mlstate.digests import Digest
from mlstate.errors import (
    FetchError,
    FormatError,
    ObjectNotFoundError,
    OfflineError,
    UnsupportedStoreError,
    concerning,
)
from mlstate.format.state_object import StateObject
from mlstate.index import number_of, open_index
from mlstate.locations import Mirror
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore
from mlstate.objects.cache import folders_of
from mlstate.objects.encoded_forms import head_of
from mlstate.objects.interface import EncodedObjectStore
from mlstate.operations.tables import Table, Tabular, size_cell
from mlstate.operations.usage import known_states
from mlstate.reading import Only, read_state
from mlstate.states import StateKey
from mlstate.stores.abstract import AnyStore
from mlstate.stores.custom import state_store
from mlstate.stores.read import StateStore

__all__ = ["Description", "FileInfo", "TensorInfo", "WeightsFileInfo", "describe"]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a state.

    Attributes:
        name: Its name.
        dtype: Its element type, as safetensors names it: ``"F32"``.
        shape: Its shape.
        nbytes: The bytes of its data.
        digest: The digest of its object; None of one so small that it is within the state object.
        same_names: Other names in this state for the same bytes: tied weights.
        states: Other states of this store that have the same object.
        encoded: The bytes of its object in encoded form, if it has no other here; else None.
        base: The digest of the object that this is the difference to; None of one encoded alone.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    digest: str | None
    same_names: tuple[str, ...]
    states: tuple[str, ...]
    encoded: int | None = None
    base: str | None = None


@dataclass(frozen=True)
class FileInfo:
    """A file of a state: its name, its digest, and its size in bytes if it is here."""

    name: str
    digest: str
    nbytes: int | None


@dataclass(frozen=True)
class WeightsFileInfo:
    """A file that tensors of a state came in: its path, and what `prefix` their names got."""

    name: str
    prefix: str


@dataclass(frozen=True)
class Description(Tabular):
    """All that is known of a state.

    Attributes:
        key: Its key.
        digest: Its state digest; None if it is not pinned.
        pinned_on: The day on which its first use has pinned it for this user; None if its manifest
            gives the digest, or nobody does.
        first_use: Whether its first use would pin it.
        nbytes: The bytes of its tensors, every name counted; or None.
        origin: The manifest or state file that lists it, or None.
        mirrors: The addresses of its tensors.
        objects: The addresses of copies of a store that have its objects.
        files: Its files.
        layout: The files that its tensors came in; empty if that is not known.
        meta: The notes that were saved with it.
        tensors: Its tensors; None if its state object is not at hand.
    """

    key: StateKey
    digest: str | None
    pinned_on: str | None
    first_use: bool
    nbytes: int | None
    origin: str | None
    mirrors: tuple[str, ...]
    objects: tuple[str, ...]
    files: tuple[FileInfo, ...]
    layout: tuple[WeightsFileInfo, ...]
    meta: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...] | None

    def _table(self) -> Table:
        rows = [
            (
                one.name,
                one.dtype,
                "x".join(map(str, one.shape)) or "scalar",
                size_cell(one.nbytes),
                ", ".join((*one.same_names, *one.states)),
            )
            for one in self.tensors or ()
        ]
        summary = f"{self.key}: {size_cell(self.nbytes)}, {self.digest or 'not pinned'}"
        return Table(("TENSOR", "TYPE", "SHAPE", ">SIZE", "SHARED WITH"), rows, summary)


def describe(store: AnyStore, key: StateKey) -> Description:
    """Say all that is known of a state. No tensor is read, let alone fetched.

    A state object that is not here is fetched if it can be had alone: from a copy of a store, a
    bucket, or a release.

    Args:
        store: Any store of mlstate.
        key: The state.

    Raises:
        StateNotFoundError: There is no such state.
        IntegrityError: Its state object is damaged.

    Example:
        >>> import torch
        >>> from mlstate import MemoryStateStore
        >>> store = MemoryStateStore()
        >>> key = StateKey.parse("pytorch.linear.ones")
        >>> _ = store.save_state_dict({"weight": torch.ones(2, 3)}, key)
        >>> [(t.name, t.dtype, t.shape) for t in describe(store, key).tensors]
        [('weight', 'F32', (2, 3))]
    """
    view = state_store(store)
    entry, objects = view.get(key)
    with concerning(key):
        state = _state_object(view, entry, objects)
        return Description(
            key,
            entry.digest,
            None if entry.pin is None else entry.pin.date.date().isoformat(),
            entry.digest is None and view.first_use is not None and view.first_use.allows(entry),
            entry.size if state is None else state.nbytes,
            entry.origin,
            tuple(address for mirror in entry.mirrors for address in _addresses(mirror)),
            entry.objects,
            tuple(
                FileInfo(name, file.digest, objects.size(file.digest))
                for name, file in sorted(entry.files.items())
            ),
            tuple(WeightsFileInfo(n, file.prefix) for n, file in sorted(entry.layout.items())),
            entry.meta,
            None if state is None else tuple(_tensors(view, state, _others(view, key, state))),
        )


def _state_object(store: StateStore, entry: StateEntry, objects: ObjectStore) -> StateObject | None:
    """The state object, fetched if it can be had alone; None if it is not at hand."""
    if entry.digest is None:
        return None
    if objects.size(entry.digest) is None:
        apart = any(isinstance(mirror, Mirror) and mirror.state for mirror in entry.mirrors)
        if not (entry.objects or apart):
            return None
        try:
            store.access.bring(entry, Only.STATE_OBJECT, files=False)
        except (FetchError, OfflineError):
            return None
    return read_state(entry, objects)


def _others(store: StateStore, key: StateKey, state: StateObject) -> Mapping[Digest, list[str]]:
    """Object of this state -> the others of this store that have it, as far as they are here."""
    digests = {number_of(ref.digest): ref.digest for ref in state.refs.values()}
    having: dict[Digest, list[str]] = {}
    with suppress(UnsupportedStoreError), open_index() as index:
        known = known_states(store, index)
        for other, named in known.holding(set(digests), but=key):
            for number in named:
                having.setdefault(digests[number], []).append(str(other))
        known.keep()
    return having


def _tensors(
    store: StateStore, state: StateObject, others: Mapping[Digest, list[str]]
) -> Iterator[TensorInfo]:
    names: dict[Digest, list[str]] = {}
    for name, ref in state.refs.items():
        names.setdefault(ref.digest, []).append(name)
    for name, spec in sorted(state.specs.items()):
        held = state.refs.get(name)
        digest = None if held is None else held.digest
        same = () if digest is None else tuple(n for n in names[digest] if n != name)
        states = () if digest is None else tuple(others.get(digest, ()))
        encoded, base = (None, None) if digest is None else _form(store, digest)
        yield TensorInfo(
            name, spec.dtype, spec.shape, spec.nbytes, digest, same, states, encoded, base
        )


def _form(store: StateStore, digest: Digest) -> tuple[int | None, Digest | None]:
    """The size and the base of an object that is encoded only, in a store on this machine."""
    own = store.objects if store.own is None else store.own
    places: Sequence[ObjectStore] = folders_of(own) or [own]
    for place in places:
        if store.place is None and isinstance(place, EncodedObjectStore):
            size = place.encoded_size(digest)
            if size is not None and place.plain_size(digest) is None:
                with suppress(FormatError, ObjectNotFoundError):  # which `verify` reports
                    return size, head_of(place, digest).base
    return None, None


def _addresses(mirror: object) -> Iterator[str]:
    """The addresses of a mirror, with those of its parts."""
    if not isinstance(mirror, Mirror):
        yield f"unusable: {getattr(mirror, 'why', mirror)}"
        return
    yield from mirror.urls
    for part in mirror.parts:
        yield from _addresses(part)
