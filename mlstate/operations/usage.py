"""`usage` tells the space that each state takes, from state objects alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from mlstate.errors import (
    AccessError,
    FetchError,
    MlstateError,
    TransportError,
    UnsupportedStoreError,
)
from mlstate.format import layout
from mlstate.index import Index, open_index
from mlstate.objects.cache import folders_of
from mlstate.objects.interface import EncodedObjectStore
from mlstate.operations.object_forms import ObjectForms
from mlstate.operations.usage_counter import Counter, Result
from mlstate.operations.usage_report import ArchitectureUsage, DiskUsage, StateUsage, Usage
from mlstate.parallel import for_each
from mlstate.reading import Only
from mlstate.states import StateKey, StateType, check_keys
from mlstate.stores.abstract import AnyStore, Found, Listing
from mlstate.stores.custom import state_store
from mlstate.stores.known import KnownStates
from mlstate.stores.read import StateStore

__all__ = ["ArchitectureUsage", "DiskUsage", "StateUsage", "Usage", "usage", "usage_of_states"]


def usage(store: AnyStore, keys: Iterable[StateKey] | None = None, *, disk: bool = True) -> Usage:
    """Say what takes the space in a store.

    State objects are read, no tensors; torch is not imported. Of a store in a bucket state objects
    come through the cache. A view over manifests fetches nothing: what is not in its cache has the
    size that the manifest gives. Nothing is noted as used.

    Args:
        store: Any store of mlstate, or one of your own with `load_state_dict` or `digest`.
        keys: Tell of these states only, if they are there. What is shared is found out among all.
        disk: Whether to measure all that lies there, too: what no state needs, what is in trash/.
            It is listed for that, a bucket as well.

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
    # Which knows buckets, too: a list of states needs none of it.
    from mlstate.operations.usage_disk import disk_usage, objects_of_others

    chosen = None if keys is None else set(check_keys(keys))
    view = state_store(store)
    with open_index() as index:
        known = known_states(view, index)
        forms = _forms(view, disk=disk)
        counter = Counter(view, index, known, forms=forms)
        counter.add_all(_look_at_all(view, chosen, known, index))
        known.forget_others()
        known.keep()
        states = counter.states()
        total, unnamed, trash = counter.total, None, None
        others = objects_of_others(view, index, forms) if disk else {}
    measured = disk_usage(view, counter, others) if disk else None
    if measured is not None:
        unnamed, trash = measured.unnamed, measured.trash
        total += measured.others if view.folder is not None else 0
    if chosen is not None:
        states = [state for state in states if state.key in chosen]
    encoded = forms.usage() if forms else None
    families = tuple(counter.architectures())
    return Usage(total, unnamed, trash, families, tuple(states), measured, encoded)


def usage_of_states(
    store: AnyStore, state_type: StateType | None = None, *, meta: bool = False
) -> list[StateUsage]:
    """Say what states take, all or those compatible with a type: of `usage`, this part alone.

    Of a type in a folder that the index knows, no other states are looked at than those whose
    folders have changed since.

    Args:
        store: As for `usage`.
        state_type: Which states; all by default.
        meta: Whether to say what is noted of each, too: its entry is read for that.

    Raises:
        MlstateError: As `usage`.
    """
    view = state_store(store)
    states = _usage_of_states(view, state_type)
    if meta:
        for_each(lambda place: _add_meta(view, states, place), range(len(states)), view.threads)
    return states


def _add_meta(store: StateStore, states: list[StateUsage], place: int) -> None:
    state = states[place]
    with suppress(MlstateError, OSError):  # which is told of it already
        entry = store.catalog.recorded(state.key)
        states[place] = replace(state, meta={} if entry is None else entry.meta)


def _usage_of_states(view: StateStore, state_type: StateType | None) -> list[StateUsage]:
    keys = None if state_type is None else set(view.get_state_keys(state_type))
    with open_index() as index:
        known = known_states(view, index)
        if state_type is not None and keys is not None and known.by_folder:
            path = layout.state_folder(state_type)
            listings = {listing.key: listing for listing in view.catalog.listing_in(path)}
            listings |= {key: Listing(key) for key in keys - listings.keys()}  # checkpoints
            found = list(_look_at(view, sorted(listings.values()), known, index))
            elsewhere = known.elsewhere(known.objects_of(path), path)
            forms = _forms(view, disk=False)
            counter = Counter(view, index, known, elsewhere, few=True, forms=forms)
            counter.add_all(found)
        else:
            counter = Counter(view, index, known, few=True, forms=_forms(view, disk=False))
            counter.add_all(_look_at_all(view, keys, known, index))
            known.forget_others()
        known.keep()
        return [state for state in counter.states() if keys is None or state.key in keys]


def _forms(store: StateStore, *, disk: bool) -> ObjectForms:
    """What is encoded of a store, or in its cache; of a bucket it is asked only for all on disk."""
    stores: list[EncodedObjectStore] = []
    if store.place is None:
        own = store.objects if store.own is None else store.own
        stores += folders_of(own)
        if not stores and isinstance(own, EncodedObjectStore):
            stores.append(own)
    elif disk and isinstance(store.own, EncodedObjectStore):
        stores.append(store.own)
    return ObjectForms(stores, store.threads)


def known_states(store: StateStore, index: Index) -> KnownStates:
    """The states of a store, as an index knows them."""
    far = None if store.place is None else store.own
    return KnownStates(store.catalog, store.objects, index, far)


def _look_at_all(
    store: StateStore, keys: set[StateKey] | None, known: KnownStates, index: Index
) -> Iterator[tuple[Listing, Result]]:
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
) -> Iterator[tuple[Listing, Result]]:
    """States in the order of a list. What the index does not know is looked at, and learned."""
    found: dict[StateKey, Result] = {}
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
    if store.place is not None:
        _bring_unknown(store, found, {listing.key for listing in unknown}, index)
    for listing in listings:
        yield listing, found[listing.key]


def _bring_unknown(
    store: StateStore, found: dict[StateKey, Result], looked: set[StateKey], index: Index
) -> None:
    """Fetch the state objects that are neither here nor in the index.

    The entries of those that were not looked at are of the index, and have no mirrors.
    """

    def bring(state: Found) -> None:
        if store.objects.size(state.entry.pinned_digest) is None:
            try:
                key = state.entry.key
                entry = state.entry if key in looked else store.get(key).entry
                store.access.bring(entry, Only.STATE_OBJECT, files=False)
            except FetchError as error:
                found[state.entry.key] = error

    looked_at = [s for s in found.values() if isinstance(s, Found) and s.entry.digest]
    index.load(state.entry.pinned_digest for state in looked_at)
    lacking = [state for state in looked_at if index.kept(state.entry.pinned_digest) is None]
    for_each(bring, lacking, store.threads)


def _look(store: StateStore, listing: Listing) -> Result:
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
