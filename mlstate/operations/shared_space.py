"""Sums over objects: which are there, and which states name them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from mlstate.digests import Digest
from mlstate.objects import ObjectStore
from mlstate.objects.cache import folders_of, last_use

__all__ = ["Named", "Presence"]


class Presence:
    """The objects that a store has, for questions about very many of them.

    Folders are listed once. An object that is not in the list is asked for: it may have come later.
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
        """The time of a state's last use, in seconds since the epoch; None if no cache knows."""
        times = (last_use(folder.root, digest) for folder in self._folders)
        return max((time for time in times if time is not None), default=None)


class _Shares:
    """The bytes that each group of states names alone, and those that it shares with others.

    One group after the other names its objects. An object is a number, to save memory.
    """

    def __init__(self) -> None:
        self.own: list[int] = []
        self.shared: list[int] = []
        self._alone = array("q")
        self._last = array("q")

    def begin(self) -> None:
        """Begin the next group."""
        self.own.append(0)
        self.shared.append(0)

    def count(self, number: int, size: int) -> None:
        """Count an object that the current group names."""
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
    """The bytes of objects that each state names, each architecture, and all together (`total`)."""

    def __init__(self) -> None:
        self.total = 0
        self._numbers: dict[bytes, int] = {}
        self._states, self._families = _Shares(), _Shares()

    def begin_family(self) -> None:
        """Begin the next architecture."""
        self._families.begin()

    def begin_state(self) -> None:
        """Begin the next state."""
        self._states.begin()

    def count(self, digest: Digest, size: int) -> None:
        """Count an object that is there and that the current state names."""
        new = len(self._numbers)
        number = self._numbers.setdefault(bytes.fromhex(digest), new)
        if number == new:
            self.total += size
        self._families.count(number, size)
        self._states.count(number, size)

    def of_states(self) -> Iterator[tuple[int, int]]:
        """The bytes that each state names alone, and those that it shares."""
        return zip(self._states.own, self._states.shared, strict=True)

    def of_families(self) -> Iterator[tuple[int, int]]:
        """The same of each architecture."""
        return zip(self._families.own, self._families.shared, strict=True)

    def __contains__(self, digest: Digest) -> bool:
        return bytes.fromhex(digest) in self._numbers
