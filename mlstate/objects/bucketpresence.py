"""Which objects a bucket has, for somebody who asks about many."""

from __future__ import annotations

from itertools import islice
from threading import Lock

from mlstate.buckets.values import Item
from mlstate.digests import Digest
from mlstate.format import layout
from mlstate.objects.prefix import BucketPlace

__all__ = ["BucketPresence"]

ONE_BY_ONE = 16
"""So many are asked about alone. Then a list is tried: it costs as much as a few dozen of them."""
PAGE = 1000
"""What one request lists. If there is more in the bucket, a list of it all may not pay."""
_ALL = "\U0010ffff"


class BucketPresence:
    """Objects of a store in a bucket, as they were when this was made, or later.

    Args:
        place: The store.
    """

    def __init__(self, place: BucketPlace) -> None:
        self._place = place
        self._lock = Lock()
        self._asked = 0
        self._listed: dict[str, Item] | None = None
        self._until = ""

    def size(self, digest: Digest) -> int | None:
        """The size of an object in bytes, or None if it is not here."""
        item = self.item(digest)
        return None if item is None else item.size

    def item(self, digest: Digest) -> Item | None:
        """An object, or None if it is not here."""
        path = self._place.path(layout.object_path(digest))
        with self._lock:  # who comes while it is listed waits for the list
            self._asked += 1
            if self._asked > ONE_BY_ONE and self._listed is None:
                self._listed = self._list()
            if self._listed is not None and path <= self._until:
                return self._listed.get(path)
        return self._place.client.head(path)

    def _list(self) -> dict[str, Item]:
        """The first page of the objects; `_until` says how far it goes."""
        items = self._place.client.items(self._place.path(layout.OBJECTS))
        listed = {item.path: item for item in islice(items, PAGE)}
        if len(listed) < PAGE:
            self._until = _ALL
        elif list(listed) == sorted(listed):
            self._until = max(listed)
        return listed
