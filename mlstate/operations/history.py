"""`history` and `restore`: what was saved, replaced and deleted, and how it comes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from mlstate.digests import Digest
from mlstate.errors import (
    MlstateError,
    ObjectNotFoundError,
    ReadOnlyStoreError,
    StateExistsError,
    StateNotFoundError,
    UnsupportedStoreError,
    concerning,
)
from mlstate.format.tensor_object import TensorSpec
from mlstate.manifests import StateEntry
from mlstate.objects.verified import open_object
from mlstate.operations.doctor.check import reason_of
from mlstate.operations.reports import iso_time
from mlstate.operations.transfer import ObjectCounter, StateTransfer
from mlstate.phrases import OVERWRITE, Phrase
from mlstate.reading import needs_of
from mlstate.states import StateKey, check_key, check_keys
from mlstate.stores.abstract import AnyStore, Found, TrashedState
from mlstate.stores.custom import state_store
from mlstate.stores.read import StateStore
from mlstate.stores.save import SavingStore
from mlstate.stores.save_request import SaveRequest
from mlstate.stores.statefiles import parse_state_file

__all__ = ["Event", "history", "restore"]

Happened = Literal["saved", "replaced", "deleted"]


@dataclass(frozen=True)
class Event:
    """Something that happened to a state.

    Attributes:
        key: Its key.
        event: ``"saved"``: it is there since then. ``"replaced"``: another state has its key since
            then. ``"deleted"``: none has.
        time: When; None if the store does not tell. In Python seconds since the epoch.
        digest: The state digest of the state that was saved or went; None if it cannot be read.
        nbytes: The bytes of its tensors; None if they are not known.
        error: Why its state file cannot be read, or None.
    """

    key: StateKey
    event: Happened
    time: float | None = field(metadata={"json": iso_time})
    digest: Digest | None = None
    nbytes: int | None = None
    error: str | None = None


def history(store: AnyStore, keys: Iterable[StateKey] | None = None) -> list[Event]:
    """Say what was saved, replaced and deleted in a store, the newest first.

    The store keeps no log: its state files tell when they were written, and those in its trash when
    they went. So a state that went is told of until a pruning empties the trash, 14 days after; of
    one that is there the last saving is told. What was saved under a key after a state had been
    deleted has replaced it.

    Args:
        store: A folder, a bucket, or a store in memory.
        keys: Tell of these only; they need not be there any more.

    Raises:
        UnsupportedStoreError: The store keeps nothing of what it deletes.
        TransportError: The store cannot be reached.
        AccessError: A credential is missing, or does not allow this.

    Example:
        >>> import torch
        >>> from mlstate import MemoryStateStore
        >>> store = MemoryStateStore()
        >>> key = StateKey.parse("pytorch.linear.ones")
        >>> _ = store.save_state_dict({"weight": torch.ones(2)}, key)
        >>> store.delete(key)
        >>> [event.event for event in history(store)]
        ['deleted']
    """
    view = state_store(store)
    chosen = None if keys is None else set(check_keys(keys))
    trashed = [state for state in _trash_of(view) if chosen is None or state.key in chosen]
    there = [item for item in view.listing() if chosen is None or item.key in chosen]
    events = [_saved(view, item.key, item.modified) for item in there]
    newest: dict[StateKey, float] = {}
    for state in trashed:
        newest[state.key] = max(newest.get(state.key, state.removed), state.removed)
    having = {item.key for item in there}
    for state in trashed:
        is_last = state.key not in having and state.removed == newest[state.key]
        events.append(_removed(state, "deleted" if is_last else "replaced"))
    return sorted(events, key=lambda event: (-(event.time or 0.0), event.key))


def restore(
    store: AnyStore,
    key: StateKey,
    *,
    digest: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Event:
    """Bring a state back that was deleted, or replaced by another.

    It comes back with its files, its meta and its signature, as its state file in the trash has
    them. Objects that a pruning has moved to the trash come back, too.

    Args:
        store: A folder, a bucket, or a store in memory.
        key: The state.
        digest: Which, of several that had this key: its state digest, or as many of its first
            digits as tell it from others. By default the one that went last.
        overwrite: Put it in place of the state that has the key now, which goes to the trash.
        dry_run: Change nothing; raise what restoring it would. Of a bucket the objects are not
            looked at.

    Returns:
        The event of its removal, which is undone.

    Raises:
        StateNotFoundError: The trash has no such state.
        StateExistsError: Another state has this key now; nothing was changed.
        IntegrityError: An object of it is damaged, or was deleted by a pruning: it cannot come
            back. Nothing was changed.
        UnsupportedStoreError: The store keeps nothing of what it deletes.
        SignatureError: The store requires a signature, and it has no good one, or a newer version
            of this state was seen.
    """
    view = state_store(store)
    check_key(key)
    trash = _trash_of(view)
    if not isinstance(view, SavingStore):
        raise ReadOnlyStoreError("states of this store cannot be restored here", path=view)
    with concerning(key):
        state, data = _last(view, [one for one in trash if one.key == key], digest)
        entry = view.catalog.trashed_entry(state, data)
        _check_free(view, entry, overwrite=overwrite)
        found = Found(entry, view.objects)
        transfer = StateTransfer(view, found, ObjectCounter(key, None))
        if view.fetcher is None:
            _check_whole(found)
        if not dry_run:
            _bring_back(view, state, data, found, transfer, overwrite=overwrite)
    return _removed(state, "deleted")


def _trash_of(store: StateStore) -> Iterator[TrashedState]:
    trashed = store.catalog.trashed()
    if trashed is None:
        raise UnsupportedStoreError(
            "this store keeps nothing of what it deletes",
            path=store,
            expected="a folder, or a bucket",
        )
    return trashed


def _saved(store: StateStore, key: StateKey, when: float | None) -> Event:
    try:
        entry = store.catalog.recorded(key)
    except (MlstateError, OSError) as error:
        return Event(key, "saved", when, error=reason_of(error))
    if entry is None:  # a checkpoint of MLModule, whose digest takes reading it; or just deleted
        return Event(key, "saved", when)
    return Event(key, "saved", when, entry.digest, entry.size)


def _removed(state: TrashedState, event: Happened) -> Event:
    try:
        data = state.read()
        entry = None if data is None else parse_state_file(data, state.key, state.place)
    except (MlstateError, OSError) as error:
        return Event(state.key, event, state.removed, error=reason_of(error))
    if entry is None:
        return Event(state.key, event, state.removed, error="a pruning has just taken it")
    return Event(state.key, event, state.removed, entry.digest, entry.size)


def _last(
    store: StateStore, trashed: list[TrashedState], digest: str | None
) -> tuple[TrashedState, bytes]:
    """The state in the trash that went last, of those with this digest, and its state file."""
    for state in sorted(trashed, key=lambda state: -state.removed):
        data = state.read()
        if data is None:
            continue
        if digest is None or _digest_in(state, data).startswith(digest.lower()):
            return state, data
    raise StateNotFoundError(
        "the trash has no such state" if trashed else "the trash has no state of this key",
        path=store,
        expected=digest,
        found=", ".join(sorted({str(_removed(state, "deleted").digest) for state in trashed})),
        remedy="see what it has: " + Phrase("mlstate.history(store)", f"mlstate log {store!s}"),
    )


def _digest_in(state: TrashedState, data: bytes) -> str:
    with suppress(MlstateError):
        return str(parse_state_file(data, state.key, state.place).digest)
    return ""


def _check_free(store: StateStore, entry: StateEntry, *, overwrite: bool) -> None:
    """Refuse, by a StateExistsError, to put a state in the place of another, or of itself."""
    try:
        there = store.find(entry.key)
    except MlstateError:
        if overwrite:
            return
        raise
    if there is None or overwrite:
        return
    same = there.entry.digest == entry.digest
    raise StateExistsError(
        "this state is there" if same else "this key has another state now; nothing was changed",
        path=there.entry.origin,
        expected=f"{entry.digest}, from the trash",
        found=f"{there.entry.digest}, stored",
        remedy=None if same else OVERWRITE + " puts it into the trash",
    )


def _check_whole(found: Found) -> None:
    """Raise an ObjectNotFoundError if an object is neither in its place nor in the trash."""
    needs = needs_of(found.entry, found.objects, None, files=True)
    specs: dict[Digest, TensorSpec | None] = {f.digest: None for f in needs.files.values()}
    specs |= {ref.digest: ref.spec for ref in needs.refs.values()}
    for digest, spec in specs.items():
        try:
            open_object(found.objects, digest, spec).close()
        except ObjectNotFoundError as error:
            error.message = "a pruning has deleted an object of this state; nothing was changed"
            error.remedy = "save or fetch these weights again, if they are somewhere else"
            raise


def _bring_back(
    store: SavingStore,
    state: TrashedState,
    data: bytes,
    found: Found,
    transfer: StateTransfer,
    *,
    overwrite: bool,
) -> None:
    """Save the state of the trash, by the steps of every saving; then its state file as it was."""
    said = parse_state_file(data, state.key, state.place)
    files = store.files_of(found)
    request = SaveRequest(files, said.meta or None, overwrite, layout=said.layout or None)
    transfer.save_into(store.saver, replace(said, digest=None, size=None), request)
    signatures = store.catalog.signatures
    now = store.catalog.text(state.key)
    if (signatures is not None and signatures.key is not None) or now is None:
        return
    # A signature, and what a later version may have written. Else another process was quicker.
    same = parse_state_file(now.data, state.key, now.path).digest == said.digest
    if same and now.data != data:
        store.saver.change(state.key, now.data, data)
