"""Taking away the objects of a folder that no state names, safely beside racing saves."""

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
from mlstate.files import ABSENT
from mlstate.format import layout
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import Root, read_roots
from mlstate.objects.durable import create_exclusively, make_folders, sync_path, write_in_store
from mlstate.objects.folder import GRACE_SECONDS, check_folder
from mlstate.stores.prune_base import TRASHED_OBJECT, TRASHED_STATE, PruneReport, Pruning
from mlstate.stores.statefiles import FolderStateFiles

__all__ = ["PruneReport", "prune_folder"]

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
    """Prune a store's folder.

    Args:
        states: Its state files.
        objects: Its objects.
        grace_seconds: What is younger is spared, named or not.
        dry_run: Change nothing, say what would be done.
        forgotten: Fetched states that a cache need not keep.

    Raises:
        MlstateError: The folder is no store of this version, or a state cannot be read, so that
            nobody knows what it names. Nothing was removed.
    """
    check_folder(objects.root)
    if not (objects.root / layout.SETTINGS).exists():
        return PruneReport()  # no store yet: whatever is there is somebody else's
    return _FolderPruning(
        states, objects, grace_seconds=grace_seconds, dry_run=dry_run, forgotten=forgotten
    ).run()


class _FolderPruning(Pruning[Path]):
    def __init__(
        self,
        states: FolderStateFiles,
        objects: FolderObjectStore,
        *,
        grace_seconds: float,
        dry_run: bool,
        forgotten: Collection[Digest],
    ) -> None:
        super().__init__(states, objects, dry_run=dry_run, forgotten=forgotten)
        self.folder = objects
        self.root = objects.root
        self.trash = objects.root / layout.TRASH
        self.limit = self._now() - grace_seconds

    def _now(self) -> float:
        """The time by the clock that dates the files: that of the file server."""
        if self.dry_run:
            return time.time()
        name = f"{layout.TEMPORARIES}/{uuid.uuid4().hex}"
        write_in_store(self.root, name, [b""], sync_parent=False)
        path = self.root / name
        try:
            return path.stat().st_mtime
        finally:
            path.unlink()

    def roots(self) -> Iterator[Root]:
        return read_roots(self.root)

    def all_objects(self) -> Iterator[tuple[Path, Digest]]:
        for digest in self.folder.digests():
            yield self.folder.path(digest), digest

    def trashed_objects(self) -> Iterator[tuple[Path, Digest]]:
        for path in _files(self.trash):
            if match := TRASHED_OBJECT.fullmatch(path.name):
                yield path, Digest(match[1])

    def trashed_states(self) -> Iterator[tuple[Path, str]]:
        for path in _files(self.trash):
            if match := TRASHED_STATE.fullmatch(path.name):
                yield path, match[1]

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
        make_folders(self.root, self.trash)
        target = self.trash / f"{digest}.{uuid.uuid4().hex}"
        try:
            os.rename(place, target)
        except FileNotFoundError:  # another pruning was first
            return None
        if self.is_fresh(target):  # a save reused it just before it was moved
            self.put_back(target, digest)
            return None
        return target

    def move_back(self, place: Path, digest: Digest) -> None:
        target = self.folder.path(digest)
        make_folders(self.root, target.parent)
        with contextlib.suppress(FileNotFoundError):
            create_exclusively(place, target)
            place.unlink(missing_ok=True)
            sync_path(target.parent)

    def delete(self, place: Path) -> None:
        place.unlink(missing_ok=True)

    def sweep(self) -> None:
        temporaries = _things(self.root / layout.TEMPORARIES)
        leftovers = [path for path in temporaries if _TEMPORARY.fullmatch(path.name)]
        leftovers += [
            path
            for path in _things(self.trash)
            if TRASHED_STATE.fullmatch(path.name) or _DAMAGED.fullmatch(path.name)
        ]
        for path in leftovers:
            if not self.is_fresh(path):
                self.report.swept.append(str(path))
                if not self.dry_run:
                    self.delete(path)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        if error.errno in ABSENT:
            return []
        raise


def _files(folder: Path) -> Iterator[Path]:
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
