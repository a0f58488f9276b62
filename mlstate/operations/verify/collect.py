"""The states that are to be verified: their entries, and what is wrong before any byte is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mlstate.errors import AccessError, IntegrityError, ManifestError, MlstateError, SignatureError
from mlstate.manifests import StateEntry
from mlstate.operations.verify.report import (
    Finding,
    other_weights,
    unreadable_folder,
    unreadable_state_file,
    unsigned_state,
)
from mlstate.parallel import for_each
from mlstate.states import StateKey, check_keys
from mlstate.stores.arguments import not_found
from mlstate.stores.read import StateStore

__all__ = ["Collected", "collect"]


@dataclass
class Collected:
    """The states of a store that a verification is about.

    Attributes:
        keys: Those that were asked for; None for all.
        entries: Those with a digest, sorted by key.
        without_digest: Those of a manifest that have none.
        unverifiable: Checkpoints of MLModule, which carry no digest.
        compared: States of a user's own store, which were loaded and compared.
        findings: What is wrong with state files.
    """

    keys: list[StateKey] | None
    entries: list[StateEntry] = field(default_factory=list)
    without_digest: list[StateEntry] = field(default_factory=list)
    unverifiable: list[StateKey] = field(default_factory=list)
    compared: list[StateKey] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def collect(store: StateStore, keys: Iterable[StateKey] | None, threads: int) -> Collected:
    """Look up the entry of each state.

    Raises:
        StateNotFoundError: There is no such state.
        TransportError: A store on the network cannot be asked.
    """
    found = Collected(None if keys is None else list(dict.fromkeys(check_keys(keys))))

    def look_up(key: StateKey) -> None:
        try:
            entry = store.catalog.recorded(key)
        except SignatureError as error:
            found.findings.append(unsigned_state(key, error))
            return
        except (ManifestError, OSError) as error:
            if isinstance(error, MlstateError) and not isinstance(error, ManifestError):
                raise  # the store as a whole cannot be asked
            found.findings.append(unreadable_state_file(key, error))
            return
        if entry is None:
            _take_unrecorded(store, key, found)
        elif entry.digest is None:
            found.without_digest.append(entry)
        else:  # without what may be long and is not needed
            found.entries.append(replace(entry, meta={}, unknown={}))

    for_each(look_up, _all_keys(store, found) if found.keys is None else found.keys, threads)
    found.entries.sort(key=lambda entry: entry.key)
    found.without_digest.sort(key=lambda entry: entry.key)
    found.unverifiable.sort()
    return found


def _all_keys(store: StateStore, found: Collected) -> list[StateKey]:
    """The keys of all states; a folder of them that may not be read is a finding."""
    try:
        return store.get_state_keys()
    except AccessError as error:
        if store.folder is None:
            raise  # a server's: none of it can be asked
        found.findings.append(unreadable_folder(error))
        return sorted(listing.key for listing in store.listing())


def _take_unrecorded(store: StateStore, key: StateKey, found: Collected) -> None:
    """A checkpoint without a digest; or a user's own state, compared as it is loaded."""
    if not store.exists(key):
        if found.keys is not None:
            raise not_found(key, store, store.get_state_keys(key.state_type))
    elif store.catalog.requires_signature:
        try:
            store.get(key)
        except SignatureError as error:
            found.findings.append(unsigned_state(key, error))
    elif not store.catalog.compares:
        found.unverifiable.append(key)
    else:
        try:
            store.get(key)
        except IntegrityError as error:
            found.findings.append(other_weights(key, error))
        else:
            found.compared.append(key)
