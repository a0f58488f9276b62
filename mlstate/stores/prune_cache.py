"""Pruning of a cache: whole states, those first that were not used for longest.

Fetches and loads may go on meanwhile. A state that is used after it was chosen to go is kept: its
objects are put back by the second look, for its note is younger then. A state that was used within
the last hour stays, and so does one that a process has mapped: to remove it would free nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlstate.digests import Digest
from mlstate.files import ABSENT
from mlstate.format import layout
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import RECENT, Root, forget_root, read_roots
from mlstate.objects.folder import GRACE_SECONDS
from mlstate.objects.in_use import mapped_objects
from mlstate.objects.mapped import MAP_FROM
from mlstate.objects.plain_folders import PlainFolder, read_folders, remove_folder
from mlstate.states import StateKey
from mlstate.stores.prune import AHEAD, objects_of_root, objects_of_states
from mlstate.stores.prune_folder import file_time, prune_folder
from mlstate.stores.statefiles import FolderStateFiles

__all__ = ["CachePruneReport", "prune_cache"]

CACHE_GRACE_SECONDS = RECENT
"""The grace period of a folder without saved states; longer fetches fetch some objects again."""


@dataclass(frozen=True)
class CachePruneReport:
    """What was removed from a cache, or with ``dry_run`` would be, and what stays.

    Attributes:
        states: The states that are no longer there, by digest, each with the key that it was
            fetched for.
        objects: The objects that only they needed, or no state, with their sizes in bytes.
        in_use: The states that would have gone, and stay: a process has them mapped, or they were
            used while others were removed. By digest, each with its key.
        future: What would have gone, but for a time that is yet to come, by path: a clock was or
            is wrong, and it stays.
        recent: The states that would have gone, and stay since they were used, or fetched, within
            the grace period. By digest, each with its key.
        spared: Objects that no state needs and that stay for the grace period, with their sizes in
            bytes.
        waiting: Other leftovers that stay for it, or are written on; by path, with their sizes.
        swept: Other leftovers deleted, as of `PruneReport`.
        saved: The states that were saved in the folder, by `mlstate.unbundle` say, which stay
            whatever the limits: there may be no mirror that has them.
        saved_objects: How many objects they need, as far as these are here.
        saved_nbytes: The bytes of these, which count towards a limit.
        nbytes: The bytes of all that stays: of the objects of states, fetched or saved, and of
            folders that frameworks opened states from.
        folders: The folders that frameworks opened states from and that were removed, by path, with
            their sizes in bytes.
        recent_folders: Those that would have gone, and stay since they were used within the grace
            period; likewise.
    """

    states: dict[Digest, str]
    objects: dict[Digest, int]
    in_use: dict[Digest, str] = field(default_factory=dict)
    future: tuple[str, ...] = ()
    recent: dict[Digest, str] = field(default_factory=dict)
    spared: dict[Digest, int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    swept: tuple[str, ...] = ()
    saved: tuple[StateKey, ...] = ()
    saved_objects: int = 0
    saved_nbytes: int = 0
    nbytes: int = 0
    folders: dict[str, int] = field(default_factory=dict)
    recent_folders: dict[str, int] = field(default_factory=dict)


@dataclass
class _Choice:
    """The states that are to go, and those that would, but for a reason to stay."""

    leaving: list[Root] = field(default_factory=list)
    in_use: list[Root] = field(default_factory=list)
    recent: list[Root] = field(default_factory=list)
    future: list[Root] = field(default_factory=list)
    empty: list[Root] = field(default_factory=list)  # notes of fetches that brought nothing
    folders: list[PlainFolder] = field(default_factory=list)
    recent_folders: list[PlainFolder] = field(default_factory=list)
    nbytes: int = 0  # of all that stays


@dataclass(frozen=True)
class _Limits:
    """What may stay: sizes in bytes, times in seconds. Without limits all does."""

    max_size: int | None
    older_than: float | None
    recent: float  # what was used within so many seconds stays
    grace: float  # and so does a state whose state object is younger than that
    now: float

    def exceeded(self, total: int, used: float) -> bool:
        """Whether what was used at this time goes, all that stays being of so many bytes."""
        too_old = self.older_than is not None and self.now - used > self.older_than
        return too_old or (self.max_size is not None and total > self.max_size)


def prune_cache(
    objects: FolderObjectStore,
    *,
    max_size: int | None = None,
    older_than: float | None = None,
    grace_seconds: float | None = None,
    dry_run: bool = False,
) -> CachePruneReport:
    """Forget fetched states, and remove the objects that only they need.

    Folders that states were written into for frameworks go like states; not within the grace
    period of their last use.

    States that were saved in the folder stay, and so do their objects; see `ManifestStore.prune`.

    Raises:
        MlstateError: The folder is no store of this version, or a state that was saved there
            cannot be read. Nothing was removed.
    """
    root = objects.root
    states = FolderStateFiles(root)
    saved = objects_of_states(states, objects)
    recent = CACHE_GRACE_SECONDS if grace_seconds is None else grace_seconds
    grace = grace_seconds
    if grace is None:
        grace = GRACE_SECONDS if saved else CACHE_GRACE_SECONDS
    is_store = (root / layout.SETTINGS).exists()
    now = time.time() if dry_run or not is_store else file_time(root)
    of_saved = set().union(*saved.values())
    chosen = _choose(objects, _Limits(max_size, older_than, recent, grace, now), of_saved)
    forgotten = {one.digest: one.used for one in chosen.leaving}
    report = prune_folder(
        states, objects, grace_seconds=grace, dry_run=dry_run, forgotten=forgotten
    )
    taken = report.trashed | report.deleted
    left = {one.digest: one.key for one in chosen.leaving}
    in_use = {one.digest: one.key for one in chosen.in_use}
    if not dry_run:
        for one in chosen.leaving:
            if not forget_root(root, one.digest, used=one.used):
                in_use[one.digest] = left.pop(one.digest)
        for one in chosen.empty:
            forget_root(root, one.digest, used=one.used)
        if not saved:  # nobody saves here: trash/ need not wait for the next pruning
            prune_folder(states, objects, grace_seconds=grace)
    future = [str(root / layout.ROOTS / one.digest) for one in chosen.future]
    gone = [folder for folder in chosen.folders if dry_run or remove_folder(folder)]
    return CachePruneReport(
        left,
        taken,
        in_use,
        (*future, *report.future),
        {one.digest: one.key for one in chosen.recent},
        report.spared,
        report.waiting,
        tuple(report.swept),
        tuple(sorted(saved)),
        sum(objects.size(digest) is not None for digest in of_saved),
        _size_of(of_saved, objects),
        chosen.nbytes,
        {str(folder.path): folder.size for folder in gone},
        {str(folder.path): folder.size for folder in chosen.recent_folders},
    )


def _choose(objects: FolderObjectStore, limits: _Limits, saved: set[Digest]) -> _Choice:
    """Choose what is to go; ``saved`` are the objects of states that stay anyway."""
    choice = _Choice(nbytes=_size_of(saved, objects))
    mapped: Mapping[Digest, set[int]] | None = None
    counted = set(saved)
    known: list[Root | PlainFolder] = [*read_roots(objects.root), *read_folders(objects.root)]
    for root in sorted(known, key=lambda one: -one.used):
        if isinstance(root, PlainFolder):
            _choose_folder(choice, root, limits)
            continue
        named = objects_of_root(root, objects)
        size = _size_of(named - counted, objects)
        made = _modified(objects.path(root.digest))
        if made is None and not any(objects.size(digest) for digest in root.files):
            if limits.now - root.used >= limits.recent:
                choice.empty.append(root)
            continue
        if root.digest not in saved and limits.exceeded(choice.nbytes + size, root.used):
            last = max(root.used, made or 0.0)
            if last > limits.now + AHEAD:
                choice.future.append(root)
            elif limits.now - root.used < limits.recent or (
                made is not None and limits.now - made < limits.grace
            ):
                choice.recent.append(root)
            else:
                mapped = mapped_objects() if mapped is None else mapped
                if not _is_mapped(named, objects, mapped):
                    choice.leaving.append(root)
                    continue
                choice.in_use.append(root)
        counted |= named
        choice.nbytes += size
    return choice


def _choose_folder(choice: _Choice, folder: PlainFolder, limits: _Limits) -> None:
    """Choose whether a folder that a framework opened a state from is to go."""
    goes = limits.exceeded(choice.nbytes + folder.size, folder.used)
    if folder.gone or (goes and limits.now - folder.used >= limits.recent):
        choice.folders.append(folder)
        return
    if goes:
        choice.recent_folders.append(folder)
    choice.nbytes += folder.size


def _size_of(digests: set[Digest], objects: FolderObjectStore) -> int:
    return sum(objects.size(digest) or 0 for digest in digests)


def _modified(path: Path) -> float | None:
    """When a file was written, in seconds since the epoch; None if it is not there."""
    try:
        return path.lstat().st_mtime
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise


def _is_mapped(
    named: set[Digest], objects: FolderObjectStore, mapped: Mapping[Digest, set[int]]
) -> bool:
    """Whether a process has a whole state mapped, not only what others share with it.

    Of small objects some are read instead: they count where there are no large ones.
    """
    named = {digest for digest in named if objects.plain_size(digest) is not None}
    there = mapped.keys() & named and [d for d in named if (objects.size(d) or 0) >= MAP_FROM]
    looked = there or mapped.keys() & named
    return bool(looked) and all(
        objects.path(digest).stat().st_ino in mapped.get(digest, ()) for digest in looked
    )
