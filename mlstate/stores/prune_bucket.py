"""Taking away the objects of a bucket that no state names.

A bucket has no rename. To move an object to trash/ is to copy it, to see that it is still the same
old one, and to remove it. In between a save may make it young and rely on it. It is put back if the
state was saved before the pruning looks again, and the save, which looks at what it reused once its
state file is written, puts it again if it was saved later. What remains is that a load in between
may find an object missing that is there a moment later.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from mlstate.buckets.values import Item
from mlstate.digests import Digest
from mlstate.format import layout
from mlstate.objects.bucket import BucketObjectStore
from mlstate.objects.cache import Root
from mlstate.objects.durable import SMALL
from mlstate.objects.folder import GRACE_SECONDS
from mlstate.objects.prefix import BucketPlace
from mlstate.stores.bucket_catalog import BucketStateFiles
from mlstate.stores.prune import TRASHED_OBJECT, TRASHED_STATE, PruneReport, Pruning

__all__ = ["prune_bucket"]


def prune_bucket(
    states: BucketStateFiles,
    objects: BucketObjectStore,
    *,
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
    threads: int,
) -> PruneReport:
    """Prune a store in a bucket.

    Args:
        states: Its state files.
        objects: Its objects.
        grace_seconds: What is younger is spared, named or not.
        dry_run: Change nothing, say what would be done.
        threads: How many states to read at once.

    Raises:
        MlstateError: The prefix is no store of this version, the bucket cannot be asked, or a
            state cannot be read, so that nobody knows what it names. Nothing was removed.
    """
    if not objects.place.check():
        return PruneReport()  # no store yet: whatever is there is somebody else's
    # Signatures hold for minutes, so this clock is as good as the server's.
    limit = time.time() - grace_seconds
    return _BucketPruning(states, objects, limit=limit, dry_run=dry_run, threads=threads).run()


@dataclass(frozen=True)
class _Thing:
    """Something that was listed."""

    item: Item
    name: str

    def __str__(self) -> str:
        return self.name


class _BucketPruning(Pruning[_Thing]):
    def __init__(
        self,
        states: BucketStateFiles,
        objects: BucketObjectStore,
        *,
        limit: float,
        dry_run: bool,
        threads: int,
    ) -> None:
        super().__init__(states, objects, dry_run=dry_run, threads=threads)
        self.place: BucketPlace = objects.place
        self.client = objects.place.client
        self.limit = limit

    def roots(self) -> Iterator[Root]:
        return iter(())  # nothing is fetched into a bucket

    def all_objects(self) -> Iterator[tuple[_Thing, Digest]]:
        for thing in self._things(layout.OBJECTS):
            if digest := layout.digest_of_object_path(thing.name):
                yield thing, digest

    def trashed_objects(self) -> Iterator[tuple[_Thing, Digest]]:
        for thing in self._things(layout.TRASH):
            if match := TRASHED_OBJECT.fullmatch(thing.name.rpartition("/")[2]):
                yield thing, Digest(match[1])

    def trashed_states(self) -> Iterator[tuple[_Thing, str]]:
        for thing in self._things(layout.TRASH):
            if match := TRASHED_STATE.fullmatch(thing.name.rpartition("/")[2]):
                yield thing, match[1]

    def is_fresh(self, place: _Thing) -> bool:
        return place.item.modified > self.limit

    def comes_back(self, place: _Thing) -> bool:
        return False  # a copy is as old as the copying, which says nothing of its use

    def read(self, place: _Thing) -> bytes:
        found = self.client.read_small(place.item.path, SMALL)
        return b"" if found is None else found[0]

    def size(self, place: _Thing) -> int | None:
        return place.item.size

    def move(self, place: _Thing, digest: Digest) -> _Thing | None:
        name = f"{layout.TRASH}/{digest}.{uuid.uuid4().hex}"
        target = _Thing(Item(self.place.path(name), place.item.size, time.time()), name)
        if not self.client.control.copy(place.item, target.item.path):
            return None  # another pruning was first
        now = self.client.head(place.item.path)
        # A list may give fractions of a second, and this reply none.
        if now is None or int(now.modified) != int(place.item.modified):
            self.delete(target)  # a save has just made it young, and relies on it
            return None
        self.client.delete(place.item.path)
        return target

    def move_back(self, place: _Thing, digest: Digest) -> None:
        path = self.place.path(layout.object_path(digest))
        if self.client.head(path) is None:
            self.client.control.copy(place.item, path)
        self.delete(place)

    def delete(self, place: _Thing) -> None:
        self.client.delete(place.item.path)

    def sweep(self) -> None:
        leftovers = [thing for thing, _ in self.trashed_states()]
        for thing in leftovers:
            if not self.is_fresh(thing):
                self.report.swept.append(self.place.locate(thing.name))
                if not self.dry_run:
                    self.delete(thing)
        for upload in self.client.control.unfinished(self.place.path(layout.OBJECTS)):
            if upload.begun <= self.limit:
                self.report.swept.append(f"{self.client.locate(upload.path)} (unfinished)")
                if not self.dry_run:
                    self.client.control.abort(upload)

    def _things(self, folder: str) -> Iterator[_Thing]:
        for item in self.client.items(self.place.path(folder)):
            yield _Thing(item, self.place.name(item.path))
