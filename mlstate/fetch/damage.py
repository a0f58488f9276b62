"""Which objects of a state are damaged in a cache: every byte is read."""

from __future__ import annotations

from threading import Lock

from mlstate.digests import Digest
from mlstate.errors import ObjectNotFoundError
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore
from mlstate.objects.verified import digest_of
from mlstate.parallel import for_each
from mlstate.reading import read_state

__all__ = ["damaged_objects"]


def damaged_objects(entry: StateEntry, objects: ObjectStore) -> list[Digest]:
    """The objects of a state whose bytes are not those that their digests name.

    What is missing is not damaged. If the state object is damaged it is the only one that is
    named: it would say what the others are.

    Raises:
        UnpinnedStateError: The entry gives no digest.
    """
    damaged: list[Digest] = []
    lock = Lock()

    def look(digest: Digest) -> None:
        try:
            right = digest_of(objects, digest) == digest
        except ObjectNotFoundError:
            return
        if not right:
            with lock:
                damaged.append(digest)

    look(entry.pinned_digest)
    if not damaged and objects.size(entry.pinned_digest) is not None:
        state = read_state(entry, objects)
        named = {ref.digest for ref in state.refs.values()}
        for_each(look, sorted(named | {file.digest for file in entry.files.values()}))
    return sorted(damaged)
