"""Which objects are there, and who names them: each is a number, for memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from mlstate.digests import Digest
from mlstate.objects import ObjectStore
from mlstate.objects.cache import folders_of, last_use

__all__ = ["Named", "Presence"]


class Presence:
    """What an object store has, for somebody who asks about very many objects.

    Folders are listed once. What came later is found all the same: it is asked for.

    Args:
        objects: The object store.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self._folders = folders_of(objects)
        self._listed = {
            bytes.fromhex(digest) for folder in self._folders for digest in folder.digests()
        }

    def has(self, digest: Digest, objects: ObjectStore) -> bool:
        """Whether an object is there: in the folders as they were listed, or in an object store."""
        return bytes.fromhex(digest) in self._listed or objects.size(digest) is not None

    def last_use(self, digest: Digest) -> float | None:
        """When a state was last used, as far as a cache knows; in seconds since the epoch."""
        times = (last_use(folder.root, digest) for folder in self._folders)
        return max((time for time in times if time is not None), default=None)


class _Shares:
    """Which objects one group names alone; each group names all of its own in a row."""

    def __init__(self) -> None:
        self.own: list[int] = []
        self.shared: list[int] = []
        self._alone = array("q")
        self._last = array("q")

    def begin(self) -> None:
        """The next group."""
        self.own.append(0)
        self.shared.append(0)

    def count(self, number: int, size: int) -> None:
        """The current group names an object."""
        group = len(self.own) - 1
        if number == len(self._last):
            self._alone.append(group)
            self._last.append(group)
            self.own[group] += size
        elif self._last[number] != group:
            alone = self._alone[number]
            if alone >= 0:
                self.own[alone] -= size
                self.shared[alone] += size
                self._alone[number] = -1
            self.shared[group] += size
            self._last[number] = group


class Named:
    """The objects that states name: by each state alone, by each architecture, by all.

    Attributes:
        total: The size of all objects together, each once.
    """

    def __init__(self) -> None:
        self.total = 0
        self._numbers: dict[bytes, int] = {}
        self._states, self._families = _Shares(), _Shares()

    def begin_family(self) -> None:
        """The next states are of the next architecture."""
        self._families.begin()

    def begin_state(self) -> None:
        """The next objects are those of the next state."""
        self._states.begin()

    def count(self, digest: Digest, size: int) -> None:
        """The current state names an object that is there."""
        new = len(self._numbers)
        number = self._numbers.setdefault(bytes.fromhex(digest), new)
        if number == new:
            self.total += size
        self._families.count(number, size)
        self._states.count(number, size)

    def of_states(self) -> Iterator[tuple[int, int]]:
        """What each state names alone, and what it shares with others, in bytes."""
        return zip(self._states.own, self._states.shared, strict=True)

    def of_families(self) -> Iterator[tuple[int, int]]:
        """The same of each architecture."""
        return zip(self._families.own, self._families.shared, strict=True)

    def __contains__(self, digest: Digest) -> bool:
        return bytes.fromhex(digest) in self._numbers
