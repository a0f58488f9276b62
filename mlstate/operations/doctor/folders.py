"""Checks of a folder that is a cache or a store: what is in it, and on what disk it is."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlstate.errors import FormatError
from mlstate.format import layout
from mlstate.objects.cache import read_roots
from mlstate.objects.folder import check_folder
from mlstate.objects.plain_folders import read_folders
from mlstate.operations.doctor.check import Check, failed, reason_of
from mlstate.operations.doctor.traits import Traits, file_system_of, probe
from mlstate.system import user
from mlstate.units import format_size

__all__ = ["folder_checks", "readonly_check"]

MOST_FILES = 200_000
MOST_SECONDS = 5.0
"""After so many files or seconds of looking, what is left is not counted."""
LOW_BYTES, LOW_SHARE, LOW_FILES = 10**9, 0.05, 10_000
_NETWORK = ("nfs", "cifs", "smb", "9p", "fuse", "ceph", "lustre", "gpfs", "beegfs", "afs", "orange")
_BOTH_WAYS_MISSING = (
    "neither hard links nor exclusive renames: a crash at the wrong moment can leave an empty file"
)
_NO_FLUSH = "a crash of the machine may damage what was just saved; `verify` then finds it"
_NO_FLUSH_OF_FOLDERS = "a crash of the machine may undo what was just saved, as a whole"


def folder_checks(name: str, root: Path) -> Iterator[Check]:
    """Look at a folder, perhaps a missing one, that states are fetched or saved into.

    Nothing stays behind in it. `name` says what it is: ``"cache"``, ``"store"``.
    """
    try:
        yield from _folder_checks(name, root)
    except OSError as error:  # a disk that breaks, folders that nobody may look into
        yield failed(f"{name}: access", error)


def _folder_checks(name: str, root: Path) -> Iterator[Check]:
    try:
        check_folder(root)
        exists = root.is_dir()
    except FormatError as error:
        yield Check(name, False, reason_of(error), error.remedy)
        return
    except OSError as error:
        yield Check(name, False, f"{root}: {reason_of(error)}", "make it readable")
        return
    here = root if exists else _nearest(root)
    traits = None
    try:
        if not os.access(here, os.W_OK | os.X_OK):
            raise PermissionError
        traits = probe(here)
        state = "can be written" if exists else "not there yet; made when it is needed"
        yield Check(name, True, f"{root}, {state}")
    except OSError as error:
        why = f" ({error.strerror})" if error.strerror else ""
        if exists:
            remedy = "make it writable; one that is only to be read: MLSTATE_READONLY_CACHES"
            yield Check(name, False, f"{root} cannot be written{why}", remedy)
        else:
            remedy = f"make it, or make {here} writable"
            yield Check(name, False, f"{root} is not there, and cannot be made{why}", remedy)
    if exists:
        yield from _contents(name, root)
    yield from _disk(name, here)
    yield from _file_system(name, here)
    if traits is not None:
        yield from _abilities(name, traits)


def readonly_check(root: Path) -> Check:
    """Look at a folder of MLSTATE_READONLY_CACHES."""
    name = f"read-only cache {root}"
    try:
        if not root.is_dir():
            missing = "is no folder" if root.exists() else "is not there"
            return Check(name, False, missing, "mount it, or correct MLSTATE_READONLY_CACHES")
        check_folder(root)
        if not os.access(root, os.R_OK | os.X_OK):
            return Check(name, False, "cannot be read", "make it readable")
        counted = _count_objects(root)
    except (FormatError, OSError) as error:
        return failed(name, error)
    if counted.unreadable or counted.closed:
        found = f"{counted.unreadable + counted.closed:,} of its objects and folders cannot be read"
        return Check(name, False, found, "let this user read them: chmod -R a+rX")
    return Check(name, True, str(counted))


@dataclass
class _Count:
    files: int = 0
    nbytes: int = 0
    others: int = 0  # files of other users
    unreadable: int = 0
    closed: int = 0  # folders that this user cannot look into
    locked: int = 0  # folders that this user cannot write
    whole: bool = True

    def __str__(self) -> str:
        more = "" if self.whole else "more than "
        objects = "object" if self.files == 1 else "objects"
        return f"{more}{self.files:,} {objects}, {format_size(self.nbytes)}"


def _contents(name: str, root: Path) -> Iterator[Check]:
    counted = _count_objects(root)
    # A note of a fetch that was killed early is of a state that is not here.
    kept = sum((root / layout.object_path(one.digest)).exists() for one in read_roots(root))
    states = f"; {kept:,} fetched {'state' if kept == 1 else 'states'} kept" if kept else ""
    yield Check(f"{name}: contents", None, f"{counted}{states}")
    folders = [folder.size for folder in read_folders(root)]
    if folders:
        found = f"{len(folders):,}, {format_size(sum(folders))} (prune takes them like states)"
        yield Check(f"{name}: folders for frameworks", None, found)
    for folder, what in (
        (layout.TRASH, "the next prune deletes what is unused"),
        (layout.TEMPORARIES, "what was interrupted, or is under way: the same command goes on"),
    ):
        rest = _Count()
        _add_files(root / folder, rest, time.monotonic() + MOST_SECONDS)
        if rest.files:
            found = f"{rest.files:,} files, {format_size(rest.nbytes)} ({what})"
            yield Check(f"{name}: {folder}", None, found)
    troubles = {
        "objects cannot be read": counted.unreadable,
        "folders cannot be read": counted.closed,
        "folders cannot be written": counted.locked,
    }
    if any(troubles.values()):
        trouble = [f"{count:,} {what}" for what, count in troubles.items() if count]
        remedy = f"give them back to this user: chown -R; or share them: chmod -R g+rwX {root}"
        yield Check(f"{name}: permissions", False, " and ".join(trouble), remedy)
    elif counted.others:
        found = f"{counted.others:,} objects of other users: they are copied, not mapped"
        yield Check(f"{name}: permissions", None, found)


def _count_objects(root: Path) -> _Count:
    counted = _Count()
    end = time.monotonic() + MOST_SECONDS
    is_writable = os.access(root, os.W_OK)  # if it is not, that was said of the whole already
    for name in (layout.OBJECTS, layout.ENCODED, layout.TEMPORARIES, layout.ROOTS):
        counted.locked += is_writable and (root / name).is_dir() and not _may_write(root / name)
    for name in (layout.OBJECTS, layout.ENCODED):
        for folder in _entries(root / name, counted):
            if folder.is_dir(follow_symlinks=False) and counted.whole:
                counted.locked += is_writable and not _may_write(folder)
                _add_files(folder, counted, end)
    return counted


def _may_write(path: str | os.PathLike[str]) -> bool:
    return os.access(path, os.W_OK)


def _add_files(folder: os.PathLike[str], counted: _Count, end: float) -> None:
    for entry in _entries(folder, counted):
        if counted.files >= MOST_FILES or time.monotonic() > end:
            counted.whole = False
            return
        with suppress(FileNotFoundError):  # another process took it away
            found = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                continue
            counted.files += 1
            counted.nbytes += found.st_size
            own = found.st_uid == user()
            counted.others += not own and found.st_uid != 0
            if not (own and found.st_mode & stat.S_IRUSR):
                counted.unreadable += not os.access(entry.path, os.R_OK)


def _entries(folder: os.PathLike[str], counted: _Count) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except PermissionError:
        counted.closed += 1
    except (FileNotFoundError, NotADirectoryError):
        pass


def _disk(name: str, folder: Path) -> Iterator[Check]:
    try:
        free, total, free_files = _space(folder)
    except OSError as error:
        yield Check(f"{name}: free disk", None, f"not told ({error.strerror})")
        return
    if not total:
        yield Check(f"{name}: free disk", None, "not told by this file system")
        return
    said = f"{format_size(free)} of {format_size(total)} ({100 * free / total:.0f} %)"
    low = free < LOW_BYTES or free < LOW_SHARE * total
    remedy = "make room: mlstate prune --max-size SIZE; or choose another disk (MLSTATE_CACHE)"
    yield Check(f"{name}: free disk", not low, said, remedy if low else None)
    if free_files is not None and free_files < LOW_FILES:
        said = f"room for {free_files:,} more (inodes)"
        yield Check(f"{name}: free files", False, said, "remove files, or choose another disk")


def _space(folder: Path) -> tuple[int, int, int | None]:
    """The free bytes, all of them, and for how many files there is room, if that is limited."""
    if not hasattr(os, "statvfs"):  # Windows
        total, _, free = shutil.disk_usage(folder)
        return free, total, None
    found = os.statvfs(folder)
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    return free, total, found.f_favail if found.f_files else None


def _file_system(name: str, folder: Path) -> Iterator[Check]:
    kind = file_system_of(folder)
    if kind is None:
        yield Check(f"{name}: file system", None, "not told by this system")
        return
    network = kind.startswith(_NETWORK)
    note = ", a network mount: large tensors are read into memory, not mapped" if network else ""
    yield Check(f"{name}: file system", None, f"{kind}{note}")


def _abilities(name: str, traits: Traits) -> Iterator[Check]:
    blocks = (
        "yes: plain copies take no room" if traits.shares_blocks else "no: plain copies take room"
    )
    yield Check(f"{name}: shared blocks", None, blocks)
    yield Check(f"{name}: hard links", None, _yes(traits.hard_links))
    yield Check(f"{name}: exclusive rename", None, _yes(traits.exclusive_rename))
    if not (traits.hard_links or traits.exclusive_rename):
        yield Check(f"{name}: names", None, _BOTH_WAYS_MISSING)
    case = _yes(traits.case_sensitive, "keys that differ only in case are refused")
    yield Check(f"{name}: case-sensitive names", None, case)
    locks = _yes(traits.locks, "processes that fetch the same do the work twice")
    yield Check(f"{name}: locks", None, locks)
    maps = _yes(traits.maps, "large tensors are read into memory")
    yield Check(f"{name}: memory maps", None, maps)
    if traits.flushes:
        took = f"{traits.flush_seconds * 1000:.1f} ms for a small file"
        yield Check(f"{name}: flush", None, took)
    else:
        yield Check(f"{name}: flush", None, _yes(False, _NO_FLUSH))
    folders = _yes(traits.flushes_folders, _NO_FLUSH_OF_FOLDERS)
    yield Check(f"{name}: flush of folders", None, folders)
    times = _yes(traits.sets_times, "what is reused is written anew")
    yield Check(f"{name}: times", None, times)
    rights = _yes(traits.read_only_files, "nothing keeps tools from writing into objects")
    yield Check(f"{name}: read-only files", None, rights)
    replaced = _yes(traits.replaces_open_files, "what is read cannot be replaced meanwhile")
    yield Check(f"{name}: replacing open files", None, replaced)


def _yes(able: bool, otherwise: str = "") -> str:
    """Yes; or no, and what that means."""
    return "yes" if able else f"no: {otherwise}" if otherwise else "no"


def _nearest(folder: Path) -> Path:
    """The nearest parent that is there."""
    return next(parent for parent in folder.absolute().parents if parent.is_dir())
