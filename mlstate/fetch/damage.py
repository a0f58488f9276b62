"""Which objects of a state are damaged in a cache (every byte is read), and who could give them."""

from __future__ import annotations

from collections.abc import Collection
from threading import Lock

from mlstate.digests import Digest
from mlstate.errors import ObjectNotFoundError
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore
from mlstate.objects.verified import digest_of, is_disk_error
from mlstate.parallel import for_each
from mlstate.reading import read_state

__all__ = ["damaged_objects", "has_mirrors"]


def has_mirrors(entry: StateEntry) -> bool:
    """Whether an entry says of any place where its bytes can be had."""
    of_files = any(file.mirrors for file in entry.files.values())
    return bool(entry.mirrors or entry.objects or of_files)


def damaged_objects(
    entry: StateEntry, objects: ObjectStore, names: Collection[str] | None, *, files: bool
) -> list[Digest]:
    """The objects of a state whose bytes are not those that their digests name.

    What is missing is not damaged. If the state object is damaged no tensors are named: it would
    say what they are.

    Args:
        entry: What a manifest says of the state.
        objects: Where the objects are.
        names: The tensors to look at; None: all.
        files: Whether to look at the state's files, too.

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
        except OSError as error:
            if not is_disk_error(error):
                raise
            right = False
        if not right:
            with lock:
                damaged.append(digest)

    named = {file.digest for file in entry.files.values()} if files else set()
    if names is None or names:
        look(entry.pinned_digest)
        if not damaged and objects.size(entry.pinned_digest) is not None:
            refs = read_state(entry, objects).refs
            named |= {ref.digest for name, ref in refs.items() if names is None or name in names}
    for_each(look, sorted(named))
    return sorted(damaged)
