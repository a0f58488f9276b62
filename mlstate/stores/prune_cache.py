"""Pruning of a cache: whole states, those first that were not used for longest.

Fetches and loads may go on meanwhile. A state that is used after it was chosen to go is kept: its
objects are put back by the second look, for its note is younger then. A state that was used within
the last hour goes in two steps: it is kept no longer, and its objects stay until they were not used
for an hour. A state that a process has mapped stays as it is: to remove it would free nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from mlstate.digests import Digest
from mlstate.format import layout
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import RECENT, Root, forget_root, read_roots
from mlstate.objects.folder import GRACE_SECONDS
from mlstate.objects.in_use import mapped_objects
from mlstate.objects.mapped import MAP_FROM
from mlstate.objects.plain_folders import PlainFolder, read_folders, remove_folder
from mlstate.stores.prune import AHEAD, objects_of_root
from mlstate.stores.prune_folder import file_time, prune_folder
from mlstate.stores.statefiles import FolderStateFiles

__all__ = ["CachePruneReport", "prune_cache"]

CACHE_GRACE_SECONDS = RECENT
"""The grace period of a folder without saved states; longer fetches fetch some objects again."""


@dataclass(frozen=True)
class CachePruneReport:
    """What was removed from a cache, or with ``dry_run`` would be.

    Attributes:
        states: The states that are no longer kept, by digest, each with the key that it was
            fetched for.
        objects: The objects that only they needed, with their sizes in bytes.
        in_use: The states that would have gone, and stay: a process has them mapped, or they were
            used while others were removed. By digest, each with its key.
        future: What would have gone, but for a time that is yet to come, by path: a clock was or
            is wrong, and it stays.
        folders: The folders that frameworks opened states from, with their bytes, by path.
    """

    states: dict[Digest, str]
    objects: dict[Digest, int]
    in_use: dict[Digest, str] = field(default_factory=dict)
    future: tuple[str, ...] = ()
    folders: dict[str, int] = field(default_factory=dict)


@dataclass
class _Choice:
    """The states that are to go, and those that would, were they not in use or of the future."""

    leaving: list[Root] = field(default_factory=list)
    in_use: list[Root] = field(default_factory=list)
    future: list[Root] = field(default_factory=list)
    folders: list[PlainFolder] = field(default_factory=list)


def prune_cache(
    objects: FolderObjectStore,
    *,
    max_size: int | None = None,
    older_than: float | None = None,
    dry_run: bool = False,
) -> CachePruneReport:
    """Forget fetched states, and remove the objects that only they need.

    Folders that states were written into for frameworks go like states; not within an hour of
    their last use.

    States that were saved in the folder stay, and so do their objects; see `ManifestStore.prune`.

    Raises:
        MlstateError: The folder is no store of this version, or a state that was saved there
            cannot be read. Nothing was removed.
    """
    root = objects.root
    states = FolderStateFiles(root)
    saved = bool(states.keys())
    grace = GRACE_SECONDS if saved else CACHE_GRACE_SECONDS
    is_store = (root / layout.SETTINGS).exists()
    now = time.time() if dry_run or not is_store else file_time(root)
    chosen = _choose(objects, max_size, older_than, now)
    recent = [root for root in chosen.leaving if now - root.used < RECENT]
    forgotten = {one.digest: one.used for one in chosen.leaving if one not in recent}
    report = prune_folder(
        states, objects, grace_seconds=grace, dry_run=dry_run, forgotten=forgotten
    )
    taken = report.trashed | report.deleted
    left = {one.digest: one.key for one in chosen.leaving}
    in_use = {one.digest: one.key for one in chosen.in_use}
    if not dry_run:
        for one in chosen.leaving:
            kept = one in recent and not _stays_for_an_hour(one, objects)
            if kept or not forget_root(root, one.digest, used=one.used):
                in_use[one.digest] = left.pop(one.digest)
        if not saved:  # nobody saves here: trash/ need not wait for the next pruning
            prune_folder(states, objects, grace_seconds=grace)
    future = [str(root / layout.ROOTS / one.digest) for one in chosen.future]
    gone = [folder for folder in chosen.folders if dry_run or remove_folder(folder)]
    folders = {str(folder.path): folder.size for folder in gone}
    return CachePruneReport(left, taken, in_use, (*future, *report.future), folders)


def _stays_for_an_hour(root: Root, objects: FolderObjectStore) -> bool:
    """Make the objects of a state as young as its last use; False if that is not allowed."""
    for digest in objects_of_root(root, objects):
        path = objects.path(digest)
        with suppress(FileNotFoundError):
            if path.lstat().st_mtime < root.used:
                try:
                    os.utime(path, (root.used, root.used), follow_symlinks=False)
                except OSError:
                    return False
    return True


def _choose(
    objects: FolderObjectStore, max_size: int | None, older_than: float | None, now: float
) -> _Choice:
    """Choose the states to forget, and the folders to remove."""
    choice = _Choice()
    mapped: Mapping[Digest, set[int]] | None = None
    counted: set[Digest] = set()
    total = 0
    everything: list[Root | PlainFolder] = [
        *read_roots(objects.root),
        *read_folders(objects.root),
    ]
    for root in sorted(everything, key=lambda one: -one.used):
        if isinstance(root, PlainFolder):
            too_old = older_than is not None and now - root.used > older_than
            too_much = max_size is not None and total + root.size > max_size
            if root.gone or ((too_old or too_much) and now - root.used >= RECENT):
                choice.folders.append(root)
            else:
                total += root.size
            continue
        named = objects_of_root(root, objects)
        new = named - counted
        size = sum(objects.size(digest) or 0 for digest in new)
        too_old = older_than is not None and now - root.used > older_than
        too_much = max_size is not None and total + size > max_size
        if too_much and root.used > now + AHEAD:
            choice.future.append(root)
        elif too_old or too_much:
            mapped = mapped_objects() if mapped is None else mapped
            if not _is_mapped(named, objects, mapped):
                choice.leaving.append(root)
                continue
            choice.in_use.append(root)
        counted |= new
        total += size
    return choice


def _is_mapped(
    named: set[Digest], objects: FolderObjectStore, mapped: Mapping[Digest, set[int]]
) -> bool:
    """Whether a process has a whole state mapped, not only what others share with it.

    Of small objects some are read instead: they count where there are no large ones.
    """
    there = mapped.keys() & named and [d for d in named if (objects.size(d) or 0) >= MAP_FROM]
    looked = there or mapped.keys() & named
    return bool(looked) and all(
        objects.path(digest).stat().st_ino in mapped.get(digest, ()) for digest in looked
    )
