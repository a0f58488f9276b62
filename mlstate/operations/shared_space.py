"""The space that states share: which objects are there, and which groups of states name them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from mlstate.digests import Digest
from mlstate.objects import ObjectStore
from mlstate.objects.cache import folders_of, last_use

__all__ = ["ListedObjects", "SharedSpace"]


class ListedObjects:
    """The objects of an object store, for questions about very many of them.

    Folders are listed once. An object that is not in the list is asked for: it may have come later.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._folders = folders_of(objects)
        self._listed = {
            bytes.fromhex(digest) for folder in self._folders for digest in folder.digests()
        }

    def has(self, digest: Digest, objects: ObjectStore) -> bool:
        """Whether an object is in the folders as they were listed, or in an object store now."""
        return bytes.fromhex(digest) in self._listed or objects.size(digest) is not None

    def last_use(self, digest: Digest) -> float | None:
        """The time of a state's last use, in seconds since the epoch; None if no cache knows."""
        times = (last_use(folder.root, digest) for folder in self._folders)
        return max((time for time in times if time is not None), default=None)


class SharedSpace:
    """The bytes that each group of states names alone, and those that it shares with other groups.

    One group after the other names its objects. An object is a number, which saves memory: they
    are 0, 1, 2 and so on in the order in which they are first counted.
    """

    def __init__(self) -> None:
        self._own: list[int] = []
        self._shared: list[int] = []
        self._only = array("q")  # the one group that names an object; -1 if several do
        self._last = array("q")  # the last group that named it

    def begin_group(self) -> None:
        """Begin the next group."""
        self._own.append(0)
        self._shared.append(0)

    def count(self, number: int, size: int) -> None:
        """Count an object that the current group names."""
        group = len(self._own) - 1
        if number == len(self._last):
            self._only.append(group)
            self._last.append(group)
            self._own[group] += size
        elif self._last[number] != group:
            only = self._only[number]
            if only >= 0:
                self._own[only] -= size
                self._shared[only] += size
                self._only[number] = -1
            self._shared[group] += size
            self._last[number] = group

    def is_shared(self, number: int) -> bool:
        """Whether several groups name an object."""
        return self._only[number] < 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The bytes of each group: those of its own, and those that it shares."""
        return zip(self._own, self._shared, strict=True)
