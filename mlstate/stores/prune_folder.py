"""Pruning of a folder."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

from mlstate.digests import Digest
from mlstate.errors import AccessError
from mlstate.files import ABSENT
from mlstate.format import layout
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import Root, read_roots
from mlstate.objects.durable import create_exclusively, make_folders, sync_path, write_in_store
from mlstate.objects.folder import GRACE_SECONDS, check_folder
from mlstate.stores.prune import TRASHED_STATE, PruneReport, Pruning
from mlstate.stores.statefiles import FolderStateFiles

__all__ = ["prune_folder"]

_DAMAGED = re.compile(rf"[0-9a-f]{{64}}{layout.DAMAGED_SUFFIX}\.[0-9a-f]{{32}}")
_FETCHED = "|".join(
    map(re.escape, (layout.STAGED_SUFFIX, layout.PARTIAL_SUFFIX, layout.LOCK_SUFFIX))
)
_TEMPORARY = re.compile(
    rf"([0-9a-f]{{32}}|[0-9a-f]{{64}}({_FETCHED}))({re.escape(layout.DONE_SUFFIX)})?"
)


def prune_folder(
    states: FolderStateFiles,
    objects: FolderObjectStore,
    *,
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
    forgotten: Collection[Digest] = (),
) -> PruneReport:
    """Prune a folder; whatever is younger than the grace period is spared, named or not.

    Raises:
        MlstateError: The folder is no store of this version, or a state cannot be read, so that
            its objects are unknown. Nothing was removed.
    """
    check_folder(objects.root)
    if not (objects.root / layout.SETTINGS).exists():
        return PruneReport()  # no store yet: whatever is there belongs to somebody else
    try:
        limit = (time.time() if dry_run else _file_time(objects.root)) - grace_seconds
        return _FolderPruning(states, objects, limit, dry_run, forgotten).run()
    except PermissionError as error:
        if isinstance(error, AccessError):
            raise
        raise AccessError(
            "pruning needs something that this user may not read or change; nothing that a state "
            "needs was removed",
            path=error.filename,
            found=error.strerror,
            remedy="let this user read and write it: chmod -R g+rwX; or prune as its owner",
        ) from error


def _file_time(root: Path) -> float:
    """The time by the clock that dates the files: that of the file server."""
    name = f"{layout.TEMPORARIES}/{uuid.uuid4().hex}"
    write_in_store(root, name, [b""], sync_parent=False)
    path = root / name
    try:
        return path.stat().st_mtime
    finally:
        path.unlink()


class _FolderPruning(Pruning[FolderObjectStore, Path]):
    def roots(self) -> Iterator[Root]:
        return read_roots(self.objects.root)

    def all_objects(self) -> Iterator[tuple[Path, Digest]]:
        for digest in self.objects.digests():
            yield self.objects.path(digest), digest

    def trash(self) -> Iterator[tuple[Path, str]]:
        return ((path, path.name) for path in _files(self.objects.root / layout.TRASH))

    def is_fresh(self, place: Path) -> bool:
        try:
            return place.lstat().st_mtime > self.limit
        except FileNotFoundError:
            return False

    def comes_back(self, place: Path) -> bool:
        return self.is_fresh(place)  # a rename keeps the time of a file

    def read(self, place: Path) -> bytes:
        return place.read_bytes()

    def size(self, place: Path) -> int | None:
        try:
            return place.stat().st_size
        except FileNotFoundError:
            return None

    def move(self, place: Path, digest: Digest) -> Path | None:
        trash = self.objects.root / layout.TRASH
        make_folders(self.objects.root, trash)
        target = trash / f"{digest}.{uuid.uuid4().hex}"
        try:
            os.rename(place, target)
        except FileNotFoundError:  # another pruning was first
            return None
        if self.is_fresh(target):  # a save reused it just before it was moved
            self.put_back(target, digest)
            return None
        return target

    def move_back(self, place: Path, digest: Digest) -> None:
        target = self.objects.path(digest)
        make_folders(self.objects.root, target.parent)
        with contextlib.suppress(FileNotFoundError):
            create_exclusively(place, target)
            place.unlink(missing_ok=True)
            sync_path(target.parent)

    def delete(self, place: Path) -> None:
        place.unlink(missing_ok=True)

    def leftovers(self) -> Iterator[Path]:
        for path in _things(self.objects.root / layout.TEMPORARIES):
            if _TEMPORARY.fullmatch(path.name):
                yield path
        for path in _things(self.objects.root / layout.TRASH):
            if TRASHED_STATE.fullmatch(path.name) or _DAMAGED.fullmatch(path.name):
                yield path


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        if error.errno in ABSENT:
            return []
        raise


def _files(folder: Path) -> Iterator[Path]:
    """The files that are directly in a folder, which may be missing."""
    for path in _things(folder):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def _things(folder: Path) -> Iterator[Path]:
    """All but the folders in a folder: links, pipes and sockets too, which can be deleted."""
    for path in _entries(folder):
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(path.lstat().st_mode):
                yield path
