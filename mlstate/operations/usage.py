"""`usage` tells the space that each state takes, from state objects alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
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
from mlstate.index import Index, number_of, open_index
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import read_roots
from mlstate.operations.doctor.check import reason_of
from mlstate.operations.shared_space import ListedObjects, SharedSpace
from mlstate.operations.usage_report import ArchitectureUsage, Cached, StateUsage, Usage
from mlstate.parallel import for_each
from mlstate.reading import Only, read_state
from mlstate.states import StateKey, StateType, check_keys
from mlstate.stores.abstract import AnyStore, Found, Listing
from mlstate.stores.custom import state_store
from mlstate.stores.known import KnownStates
from mlstate.stores.read import StateStore

__all__ = ["ArchitectureUsage", "StateUsage", "Usage", "usage", "usage_of_type"]

_ANY = StateKey.parse("any.state.root")
"""A key for a state that is known by its digest alone."""


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
    with open_index() as index:
        known = KnownStates(view.catalog, view.objects, index)
        counter = Counter(view, index)
        for listing, found in _look_at_all(view, chosen, known, index):
            counter.add(listing, found)
        known.forget_others()
        known.keep()
        states = counter.states()
        total, unnamed, trash = counter.total, None, None
        if view.folder is not None:
            kept, unnamed = _unnamed(view.folder, counter, index)
            total += kept
    if view.folder is not None:
        trash = _size_of_files(view.folder / layout.TRASH)
    if chosen is not None:
        states = [state for state in states if state.key in chosen]
    return Usage(total, unnamed, trash, tuple(counter.architectures()), tuple(states))


def usage_of_type(store: AnyStore, state_type: StateType) -> list[StateUsage]:
    """Say what the states take that are compatible with a type: of `usage`, their part alone.

    Of a store in a folder that the index knows, no other states are looked at than those whose
    folders have changed since.

    Raises:
        MlstateError: As `usage`.
    """
    view = state_store(store)
    keys = set(view.get_state_keys(state_type))
    folder = layout.state_folder(state_type)
    with open_index() as index:
        known = KnownStates(view.catalog, view.objects, index)
        if known.by_folder and view.folder is not None:
            entries = known.list_folder(folder)
            states = (index.kept(entry.pinned_digest) for entry in entries.values())
            named = {number_of(d) for entry in entries.values() for d in _own_digests(entry)}
            named = named.union(*(state.objects for state in states if state is not None))
            counter = Counter(view, index, elsewhere=known.elsewhere(named, folder))
            listings = [*view.catalog.listing_in(folder)]
            listings += (Listing(key) for key in keys - {listing.key for listing in listings})
            for listing, found in _look_at(view, sorted(listings), known, index):
                counter.add(listing, found)
            known.keep()
            return [state for state in counter.states() if state.key in keys]
    return list(usage(store, keys).states)


def _own_digests(entry: StateEntry) -> Iterator[Digest]:
    yield entry.pinned_digest
    for file in entry.files.values():
        yield file.digest


_Result = Found | MlstateError | None
"""What a look at a state gave: None for one of whose size the listing tells."""


def _look_at_all(
    store: StateStore, keys: set[StateKey] | None, known: KnownStates, index: Index
) -> Iterator[tuple[Listing, _Result]]:
    """All states in the order of their keys; those far away are looked at by many threads."""
    try:
        listings = sorted(store.listing(), key=lambda listing: listing.key)
    except UnsupportedStoreError:  # a store of one's own does not list all
        if keys is None:
            raise
        listings = [Listing(key) for key in sorted(keys) if store.exists(key)]
    return _look_at(store, listings, known, index)


def _look_at(
    store: StateStore, listings: list[Listing], known: KnownStates, index: Index
) -> Iterator[tuple[Listing, _Result]]:
    """States in the order of a list. What the index does not know is looked at, and learned."""
    found: dict[StateKey, _Result] = {}
    unknown: list[Listing] = []
    for listing in listings:
        entry = known.entry(listing)
        if entry is None:
            unknown.append(listing)
        else:
            found[listing.key] = Found(entry, store.objects)

    def look(listing: Listing) -> None:
        found[listing.key] = _look(store, listing)

    for_each(look, unknown, 1 if store.place is None else store.threads)
    for listing in unknown:
        result = found[listing.key]
        known.learn(listing, result.entry if isinstance(result, Found) else None)
    looked_at = [result for result in found.values() if isinstance(result, Found)]
    index.load(result.entry.digest for result in looked_at if result.entry.digest is not None)
    if store.place is not None:
        _bring_unknown(store, found, index)
    for listing in listings:
        yield listing, found[listing.key]


def _bring_unknown(store: StateStore, found: dict[StateKey, _Result], index: Index) -> None:
    """Fetch the state objects that are neither here nor in the index."""

    def bring(state: Found) -> None:
        if store.objects.size(state.entry.pinned_digest) is None:
            try:
                entry = store.get(state.entry.key).entry  # with its mirrors
                store.access.bring(entry, Only.STATE_OBJECT, files=False)
            except FetchError as error:
                found[state.entry.key] = error

    looked_at = [result for result in found.values() if isinstance(result, Found)]
    lacking = [s for s in looked_at if s.entry.digest and index.kept(s.entry.digest) is None]
    for_each(bring, lacking, store.threads)


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


class Counter:
    """Sums over states, which are added in the order of their keys.

    Args:
        store: The store.
        index: What is known of the states.
        elsewhere: Objects that states which are not added name, too.
    """

    def __init__(self, store: StateStore, index: Index, elsewhere: Iterable[int] = ()) -> None:
        self._store = store
        self._index = index
        self._is_far = store.place is not None  # then the objects here are a cache
        self._is_view = store.fetcher is not None
        self.here = ListedObjects(store.objects)
        self._listed_sizes = 0  # bytes of what is no object
        self._states: list[StateUsage] = []
        self._families: dict[StateType, list[int]] = {}
        self._in_family: dict[int, int] = {}  # the objects of the last family, with their sizes
        self.by_state, self._by_family = SharedSpace(elsewhere), SharedSpace()

    @property
    def total(self) -> int:
        """The bytes of all that was added, each object once."""
        return self._listed_sizes + self.by_state.total

    def add(self, listing: Listing, found: _Result) -> None:
        """Add a state."""
        type_ = listing.key.state_type
        family = StateType(type_.backend, type_.architecture)
        if family not in self._families:
            self._end_family()
            self._families[family] = []
        sizes: dict[int, int] = {}
        try:
            state = self._state(listing, found, sizes)
        except (MlstateError, OSError) as error:  # an object in a closed folder, say
            state = StateUsage(
                listing.key,
                modified=listing.modified,
                error=reason_of(error),
                unsigned=isinstance(error, SignatureError),
            )
        self.by_state.add_group(sizes)
        self._in_family |= sizes
        self._families[family].append(len(self._states))
        self._states.append(state)

    def _end_family(self) -> None:
        if self._families:
            self._by_family.add_group(self._in_family)
            self._in_family = {}

    def states(self) -> list[StateUsage]:
        """The usage of each state."""
        return [
            state if state.own is None else replace(state, own=state.own + own, shared=shared)
            for state, (own, shared) in zip(self._states, self.by_state, strict=True)
        ]

    def architectures(self) -> Iterator[ArchitectureUsage]:
        """The usage of each architecture."""
        self._end_family()
        families = zip(self._families.items(), self._by_family, strict=True)
        for (family, places), (own, shared) in families:
            states = [self._states[place] for place in places]
            apart = sum(state.own or 0 for state in states)
            nbytes = sum(state.nbytes or 0 for state in states)
            yield ArchitectureUsage(family, len(places), nbytes, own + apart, shared)

    def _state(self, listing: Listing, found: _Result, sizes: dict[int, int]) -> StateUsage:
        """The usage of a state; `own` has only what is no object, until all are counted.

        Its objects are put into `sizes`.
        """
        key, modified = listing.key, listing.modified
        if isinstance(found, MlstateError):
            raise found
        if found is None:
            self._listed_sizes += listing.size or 0
            return StateUsage(key, None, listing.size, listing.size, 0, None, modified)
        entry = found.entry
        if entry.digest is None:
            return StateUsage(key, None, entry.size, cached="no" if self._is_view else None)
        if modified is None:
            modified = self.here.last_use(entry.digest)
        is_cache = self._is_view and not self._is_far
        if is_cache and not self.here.has(entry.digest, found.objects):
            return StateUsage(key, entry.digest, entry.size, cached="no", modified=modified)
        nbytes, is_whole = self._count_objects(found, sizes)
        cached: Cached | None = None
        if self._is_view:
            cached = "yes" if is_whole else "partly"
        return StateUsage(key, entry.digest, nbytes, 0, 0, cached, modified)

    def _count_objects(self, found: Found, sizes: dict[int, int]) -> tuple[int | None, bool]:
        """Count the objects of a state; return its size, and whether all of it is here."""
        entry, objects = found
        said = self._index.said(entry, objects, here=not self._is_far)
        sizes[number_of(entry.pinned_digest)] = said.size
        is_whole = self.here.has_all(said.objects)
        if is_whole or self._is_far:
            sizes.update(zip(said.objects, said.sizes, strict=True))
        if not is_whole:
            is_whole = True
            for ref in read_state(entry, objects).refs.values():
                is_here = self.here.has(ref.digest, objects)
                is_whole &= is_here
                if is_here:
                    sizes[number_of(ref.digest)] = tensor_object.object_size(ref.spec)
        nbytes: int | None = said.nbytes
        for file in entry.files.values():
            size = objects.size(file.digest)
            is_whole &= size is not None
            if size is None and self._store.own is not None:
                size = self._store.own.size(file.digest)
            if size is not None:
                sizes[number_of(file.digest)] = size
            nbytes = None if size is None or nbytes is None else nbytes + size
        return nbytes, is_whole


def _unnamed(folder: Path, counter: Counter, index: Index) -> tuple[int, int]:
    """The bytes in a folder that no state names: those kept as a cache, and the rest."""
    objects = FolderObjectStore(folder)
    kept: set[int] = set()
    for root in read_roots(folder):
        kept |= set(map(number_of, (root.digest, *root.files)))
        with suppress(MlstateError):  # a cache need not be whole
            kept.update(index.said(StateEntry(_ANY, root.digest), objects).objects)
    sizes = [0, 0]
    for number, digest in counter.here.listed.items():
        if number not in counter.by_state:
            sizes[number not in kept] += objects.size(digest) or 0
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
