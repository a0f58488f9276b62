"""Plans: what a fetch or a copy would bring, told without bringing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlstate.digests import Digest
from mlstate.manifests import FileEntry, StateEntry
from mlstate.objects.saving import absent
from mlstate.operations.transfer import ObjectCounter, StateTransfer
from mlstate.reading import needs_of
from mlstate.states import StateKey, check_key
from mlstate.stores.abstract import AbstractStateStore
from mlstate.stores.read import StateStore
from mlstate.stores.save_request import check_same

__all__ = ["FetchPlan", "planned_copy", "planned_fetch"]


@dataclass(frozen=True)
class FetchPlan:
    """What a fetch of a state would bring.

    Attributes:
        digest: The state digest; None if the first use is to pin it.
        missing: Whether something is missing in the cache.
        nbytes: The bytes that travel for the tensor objects that are missing; of a state whose
            state object is not to be had, the size that its manifest gives, of which some may be
            here; None if nobody says. Files have no sizes before they are here, and are not
            counted.
        spared: The bytes of its tensors that are in the cache.
    """

    digest: Digest | None
    missing: bool
    nbytes: int | None
    spared: int


def planned_fetch(store: StateStore, key: StateKey) -> FetchPlan:
    """What `store.fetch` would bring of a state.

    If 16 MiB or more are missing a mirror of objects is asked what it has encoded; if none answers,
    it is said what the plain objects have.

    Raises:
        StateNotFoundError: There is no such state.
        UnpinnedStateError: The manifest gives no digest, and its first use would not pin it.
    """
    check_key(key)
    entry, objects = store.get(key)
    if entry.digest is None and store.first_use is not None and store.first_use.allows(entry):
        return FetchPlan(None, True, entry.size, 0)
    needs = needs_of(entry, objects, None, files=True)
    nbytes = entry.size if needs.lacks_state else sum(needs.objects.values())
    if needs and store.fetcher is not None:
        estimate = store.fetcher.estimated_bytes(entry)
        nbytes = nbytes if estimate is None else estimate
    return FetchPlan(entry.pinned_digest, bool(needs), nbytes, needs.present)


def planned_copy(
    source: StateStore, target: AbstractStateStore[Any], key: StateKey, *, overwrite: bool
) -> tuple[bool, int]:
    """Whether a state would be new in the target, and the bytes of the tensors that it lacks.

    State objects of the source are read, and fetched where they are elsewhere; no tensors.

    Raises:
        StateExistsError: The target has other weights or files under the key.
        MlstateError: The state cannot be read, or the target cannot be asked.
    """
    found = source.get(key)
    files = {name: FileEntry(file.digest) for name, file in found.entry.files.items()}
    stored = target.find(key) if isinstance(target, StateStore) else None
    if stored is not None and not overwrite:
        wanted = StateEntry(key, found.entry.digest, files=files)
        check_same(stored.entry, found.entry.pinned_digest, wanted)
        return False, 0
    encoded = StateTransfer(source, found, ObjectCounter(key, None)).encoded
    sizes = {digest: encoded.sizes()[digest] for digest in encoded.sources}
    own = target.own if isinstance(target, StateStore) else None
    lacking = list(sizes) if own is None else absent(own, sizes)
    return True, sum(sizes[digest] for digest in lacking)
