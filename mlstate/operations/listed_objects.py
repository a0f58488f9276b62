"""Which objects are there: a list for questions about very many of them."""

from __future__ import annotations

from collections.abc import Iterable

from mlstate.digests import Digest
from mlstate.index import number_of
from mlstate.objects import ObjectStore
from mlstate.objects.cache import ChainObjectStore, folders_of, last_use

__all__ = ["ListedObjects"]


class ListedObjects:
    """The objects of an object store, for questions about very many of them.

    Folders are listed once. An object that is not in the list is asked for: it may have come later.

    Attributes:
        listed: The objects in the list, by their numbers.
        all_listed: Whether all that the object store reads are folders.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._folders = folders_of(objects)
        self.listed = {
            number_of(digest): digest for folder in self._folders for digest in folder.digests()
        }
        self._numbers = set(self.listed)
        parts = objects.stores if isinstance(objects, ChainObjectStore) else (objects,)
        self.all_listed = len(parts) == len(self._folders)

    def has(self, digest: Digest, objects: ObjectStore) -> bool:
        """Whether an object is in the folders as they were listed, or in an object store now."""
        return self.listed.get(number_of(digest)) == digest or objects.size(digest) is not None

    def has_all(self, numbers: Iterable[int]) -> bool:
        """Whether all of some objects are in the folders as they were listed."""
        return self._numbers.issuperset(numbers)

    def last_use(self, digest: Digest) -> float | None:
        """The time of a state's last use, in seconds since the epoch; None if no cache knows."""
        times = (last_use(folder.root, digest) for folder in self._folders)
        return max((time for time in times if time is not None), default=None)
