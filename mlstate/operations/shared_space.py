"""The space that states share: which objects are there, and which groups of states name them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from mlstate.digests import Digest
from mlstate.index import number_of
from mlstate.objects import ObjectStore
from mlstate.objects.cache import folders_of, last_use

__all__ = ["ListedObjects", "SharedSpace"]


class ListedObjects:
    """The objects of an object store, for questions about very many of them.

    Folders are listed once. An object that is not in the list is asked for: it may have come later.

    Attributes:
        listed: The objects in the list, by their numbers.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._folders = folders_of(objects)
        self.listed = {
            number_of(digest): digest for folder in self._folders for digest in folder.digests()
        }

    def has(self, digest: Digest, objects: ObjectStore) -> bool:
        """Whether an object is in the folders as they were listed, or in an object store now."""
        return self.listed.get(number_of(digest)) == digest or objects.size(digest) is not None

    def has_all(self, numbers: Iterable[int]) -> bool:
        """Whether all of some objects are in the folders as they were listed."""
        return self.listed.keys() >= set(numbers)

    def last_use(self, digest: Digest) -> float | None:
        """The time of a state's last use, in seconds since the epoch; None if no cache knows."""
        times = (last_use(folder.root, digest) for folder in self._folders)
        return max((time for time in times if time is not None), default=None)


class SharedSpace:
    """The bytes that each group of states names alone, and those that it shares with other groups.

    One group after the other names its objects, by number. Of an object that is named before, only
    the group that has it alone changes, once: this takes a step for each object, and little more
    for each of the many states that name it.

    Args:
        elsewhere: Objects that are named by what is in none of the groups, too.

    Attributes:
        total: The bytes of all objects, each once.
    """

    def __init__(self, elsewhere: Iterable[int] = ()) -> None:
        self._own: list[int] = []
        self._shared: list[int] = []
        self._only: dict[int, int] = {}  # object -> the one group that names it
        self._several: set[int] = set(elsewhere)
        self.total = 0

    def __contains__(self, number: int) -> bool:
        """Whether a group names an object."""
        return number in self._only or number in self._several

    def add_group(self, sizes: Mapping[int, int]) -> None:
        """Add the next group: the objects that it names, with their sizes."""
        group, numbers = len(self._own), set(sizes)
        here_too = numbers & self._only.keys()
        shared = (numbers & self._several) | here_too
        new = numbers - shared
        self._only |= dict.fromkeys(new, group)
        own = sum(sizes[number] for number in new)
        self.total += own
        for number in here_too:
            only = self._only.pop(number)
            self._own[only] -= sizes[number]
            self._shared[only] += sizes[number]
        self._several |= here_too
        self._own.append(own)
        self._shared.append(sum(sizes.values()) - own)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The bytes of each group: those of its own, and those that it shares."""
        return zip(self._own, self._shared, strict=True)
