"""Pruning of a cache: whole states, those first that were not used for longest."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mlstate.digests import Digest
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import Root, forget_root, read_roots
from mlstate.objects.folder import GRACE_SECONDS
from mlstate.stores.prune import objects_of_root
from mlstate.stores.prune_folder import prune_folder
from mlstate.stores.statefiles import FolderStateFiles

__all__ = ["CachePruneReport", "prune_cache"]

CACHE_GRACE_SECONDS = 3600.0
"""The grace period of a folder without saved states; longer fetches fetch some objects again."""


@dataclass(frozen=True)
class CachePruneReport:
    """What was removed from a cache, or with ``dry_run`` would be.

    Attributes:
        states: The states that are no longer kept, by digest, each with the key that it was
            fetched for.
        objects: The objects that only they needed, with their sizes in bytes.
    """

    states: dict[Digest, str]
    objects: dict[Digest, int]


def prune_cache(
    objects: FolderObjectStore,
    *,
    max_size: int | None = None,
    older_than: float | None = None,
    dry_run: bool = False,
) -> CachePruneReport:
    """Forget fetched states, and remove the objects that only they need.

    States that were saved in the folder stay, and so do their objects; see `ManifestStore.prune`.

    Raises:
        MlstateError: The folder is no store of this version, or a state that was saved there
            cannot be read. Nothing was removed.
    """
    states = FolderStateFiles(objects.root)
    saved = bool(states.keys())
    grace = GRACE_SECONDS if saved else CACHE_GRACE_SECONDS
    leaving = _leaving(objects, max_size, older_than)
    forgotten = {root.digest for root in leaving}
    report = prune_folder(
        states, objects, grace_seconds=grace, dry_run=dry_run, forgotten=forgotten
    )
    taken = report.trashed | report.deleted
    if not dry_run:
        for digest in forgotten:
            forget_root(objects.root, digest)
        if not saved:  # nobody saves here: trash/ need not wait for the next pruning
            prune_folder(states, objects, grace_seconds=grace)
    return CachePruneReport({root.digest: root.key for root in leaving}, taken)


def _leaving(
    objects: FolderObjectStore, max_size: int | None, older_than: float | None
) -> list[Root]:
    """The states to forget."""
    leaving, now = [], time.time()
    counted: set[Digest] = set()
    total = 0
    for root in sorted(read_roots(objects.root), key=lambda root: -root.used):
        new = objects_of_root(root, objects) - counted
        size = sum(objects.size(digest) or 0 for digest in new)
        too_old = older_than is not None and now - root.used > older_than
        if too_old or (max_size is not None and total + size > max_size):
            leaving.append(root)
        else:
            counted |= new
            total += size
    return leaving
