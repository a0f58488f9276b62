"""Pruning of a bucket.

A bucket has no rename: an object is moved to trash/ by copying it, checking that it is still the
same old one, and removing it. In between, a save may make it young and rely on it. If the state is
saved before the pruning reads the states again, the object is put back. If it is saved later, the
save, which looks again at the objects that it reused, puts it again. A load in between, or after a
pruning that was killed, finds it in trash/ (`mlstate.stores.bucket_trash`).

Nor can a bucket say whether it was this request that removed something: of two prunings at once
both may report an object.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import partial

from mlstate.buckets.listing import spread_items
from mlstate.buckets.values import Item
from mlstate.digests import Digest
from mlstate.format import layout
from mlstate.format.encoded_object import HEAD_SIZE
from mlstate.objects.bucket import BucketObjectStore
from mlstate.objects.durable import SMALL
from mlstate.objects.encoded_bucket import BucketRanges
from mlstate.objects.folder import GRACE_SECONDS
from mlstate.objects.prefix import BucketPlace
from mlstate.stores.bucket_catalog import BucketStateFiles
from mlstate.stores.prune import PruneReport, Pruning, check_seconds

__all__ = ["prune_bucket"]

_PROBE = re.compile(rf"{layout.TEMPORARIES}/[0-9a-f]{{32}}")
"""What was written to learn the server's time."""


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
    check_seconds(grace_seconds)
    if not objects.place.check(again=True):
        return PruneReport()  # no store yet: whatever is there belongs to somebody else
    now = time.time() if dry_run else _server_time(objects.place)
    return _BucketPruning(states, objects, now, grace_seconds, dry_run, threads=threads).run()


def _server_time(place: BucketPlace) -> float:
    """The time by the clock that dates the items of a bucket, which need not be this machine's."""
    path = place.path(f"{layout.TEMPORARIES}/{uuid.uuid4().hex}")
    place.client.put(path, b"")
    try:
        item = place.client.head(path)
    finally:
        place.client.delete(path)
    return time.time() if item is None else item.modified  # another pruning has swept it


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

    def all_encoded(self) -> Iterator[tuple[_Listed, Digest]]:
        for listed in self._items(layout.ENCODED):
            if digest := layout.digest_of_encoded_path(listed.name):
                yield listed, digest

    def indexes(self) -> Iterator[tuple[_Listed, Digest]]:
        for listed in self._items(f"{layout.ENCODED}/{layout.STATES}"):
            if state := layout.state_of_encoded_index(listed.name):
                yield listed, state

    def is_encoded(self, place: _Listed) -> bool:
        name = place.name.rpartition("/")[2]
        is_trashed = layout.TRASHED_ENCODED.fullmatch(name) is not None
        return is_trashed or layout.digest_of_encoded_path(place.name) is not None

    def read_head(self, place: _Listed) -> bytes:
        ranges = BucketRanges(self.objects.place.client, place.item)
        return ranges.read(0, min(HEAD_SIZE, ranges.size))

    def trash(self) -> Iterator[tuple[_Listed, str]]:
        for listed in self._items(layout.TRASH):
            yield listed, listed.name.rpartition("/")[2]

    def modified(self, place: _Listed) -> float:
        return place.item.modified

    def read(self, place: _Listed) -> bytes:
        found = self.objects.place.client.read_small(place.item.path, SMALL)
        return b"" if found is None else found[0]

    def size(self, place: _Listed) -> int | None:
        return place.item.size

    def move(self, place: _Listed, digest: Digest) -> _Listed | None:
        trashed = layout.trashed_name(digest, encoded=self.is_encoded(place))
        name = f"{layout.TRASH}/{trashed}"
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

    def move_back(self, place: _Listed, digest: Digest) -> bool:
        client, objects = self.objects.place.client, self.objects
        is_encoded = self.is_encoded(place)
        path = objects.encoded_path(digest) if is_encoded else objects.path(digest)
        if client.head(path) is None and not client.control.copy(place.item, path):
            return False
        self.delete(place)
        return True

    def delete(self, place: _Listed) -> bool:
        self.objects.place.client.delete(place.item.path)
        return True

    def leftovers(self) -> Iterator[_Listed]:
        for listed in self._items(layout.TEMPORARIES):
            if _PROBE.fullmatch(listed.name):
                yield listed
        yield from super().leftovers()

    def sweep(self, live: Container[Digest]) -> None:
        super().sweep(live)
        client, place = self.objects.place.client, self.objects.place
        folders = (layout.OBJECTS, layout.ENCODED)
        for upload in (u for f in folders for u in client.control.unfinished(place.path(f))):
            if upload.begun <= self.now - self.grace_seconds and not self.is_ahead(upload.begun):
                self.report.swept.append(f"{client.locate(upload.path)} (unfinished)")
                if not self.dry_run:
                    client.control.abort(upload)

    def _items(self, folder: str) -> Iterator[_Listed]:
        place = self.objects.place
        is_large = folder in (layout.OBJECTS, layout.ENCODED)
        list_items = partial(spread_items, place.client) if is_large else place.client.items
        for item in list_items(place.path(folder)):
            yield self._listed(item, place.name(item.path))

    def _listed(self, item: Item, name: str) -> _Listed:
        return _Listed(item, name, self.objects.place.locate(name))
