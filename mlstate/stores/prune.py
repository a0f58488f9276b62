"""Taking away the objects of a folder that no state names, safely beside racing saves.

An object is moved to trash/ first, then everything is looked at again, and what turned out to be
named or fresh is put back; only the next pruning deletes. A save keeps its side of the bargain: it
freshens what it reuses, and looks at it again once its state file is written.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mlstate.digests import Digest
from mlstate.errors import FormatError, MlstateError, concerning
from mlstate.format import layout
from mlstate.objects import FolderObjectStore
from mlstate.objects.files import create_exclusively, make_folders, sync_path, write_in_store
from mlstate.objects.folder import GRACE_SECONDS, check_folder
from mlstate.objects.roots import read_roots
from mlstate.reading import read_state, read_state_object
from mlstate.states import StateKey
from mlstate.stores.statefiles import FolderStateFiles, parse_state_file

__all__ = ["PruneReport", "prune_folder"]

_TRASHED_OBJECT = re.compile(r"([0-9a-f]{64})\.[0-9a-f]{32}")
_TRASHED_STATE = re.compile(r"(.+)\.toml\.[0-9a-f]{32}")
_DAMAGED = re.compile(rf"[0-9a-f]{{64}}{layout.DAMAGED_SUFFIX}\.[0-9a-f]{{32}}")
_FETCHED = "|".join(
    map(re.escape, (layout.STAGED_SUFFIX, layout.PARTIAL_SUFFIX, layout.LOCK_SUFFIX))
)
_TEMPORARY = re.compile(
    rf"([0-9a-f]{{32}}|[0-9a-f]{{64}}({_FETCHED}))({re.escape(layout.DONE_SUFFIX)})?"
)


@dataclass
class PruneReport:
    """What a pruning did, or with ``dry_run`` would do.

    Attributes:
        trashed: Objects moved to trash/, with their sizes in bytes.
        restored: Objects put back from trash/.
        deleted: Objects deleted from trash/, with their sizes in bytes.
        swept: Other leftovers deleted: temporaries, old deleted state files, and damaged objects
            that a fetch set aside, by path.
    """

    trashed: dict[Digest, int] = field(default_factory=dict)
    restored: list[Digest] = field(default_factory=list)
    deleted: dict[Digest, int] = field(default_factory=dict)
    swept: list[str] = field(default_factory=list)


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
    return _Pruning(states, objects, grace_seconds, dry_run, forgotten).run()


class _Pruning:
    def __init__(
        self,
        states: FolderStateFiles,
        objects: FolderObjectStore,
        grace_seconds: float,
        dry_run: bool,
        forgotten: Collection[Digest],
    ) -> None:
        self.forgotten = forgotten
        self.states = states
        self.objects = objects
        self.dry_run = dry_run
        self.trash = objects.root / layout.TRASH
        self.report = PruneReport()
        self.limit = self.now() - grace_seconds

    def run(self) -> PruneReport:
        self.rescue_state_objects()
        earlier = list(self.trashed_objects())
        live = self.live()
        moved = list(self.move_unnamed(live))
        if moved:
            live = self.live()  # a save may have named one meanwhile
        for path, digest in moved:
            if digest in live:
                self.put_back(path, digest)
        for path, digest in earlier:
            if digest in live or self.is_fresh(path):
                self.put_back(path, digest)
            else:
                self.delete(path, digest)
        self.sweep()
        return self.report

    def now(self) -> float:
        """The time by the clock that dates the files: that of the file server."""
        if self.dry_run:
            return time.time()
        name = f"{layout.TEMPORARIES}/{uuid.uuid4().hex}"
        write_in_store(self.objects.root, name, [b""], sync_parent=False)
        path = self.objects.root / name
        try:
            return path.stat().st_mtime
        finally:
            path.unlink()

    def live(self) -> set[Digest]:
        """Every object that a state names, or named until it was deleted a short while ago."""
        named: set[Digest] = set()
        for key in self.states.keys(None):
            data = self.states.read(key)
            if data is not None:
                with concerning(key):
                    named |= self.named_by(data, key, self.states.locate(key))
        for root in read_roots(self.objects.root):
            if root.digest in self.forgotten:
                continue
            named |= {root.digest, *root.files}
            with contextlib.suppress(MlstateError):  # a cache need not be whole
                state = read_state_object(root.digest, self.objects)
                named |= {ref.digest for ref in state.refs.values()}
        for path in _files(self.trash):
            match = _TRASHED_STATE.fullmatch(path.name)
            if match and self.is_fresh(path):
                with contextlib.suppress(MlstateError):  # it is deleted, it need not be whole
                    named |= self.named_by(path.read_bytes(), StateKey.parse(match[1]), str(path))
        return named

    def named_by(self, data: bytes, key: StateKey, origin: str) -> set[Digest]:
        """The objects that a state file names, itself and by way of the state object."""
        entry = parse_state_file(data, key, origin)
        state = read_state(entry, self.objects)
        return {
            entry.pinned_digest,
            *(ref.digest for ref in state.refs.values()),
            *(file.digest for file in entry.files.values()),
        }

    def is_fresh(self, path: Path) -> bool:
        """Whether a file is younger than the grace period; one that is gone is nobody's."""
        try:
            return path.stat().st_mtime > self.limit
        except FileNotFoundError:
            return False

    def move_unnamed(self, live: set[Digest]) -> Iterator[tuple[Path, Digest]]:
        """Move old unnamed objects to trash/."""
        for path, digest in self.all_objects():
            if digest in live or self.is_fresh(path):
                continue
            self.report.trashed[digest] = path.stat().st_size
            if self.dry_run:
                continue
            self.trash.mkdir(exist_ok=True)
            target = self.trash / f"{digest}.{uuid.uuid4().hex}"
            try:
                os.rename(path, target)
            except FileNotFoundError:  # another pruning was first
                del self.report.trashed[digest]
                continue
            if self.is_fresh(target):  # a save reused it just before it was moved
                self.put_back(target, digest)
            else:
                yield target, digest

    def all_objects(self) -> Iterator[tuple[Path, Digest]]:
        """Every file under objects/ that has an object's name; others are left alone."""
        for folder in sorted(_entries(self.objects.root / layout.OBJECTS)):
            for path in _files(folder):
                with contextlib.suppress(FormatError):
                    digest = Digest(folder.name + path.name)
                    if path == self.objects.path(digest):
                        yield path, digest

    def trashed_objects(self) -> Iterator[tuple[Path, Digest]]:
        """Objects that an earlier pruning moved to trash/."""
        for path in _files(self.trash):
            if match := _TRASHED_OBJECT.fullmatch(path.name):
                yield path, Digest(match[1])

    def rescue_state_objects(self) -> None:
        """Put back state objects that a pruning took and was killed: they say what is needed."""
        trashed = {digest: path for path, digest in self.trashed_objects()}
        for key in self.states.keys(None) if trashed else ():
            data = self.states.read(key)
            if data is not None:
                digest = parse_state_file(data, key, self.states.locate(key)).digest
                if digest in trashed and self.objects.size(digest) is None:
                    self.put_back(trashed.pop(digest), digest)

    def put_back(self, path: Path, digest: Digest) -> None:
        """Put an object back from trash/, unless a save has written it anew."""
        if not self.dry_run:
            target = self.objects.path(digest)
            make_folders(self.objects.root, target.parent)
            with contextlib.suppress(FileNotFoundError):
                create_exclusively(path, target)
                path.unlink(missing_ok=True)
                sync_path(target.parent)
        self.report.trashed.pop(digest, None)
        self.report.restored.append(digest)

    def delete(self, path: Path, digest: Digest) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.report.deleted[digest] = path.stat().st_size
            if not self.dry_run:
                path.unlink()

    def sweep(self) -> None:
        """Delete temporaries of crashed writers and state files deleted long ago."""
        temporaries = _files(self.objects.root / layout.TEMPORARIES)
        leftovers = [path for path in temporaries if _TEMPORARY.fullmatch(path.name)]
        leftovers += [
            path
            for path in _files(self.trash)
            if _TRASHED_STATE.fullmatch(path.name) or _DAMAGED.fullmatch(path.name)
        ]
        for path in leftovers:
            if not self.is_fresh(path):
                self.report.swept.append(str(path))
                if not self.dry_run:
                    path.unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _files(folder: Path) -> Iterator[Path]:
    for path in _entries(folder):
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG(path.lstat().st_mode):
                yield path
