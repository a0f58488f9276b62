"""Which objects are there: a list for questions about very many of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import chain

from mlstate.digests import Digest
from mlstate.index import begin_of, number_of
from mlstate.objects import ObjectStore
from mlstate.objects.cache import ChainObjectStore, folders_of, last_use

__all__ = ["ListedObjects"]


class ListedObjects:
    """The objects of an object store, for questions about very many of them.

    Folders are listed once. An object that is not in the list is asked for: it may have come later.

    Args:
        objects: The object store.
        few: Whether a small part of the objects is asked about: then names are compared by how they
            begin, and no list of all objects is made.

    Attributes:
        all_listed: Whether all that the object store reads are folders.
    """

    def __init__(self, objects: ObjectStore, *, few: bool = False) -> None:
        self._folders = folders_of(objects)
        self._few = few
        self._beginnings: dict[str, set[str]] = {}
        parts = objects.stores if isinstance(objects, ChainObjectStore) else (objects,)
        self.all_listed = len(parts) == len(self._folders)

    @cached_property
    def listed(self) -> dict[int, Digest]:
        """The objects in the list, by their numbers."""
        return {
            number_of(digest): digest
            for folder in self._folders
            for digest in chain(folder.digests(), folder.encoded_digests())
        }

    @cached_property
    def _numbers(self) -> set[int]:
        return set(self.listed)

    def has(self, digest: Digest, objects: ObjectStore) -> bool:
        """Whether an object is in the folders as they were listed, or in an object store now."""
        is_listed = not self._few and self.listed.get(number_of(digest)) == digest
        return is_listed or objects.size(digest) is not None

    def has_all(self, numbers: Iterable[int]) -> bool:
        """Whether all of some objects are in the folders as they were listed."""
        if not self._few:
            return self._numbers.issuperset(numbers)
        return all(text in self._beginning_with(text[:2]) for text in map(begin_of, numbers))

    def _beginning_with(self, digits: str) -> set[str]:
        """How the digests begin of the objects whose first two digits are these."""
        if digits not in self._beginnings:
            self._beginnings[digits] = {
                digits + name[:14]
                for folder in self._folders
                for name in chain(folder.names_in(digits), folder.names_in(digits, encoded=True))
            }
        return self._beginnings[digits]

    def last_use(self, digest: Digest) -> float | None:
        """The time of a state's last use, in seconds since the epoch; None if no cache knows."""
        times = (last_use(folder.root, digest) for folder in self._folders)
        return max((time for time in times if time is not None), default=None)
