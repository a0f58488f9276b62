"""Pruning of a bucket.

A bucket has no rename: an object is moved to trash/ by copying it, checking that it is still the
same old one, and removing it. In between, a save may make it young and rely on it. If the state is
saved before the pruning reads the states again, the object is put back. If it is saved later, the
save, which looks again at the objects that it reused, puts it again. But a load in between may find
an object missing that is there a moment later.
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
from mlstate.objects.durable import SMALL
from mlstate.objects.folder import GRACE_SECONDS
from mlstate.stores.bucket_catalog import BucketStateFiles
from mlstate.stores.prune import PruneReport, Pruning

__all__ = ["prune_bucket"]


def prune_bucket(
    states: BucketStateFiles,
    objects: BucketObjectStore,
    *,
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
    threads: int,
) -> PruneReport:
    """Prune a bucket; whatever is younger than the grace period is spared, named or not.

    Raises:
        MlstateError: The prefix is no store of this version, the bucket cannot be asked, or a
            state cannot be read, so that its objects are unknown. Nothing was removed.
    """
    if not objects.place.check():
        return PruneReport()  # no store yet: whatever is there belongs to somebody else
    # Signatures hold for minutes, so this clock is as good as the server's.
    limit = time.time() - grace_seconds
    return _BucketPruning(states, objects, limit, dry_run, threads=threads).run()


@dataclass(frozen=True)
class _Listed:
    """An item that was listed, with its name in the store and its address."""

    item: Item
    name: str
    address: str

    def __str__(self) -> str:
        return self.address


class _BucketPruning(Pruning[BucketObjectStore, _Listed]):
    def all_objects(self) -> Iterator[tuple[_Listed, Digest]]:
        for listed in self._items(layout.OBJECTS):
            if digest := layout.digest_of_object_path(listed.name):
                yield listed, digest

    def trash(self) -> Iterator[tuple[_Listed, str]]:
        for listed in self._items(layout.TRASH):
            yield listed, listed.name.rpartition("/")[2]

    def is_fresh(self, place: _Listed) -> bool:
        return place.item.modified > self.limit

    def read(self, place: _Listed) -> bytes:
        found = self.objects.place.client.read_small(place.item.path, SMALL)
        return b"" if found is None else found[0]

    def size(self, place: _Listed) -> int | None:
        return place.item.size

    def move(self, place: _Listed, digest: Digest) -> _Listed | None:
        name = f"{layout.TRASH}/{digest}.{uuid.uuid4().hex}"
        path = self.objects.place.path(name)
        target = self._listed(Item(path, place.item.size, time.time()), name)
        if not self.objects.place.client.control.copy(place.item, target.item.path):
            return None  # another pruning was first
        now = self.objects.place.client.head(place.item.path)
        # A list may give fractions of a second, and this reply none.
        if now is None or int(now.modified) != int(place.item.modified):
            self.delete(target)  # a save has just made it young, and relies on it
            return None
        self.objects.place.client.delete(place.item.path)
        return target

    def move_back(self, place: _Listed, digest: Digest) -> None:
        path = self.objects.place.path(layout.object_path(digest))
        if self.objects.place.client.head(path) is None:
            self.objects.place.client.control.copy(place.item, path)
        self.delete(place)

    def delete(self, place: _Listed) -> None:
        self.objects.place.client.delete(place.item.path)

    def sweep(self) -> None:
        super().sweep()
        client, place = self.objects.place.client, self.objects.place
        for upload in client.control.unfinished(place.path(layout.OBJECTS)):
            if upload.begun <= self.limit:
                self.report.swept.append(f"{client.locate(upload.path)} (unfinished)")
                if not self.dry_run:
                    client.control.abort(upload)

    def _items(self, folder: str) -> Iterator[_Listed]:
        place = self.objects.place
        for item in place.client.items(place.path(folder)):
            yield self._listed(item, place.name(item.path))

    def _listed(self, item: Item, name: str) -> _Listed:
        return _Listed(item, name, self.objects.place.locate(name))
