"""`usage`: the space that each state takes, from state objects alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mlstate.digests import Digest
from mlstate.errors import (
    AccessError,
    FetchError,
    MlstateError,
    TransportError,
    UnsupportedStoreError,
)
from mlstate.format import layout, tensor_object
from mlstate.objects import FolderObjectStore, ObjectStore
from mlstate.objects.cache import read_roots
from mlstate.operations.doctor.check import reason_of
from mlstate.operations.reports import iso_time
from mlstate.operations.space import Named, Presence
from mlstate.parallel import for_each
from mlstate.reading import Only, read_state, read_state_object
from mlstate.states import StateKey, StateType, check_keys
from mlstate.stores.abstract import AnyStore, Found, Listing
from mlstate.stores.custom import state_store
from mlstate.stores.read import StateStore

__all__ = ["ArchitectureUsage", "StateUsage", "Usage", "usage"]

Cached = Literal["yes", "partly", "no"]


@dataclass(frozen=True)
class StateUsage:
    """A state, and the space that it takes, in bytes.

    Attributes:
        key: Its key.
        digest: Its state digest; None if it is not pinned, or if the store's listing does not tell:
            that of a release, that of checkpoints of an older layout.
        nbytes: The size of its tensor data, every name counted, and of its files; None if unknown.
        own: The size of its objects that no other state of the store names: of those in the cache,
            if the store is a view; None if unknown.
        shared: The size of its other objects.
        cached: Whether it is in the cache, of a store whose states load through one; else None.
        modified: The time when it was saved; of a state of a view, when it was last used; None if
            unknown. In Python these are seconds since the epoch.
        error: Why nothing more is known of it, or None.
    """

    key: StateKey
    digest: Digest | None = None
    nbytes: int | None = None
    own: int | None = None
    shared: int | None = None
    cached: Cached | None = None
    modified: float | None = field(default=None, metadata={"json": iso_time})
    error: str | None = None


@dataclass(frozen=True)
class ArchitectureUsage:
    """All states of an architecture together, in bytes.

    Attributes:
        state_type: Backend and architecture.
        states: How many there are.
        nbytes: The sum of their sizes, as far as these are known.
        own: The size of objects that no state of another architecture names, each once.
        shared: The size of their other objects, each once.
    """

    state_type: StateType
    states: int
    nbytes: int
    own: int
    shared: int


@dataclass(frozen=True)
class Usage:
    """The space that a store takes, in bytes.

    Attributes:
        total: The size of all objects that the states of the store name, each once, and of what a
            folder keeps as a cache. Of a view: of those that are in the cache.
        unnamed: Of a store in a folder, the size of all other objects there, which pruning takes
            when they are old enough; else None.
        trash: Of a store in a folder, the size of what is in its trash/; else None.
        architectures: The states of the whole store by backend and architecture.
        states: The states that were asked for, sorted by key.
    """

    total: int
    unnamed: int | None
    trash: int | None
    architectures: tuple[ArchitectureUsage, ...]
    states: tuple[StateUsage, ...]

    def by_architecture(self) -> Mapping[StateType, ArchitectureUsage]:
        """The states by backend and architecture, whatever their extras; of the whole store."""
        return {found.state_type: found for found in self.architectures}


def usage(store: AnyStore, keys: Iterable[StateKey] | None = None) -> Usage:
    """Say what takes the space in a store.

    State objects are read, no tensors; torch is not imported. Of a store in a bucket state objects
    come through the cache. A view over manifests fetches nothing: what is not in its cache has the
    size that the manifest gives. Nothing is noted as used.

    Args:
        store: Any store of mlstate, or one of your own with `load_state_dict` or `digest`.
        keys: Tell of these states only, if they are there. What is shared is found out among all.

    Raises:
        TransportError: The store cannot be reached.
        AccessError: A credential is missing, or does not allow this.

    Example:
        >>> import torch
        >>> from mlstate import MemoryStateStore
        >>> store = MemoryStateStore()
        >>> key = StateKey.parse("pytorch.linear.ones")
        >>> _ = store.save_state_dict({"weight": torch.ones(100, 100)}, key)
        >>> usage(store).states[0].nbytes
        40000
    """
    chosen = None if keys is None else set(check_keys(keys))
    view = state_store(store)
    counting = _Counting(view)
    for listing, found in _looked_up(view, chosen):
        counting.add(listing, found)
    states = counting.states()
    total, unnamed, trash = counting.total, None, None
    if view.folder is not None:
        kept, unnamed = _unnamed(view.folder, view.objects, counting.named)
        total += kept
        trash = _size_of_files(view.folder / layout.TRASH)
    if chosen is not None:
        states = [state for state in states if state.key in chosen]
    return Usage(total, unnamed, trash, tuple(counting.architectures()), tuple(states))


_Looked = Found | MlstateError | None


def _looked_up(store: StateStore, keys: set[StateKey] | None) -> Iterator[tuple[Listing, _Looked]]:
    """All states in the order of their keys; those far away are looked up by many threads."""
    try:
        listings = sorted(store.listing(), key=lambda listing: listing.key)
    except UnsupportedStoreError:  # a store of one's own does not list all
        if keys is None:
            raise
        listings = [Listing(key) for key in sorted(keys) if store.exists(key)]
    if not _is_far(store):
        for listing in listings:
            yield listing, _look(store, listing)
        return
    found: dict[StateKey, _Looked] = {}

    def look(listing: Listing) -> None:
        looked = _look(store, listing)
        if isinstance(looked, Found) and store.objects.size(looked.entry.pinned_digest) is None:
            try:
                store.access.bring(looked.entry, Only.STATE_OBJECT, files=False)
            except FetchError as error:
                looked = error
        found[listing.key] = looked

    for_each(look, listings, store.threads)
    for listing in listings:
        yield listing, found[listing.key]


def _is_far(store: StateStore) -> bool:
    """Whether the objects of a store are elsewhere, and those here are its cache."""
    return store.place is not None


def _look(store: StateStore, listing: Listing) -> _Looked:
    if listing.size is not None:
        return None  # the listing has its size already
    try:
        return store.find(listing.key)
    except (AccessError, TransportError):
        raise  # the next state would meet the same
    except MlstateError as error:
        return error
    except OSError as error:  # this one may not be read, say
        return MlstateError("a state cannot be read", key=listing.key, found=error)


class _Counting:
    """Sums over states, which are added in the order of their keys."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._far = _is_far(store)
        self._view = store.fetcher is not None
        self._there = Presence(store.objects)
        self.named = Named()
        self._apart = 0
        self._states: list[StateUsage] = []
        self._families: dict[StateType, list[int]] = {}

    @property
    def total(self) -> int:
        """The size of all states, each object once."""
        return self.named.total + self._apart

    def add(self, listing: Listing, found: _Looked) -> None:
        """Add a state."""
        type_ = listing.key.state_type
        family = StateType(type_.backend, type_.architecture)
        if family not in self._families:
            self._families[family] = []
            self.named.begin_family()
        self.named.begin_state()
        try:
            state = self._state(listing, found)
        except MlstateError as error:
            state = StateUsage(listing.key, modified=listing.modified, error=reason_of(error))
        self._families[family].append(len(self._states))
        self._states.append(state)

    def states(self) -> list[StateUsage]:
        """The usage of each state."""
        return [
            state if state.own is None else replace(state, own=state.own + own, shared=shared)
            for state, (own, shared) in zip(self._states, self.named.of_states(), strict=True)
        ]

    def architectures(self) -> Iterator[ArchitectureUsage]:
        """The usage of each architecture."""
        families = zip(self._families.items(), self.named.of_families(), strict=True)
        for (family, places), (own, shared) in families:
            states = [self._states[place] for place in places]
            apart = sum(state.own or 0 for state in states)
            nbytes = sum(state.nbytes or 0 for state in states)
            yield ArchitectureUsage(family, len(places), nbytes, own + apart, shared)

    def _state(self, listing: Listing, found: _Looked) -> StateUsage:
        """The usage of a state; `own` has only what is no object, until all are counted."""
        key, modified = listing.key, listing.modified
        if isinstance(found, MlstateError):
            raise found
        if found is None:
            self._apart += listing.size or 0
            return StateUsage(key, None, listing.size, listing.size, 0, None, modified)
        entry = found.entry
        if entry.digest is None:
            return StateUsage(key, None, entry.size, cached="no" if self._view else None)
        if modified is None:
            modified = self._there.last_use(entry.digest)
        if self._view and not self._far and not self._there.has(entry.digest, found.objects):
            return StateUsage(key, entry.digest, entry.size, cached="no", modified=modified)
        nbytes, whole = self._count_objects(found)
        cached: Cached = "yes" if whole else "partly"
        return StateUsage(key, entry.digest, nbytes, 0, 0, cached if self._view else None, modified)

    def _count_objects(self, found: Found) -> tuple[int | None, bool]:
        """Count the objects of a state; return its size, and whether all of it is here."""
        entry, objects = found
        state = read_state(entry, objects)
        self.named.count(entry.pinned_digest, objects.size(entry.pinned_digest) or 0)
        whole = True
        for ref in state.refs.values():
            there = self._there.has(ref.digest, objects)
            whole &= there
            if there or self._far:
                self.named.count(ref.digest, tensor_object.object_size(ref.spec))
        nbytes: int | None = state.nbytes
        for file in entry.files.values():
            size = objects.size(file.digest)
            whole &= size is not None
            if size is None and self._store.own is not None:
                size = self._store.own.size(file.digest)
            if size is not None:
                self.named.count(file.digest, size)
            nbytes = None if size is None or nbytes is None else nbytes + size
        return nbytes, whole


def _unnamed(folder: Path, objects: ObjectStore, named: Named) -> tuple[int, int]:
    """The bytes in a folder that no state names: those kept as a cache, and the rest."""
    kept: set[Digest] = set()
    for root in read_roots(folder):
        kept |= {root.digest, *root.files}
        with suppress(MlstateError):  # a cache need not be whole
            kept |= {ref.digest for ref in read_state_object(root.digest, objects).refs.values()}
    sizes = [0, 0]
    for digest in FolderObjectStore(folder).digests():
        if digest not in named:
            sizes[digest not in kept] += objects.size(digest) or 0
    return sizes[0], sizes[1]


def _size_of_files(folder: Path) -> int:
    size = 0
    if not folder.is_dir():  # or a loop of links, say
        return size
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    size += entry.stat(follow_symlinks=False).st_size
    return size
