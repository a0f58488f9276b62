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
        nbytes: The bytes of the objects of all states that stay, fetched or saved.
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


@dataclass
class _Choice:
    """The states that are to go, and those that would, but for a reason to stay."""

    leaving: list[Root] = field(default_factory=list)
    in_use: list[Root] = field(default_factory=list)
    recent: list[Root] = field(default_factory=list)
    future: list[Root] = field(default_factory=list)
    empty: list[Root] = field(default_factory=list)  # notes of fetches that brought nothing
    nbytes: int = 0  # of all that stays


@dataclass(frozen=True)
class _Limits:
    """What may stay: sizes in bytes, times in seconds. Without limits all does."""

    max_size: int | None
    older_than: float | None
    recent: float  # a state that was used within so many seconds stays
    grace: float  # and so does one whose state object is younger than that
    now: float


def prune_cache(
    objects: FolderObjectStore,
    *,
    max_size: int | None = None,
    older_than: float | None = None,
    grace_seconds: float | None = None,
    dry_run: bool = False,
) -> CachePruneReport:
    """Forget fetched states, and remove the objects that only they need.

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
    )


def _choose(objects: FolderObjectStore, limits: _Limits, saved: set[Digest]) -> _Choice:
    """Choose the states to forget; ``saved`` are the objects of states that stay anyway."""
    choice = _Choice()
    mapped: Mapping[Digest, set[int]] | None = None
    counted = set(saved)
    total = _size_of(saved, objects)
    for root in sorted(read_roots(objects.root), key=lambda root: -root.used):
        named = objects_of_root(root, objects)
        size = _size_of(named - counted, objects)
        too_old = limits.older_than is not None and limits.now - root.used > limits.older_than
        too_much = limits.max_size is not None and total + size > limits.max_size
        made = _modified(objects.path(root.digest))
        if made is None and not any(objects.size(digest) for digest in root.files):
            if limits.now - root.used >= limits.recent:
                choice.empty.append(root)
            continue
        if root.digest not in saved and (too_old or too_much):
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
        total += size
    choice.nbytes = total
    return choice


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
    there = mapped.keys() & named and [d for d in named if (objects.size(d) or 0) >= MAP_FROM]
    looked = there or mapped.keys() & named
    return bool(looked) and all(
        objects.path(digest).stat().st_ino in mapped.get(digest, ()) for digest in looked
    )
