"""Pruning of a folder."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlstate.digests import Digest
from mlstate.errors import AccessError
from mlstate.files import ABSENT, open_folder, open_folder_of, open_regular
from mlstate.format import layout
from mlstate.format.encoded_object import HEAD_SIZE
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import Root, read_roots
from mlstate.objects.durable import NewFile, check_no_foreign_link, make_folders, read_small
from mlstate.objects.folder import GRACE_SECONDS, check_folder
from mlstate.stores.prune import PruneReport, Pruning, check_seconds
from mlstate.stores.statefiles import FolderStateFiles
from mlstate.system import move_from, remove_at

__all__ = ["file_time", "prune_folder"]

_DAMAGED = re.compile(rf"[0-9a-f]{{64}}{layout.DAMAGED_SUFFIX}\.[0-9a-f]{{32}}")
_FETCHED = "|".join(
    map(re.escape, (layout.STAGED_SUFFIX, layout.PARTIAL_SUFFIX, layout.LOCK_SUFFIX))
)
_TEMPORARY = re.compile(
    rf"([0-9a-f]{{32}}|[0-9a-f]{{64}}({_FETCHED}))({re.escape(layout.DONE_SUFFIX)})?({re.escape(layout.LOCK_SUFFIX)})?"
)


_FOLDERS = (
    *(layout.STATES, layout.OBJECTS, layout.ENCODED),
    *(layout.TRASH, layout.TEMPORARIES, layout.ROOTS),
)
_UNDER_WAY = 3600.0
"""A temporary that was written on within so many seconds may be in use, however short the grace
period is: without it a save would fail."""


def prune_folder(
    states: FolderStateFiles,
    objects: FolderObjectStore,
    *,
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
    forgotten: Mapping[Digest, float] | None = None,
) -> PruneReport:
    """Prune a folder; whatever is younger than the grace period is spared, named or not.

    Raises:
        MlstateError: The folder is no store of this version, or a state cannot be read, so that
            its objects are unknown. Nothing was removed.
    """
    check_seconds(grace_seconds)
    check_folder(objects.root)
    if not (objects.root / layout.SETTINGS).exists():
        return PruneReport()  # no store yet: whatever is there belongs to somebody else
    for name in _FOLDERS:
        check_no_foreign_link(objects.root / name)  # another store would be pruned through it
    try:
        now = time.time() if dry_run else file_time(objects.root)
        return _FolderPruning(states, objects, now, grace_seconds, dry_run, forgotten or {}).run()
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


def file_time(root: Path) -> float:
    """The time by the clock that dates the files of a store: that of the file server."""
    path = root / layout.TEMPORARIES / uuid.uuid4().hex
    make_folders(root, path.parent)
    with NewFile(path) as file:
        return os.fstat(file.descriptor).st_mtime


class _FolderPruning(Pruning[FolderObjectStore, Path]):
    def roots(self) -> Iterator[Root]:
        return read_roots(self.objects.root)

    def all_objects(self) -> Iterator[tuple[Path, Digest]]:
        for digest in self.objects.digests():
            yield self.objects.path(digest), digest

    def all_encoded(self) -> Iterator[tuple[Path, Digest]]:
        for digest in self.objects.encoded_digests():
            yield self.objects.encoded_path(digest), digest

    def indexes(self) -> Iterator[tuple[Path, Digest]]:
        root = self.objects.root
        states = root / layout.ENCODED / layout.STATES
        for folder in () if states.is_symlink() else _entries(states):
            for path in () if folder.is_symlink() else _files(folder):
                state = layout.state_of_encoded_index(path.relative_to(root).as_posix())
                if state is not None:
                    yield path, state

    def is_encoded(self, place: Path) -> bool:
        if place.parent.name == layout.TRASH:
            return layout.TRASHED_ENCODED.fullmatch(place.name) is not None
        return place.parent.parent.name == layout.ENCODED

    def read_head(self, place: Path) -> bytes:
        with os.fdopen(open_regular(place), "rb") as file:
            return file.read(HEAD_SIZE)

    def trash(self) -> Iterator[tuple[Path, str]]:
        return ((path, path.name) for path in _files(self.objects.root / layout.TRASH))

    def modified(self, place: Path) -> float | None:
        try:
            return place.lstat().st_mtime
        except FileNotFoundError:
            return None

    def comes_back(self, place: Path) -> bool:
        return self.is_fresh(place)  # a rename keeps the time of a file

    def read(self, place: Path) -> bytes:
        return read_small(place)

    def size(self, place: Path) -> int | None:
        try:
            return place.lstat().st_size
        except FileNotFoundError:
            return None

    def move(self, place: Path, digest: Digest) -> Path | None:
        trash = self.objects.root / layout.TRASH
        make_folders(self.objects.root, trash)
        is_encoded = self.is_encoded(place)
        target = trash / layout.trashed_name(digest, encoded=is_encoded)
        folder_of_objects = layout.ENCODED if is_encoded else layout.OBJECTS
        try:
            # What another member puts in the place of a folder meanwhile is not followed.
            with (
                open_folder(self.objects.root / folder_of_objects) as above,
                open_folder_of(".", f"{digest[:2]}/{digest[2:]}", folder=above) as (folder, name),
            ):
                move_from(name, folder, target)
        except FileNotFoundError:  # another pruning was first
            return None
        if self.is_fresh(target):  # a save reused it just before it was moved
            self.put_back(target, digest)
            return None
        return target

    def move_back(self, place: Path, digest: Digest) -> bool:
        return self.objects.put_back(place, digest)

    def delete(self, place: Path) -> bool:
        try:
            with open_folder(place.parent) as folder:
                remove_at(place.name, folder)
        except FileNotFoundError:
            return False
        return True

    def leftovers(self) -> Iterator[Path]:
        for path in _things(self.objects.root / layout.TEMPORARIES):
            # Whoever claims something writes on that file, too, as long as they work.
            if _TEMPORARY.fullmatch(path.name) or path.name == layout.CLAIMS:
                yield path
        for path in _things(self.objects.root / layout.TRASH):
            if layout.TRASHED_STATE.fullmatch(path.name) or _DAMAGED.fullmatch(path.name):
                yield path

    def is_under_way(self, place: Path) -> bool:
        """Whether something is a temporary that was written on a short while ago."""
        modified = self.modified(place)
        return (
            modified is not None
            and place.parent.name == layout.TEMPORARIES
            and self.now - modified < _UNDER_WAY
            and not self.is_ahead(modified)
        )


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
