"""`usage` tells the space that each state takes, from state objects alone."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mlstate.digests import Digest
from mlstate.errors import (
    AccessError,
    FetchError,
    MlstateError,
    SignatureError,
    TransportError,
    UnsupportedStoreError,
)
from mlstate.format import layout, tensor_object
from mlstate.objects import FolderObjectStore, ObjectStore
from mlstate.objects.cache import read_roots
from mlstate.objects.plain_folders import read_folders
from mlstate.operations.doctor.check import reason_of
from mlstate.operations.shared_space import ListedObjects, SharedSpace
from mlstate.operations.usage_report import ArchitectureUsage, Cached, StateUsage, Usage
from mlstate.parallel import for_each
from mlstate.reading import Only, read_state, read_state_object
from mlstate.states import StateKey, StateType, check_keys
from mlstate.stores.abstract import AnyStore, Found, Listing
from mlstate.stores.custom import state_store
from mlstate.stores.read import StateStore

__all__ = ["ArchitectureUsage", "StateUsage", "Usage", "usage"]


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
    counter = _Counter(view)
    for listing, found in _look_at_all(view, chosen):
        counter.add(listing, found)
    states = counter.states()
    total, unnamed, trash = counter.total, None, None
    if view.folder is not None:
        kept, unnamed = _unnamed(view.folder, view.objects, counter.numbers)
        total += kept
        trash = _size_of_files(view.folder / layout.TRASH)
    if chosen is not None:
        states = [state for state in states if state.key in chosen]
    folders = None
    if view.fetcher is not None and view.place is None and (cache := view.fetcher.cache.own):
        folders = sum(folder.size for folder in read_folders(cache.root))
    architectures = tuple(counter.architectures())
    return Usage(total, unnamed, trash, architectures, tuple(states), folders)


_Result = Found | MlstateError | None
"""What a look at a state gave: None for one of whose size the listing tells."""


def _look_at_all(
    store: StateStore, keys: set[StateKey] | None
) -> Iterator[tuple[Listing, _Result]]:
    """All states in the order of their keys; those far away are looked at by many threads."""
    try:
        listings = sorted(store.listing(), key=lambda listing: listing.key)
    except UnsupportedStoreError:  # a store of one's own does not list all
        if keys is None:
            raise
        listings = [Listing(key) for key in sorted(keys) if store.exists(key)]
    if store.place is None:
        for listing in listings:
            yield listing, _look(store, listing)
        return
    found: dict[StateKey, _Result] = {}

    def look(listing: Listing) -> None:
        result = _look(store, listing)
        if isinstance(result, Found) and store.objects.size(result.entry.pinned_digest) is None:
            try:
                store.access.bring(result.entry, Only.STATE_OBJECT, files=False)
            except FetchError as error:
                result = error
        found[listing.key] = result

    for_each(look, listings, store.threads)
    for listing in listings:
        yield listing, found[listing.key]


def _look(store: StateStore, listing: Listing) -> _Result:
    if listing.size is not None and not store.catalog.requires_signature:
        return None
    try:
        return store.find(listing.key)
    except (AccessError, TransportError):
        raise  # the next state would meet the same
    except MlstateError as error:
        return error
    except OSError as error:  # this one may not be read, say
        return MlstateError("a state cannot be read", key=listing.key, found=error)


class _Counter:
    """Sums over states, which are added in the order of their keys."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._is_far = store.place is not None  # then the objects here are a cache
        self._is_view = store.fetcher is not None
        self._here = ListedObjects(store.objects)
        self.total = 0  # bytes, each object once
        self.numbers: dict[bytes, int] = {}  # of objects that states name
        self._states: list[StateUsage] = []
        self._families: dict[StateType, list[int]] = {}
        self._by_state, self._by_family = SharedSpace(), SharedSpace()

    def add(self, listing: Listing, found: _Result) -> None:
        """Add a state."""
        type_ = listing.key.state_type
        family = StateType(type_.backend, type_.architecture)
        if family not in self._families:
            self._families[family] = []
            self._by_family.begin_group()
        self._by_state.begin_group()
        try:
            state = self._state(listing, found)
        except (MlstateError, OSError) as error:  # an object in a closed folder, say
            state = StateUsage(
                listing.key,
                modified=listing.modified,
                error=reason_of(error),
                unsigned=isinstance(error, SignatureError),
            )
        self._families[family].append(len(self._states))
        self._states.append(state)

    def states(self) -> list[StateUsage]:
        """The usage of each state."""
        return [
            state if state.own is None else replace(state, own=state.own + own, shared=shared)
            for state, (own, shared) in zip(self._states, self._by_state, strict=True)
        ]

    def architectures(self) -> Iterator[ArchitectureUsage]:
        """The usage of each architecture."""
        families = zip(self._families.items(), self._by_family, strict=True)
        for (family, places), (own, shared) in families:
            states = [self._states[place] for place in places]
            apart = sum(state.own or 0 for state in states)
            nbytes = sum(state.nbytes or 0 for state in states)
            yield ArchitectureUsage(family, len(places), nbytes, own + apart, shared)

    def _state(self, listing: Listing, found: _Result) -> StateUsage:
        """The usage of a state; `own` has only what is no object, until all are counted."""
        key, modified = listing.key, listing.modified
        if isinstance(found, MlstateError):
            raise found
        if found is None:
            self.total += listing.size or 0
            return StateUsage(key, None, listing.size, listing.size, 0, None, modified)
        entry = found.entry
        if entry.digest is None:
            return StateUsage(key, None, entry.size, cached="no" if self._is_view else None)
        if modified is None:
            modified = self._here.last_use(entry.digest)
        is_cache = self._is_view and not self._is_far
        if is_cache and not self._here.has(entry.digest, found.objects):
            return StateUsage(key, entry.digest, entry.size, cached="no", modified=modified)
        nbytes, is_whole = self._count_objects(found)
        cached: Cached | None = None
        if self._is_view:
            cached = "yes" if is_whole else "partly"
        return StateUsage(key, entry.digest, nbytes, 0, 0, cached, modified)

    def _count_objects(self, found: Found) -> tuple[int | None, bool]:
        """Count the objects of a state; return its size, and whether all of it is here."""
        entry, objects = found
        state = read_state(entry, objects)
        self._count(entry.pinned_digest, objects.size(entry.pinned_digest) or 0)
        is_whole = True
        for ref in state.refs.values():
            is_here = self._here.has(ref.digest, objects)
            is_whole &= is_here
            if is_here or self._is_far:
                self._count(ref.digest, tensor_object.object_size(ref.spec))
        nbytes: int | None = state.nbytes
        for file in entry.files.values():
            size = objects.size(file.digest)
            is_whole &= size is not None
            if size is None and self._store.own is not None:
                size = self._store.own.size(file.digest)
            if size is not None:
                self._count(file.digest, size)
            nbytes = None if size is None or nbytes is None else nbytes + size
        return nbytes, is_whole

    def _count(self, digest: Digest, size: int) -> None:
        new = len(self.numbers)
        number = self.numbers.setdefault(bytes.fromhex(digest), new)
        if number == new:
            self.total += size
        self._by_family.count(number, size)
        self._by_state.count(number, size)


def _unnamed(folder: Path, objects: ObjectStore, named: Container[bytes]) -> tuple[int, int]:
    """The bytes in a folder that no state names: those kept as a cache, and the rest."""
    kept: set[Digest] = set()
    for root in read_roots(folder):
        kept |= {root.digest, *root.files}
        with suppress(MlstateError):  # a cache need not be whole
            kept |= {ref.digest for ref in read_state_object(root.digest, objects).refs.values()}
    sizes = [0, 0]
    for digest in FolderObjectStore(folder).digests():
        if bytes.fromhex(digest) not in named:
            sizes[digest not in kept] += objects.size(digest) or 0
    return sizes[0], sizes[1]


def _size_of_files(folder: Path) -> int:
    size = 0
    if not folder.is_dir():  # or a loop of links, say
        return size
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    size += entry.stat(follow_symlinks=False).st_size
    return size
