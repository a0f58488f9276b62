"""The space that states take, and that of one folder, as far as that can be known from it alone."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mlstate.index.sealed import array_of, little, sealed, unsealed

__all__ = ["FolderSpace", "SharedSpace", "StateSpace"]


class SharedSpace:
    """The bytes that each group of states names alone, and those that it shares with other groups.

    One group after the other names its objects, by number. What several groups name is passed over
    by operations on sets, so that thousands of states that share their objects take little.

    Args:
        elsewhere: Objects that are named by what is in none of the groups, too.

    Attributes:
        sizes: The bytes of each object that a group names.
    """

    def __init__(self, elsewhere: Iterable[int] = ()) -> None:
        self.sizes: dict[int, int] = {}
        self._own: list[int] = []
        self._shared: list[int] = []
        self._only: dict[int, int] = {}  # object -> the one group that names it
        self._several: set[int] = set(elsewhere)

    def add_group(self, objects: Collection[int], sizes: Collection[int]) -> None:
        """Add the next group: the objects that it names, each once, and their sizes."""
        group = len(self._own)
        rest = set(objects).difference(self._several)
        known = dict(zip(objects, sizes, strict=True)) if rest else {}
        own = 0
        for number in rest:
            size = known[number]
            if (only := self._only.pop(number, None)) is None:
                self._only[number] = group
                self.sizes[number] = size
                own += size
            else:
                self._several.add(number)
                self._own[only] -= size
                self._shared[only] += size
        self._own.append(own)
        self._shared.append(sum(sizes) - own)

    def is_lone(self, number: int) -> bool:
        """Whether one group alone names an object."""
        return number in self._only

    def lone(self) -> list[array[int]]:
        """The objects of each group that no other one names."""
        lone = [array("q") for _ in self._own]
        for number, group in self._only.items():
            lone[group].append(number)
        return lone

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The bytes of each group: those of its own, and those that it shares."""
        return zip(self._own, self._shared, strict=True)


class StateSpace(NamedTuple):
    """The space that one state takes.

    Attributes:
        nbytes: The bytes of tensor data, every name counted.
        objects: The objects that it names, each once, by number.
        sizes: The bytes of each of these.
    """

    nbytes: int
    objects: array[int]
    sizes: array[int]


def _numbers() -> array[int]:
    return array("q")


@dataclass(frozen=True)
class FolderSpace:
    """What takes the space of the states of a folder, in the order of its entries.

    Attributes:
        nbytes: Of each state, the bytes of tensor data, every name counted.
        sums: Of each state, the bytes of its objects, each once.
        lone: Of each state, the objects that no other one in the folder names, by number.
        sizes: The objects of all of them -> their bytes.
    """

    nbytes: array[int]
    sums: array[int]
    lone: list[array[int]]
    sizes: dict[int, int]

    @classmethod
    def of(cls, states: Iterable[StateSpace]) -> FolderSpace:
        """The space of states together."""
        nbytes, sums, shared = _numbers(), _numbers(), SharedSpace()
        for state in states:
            nbytes.append(state.nbytes)
            sums.append(sum(state.sizes))
            shared.add_group(state.objects, state.sizes)
        return cls(nbytes, sums, shared.lone(), shared.sizes)

    def encode(self, name: str) -> bytes:
        """The bytes that the index keeps under a name."""
        lone = _numbers()
        for objects in self.lone:
            lone += objects
        head = array("q", [len(self.nbytes), len(lone), len(self.sizes)])
        counts = array("q", map(len, self.lone))
        objects, sizes = array("q", self.sizes), array("q", self.sizes.values())
        parts = (head, self.nbytes, self.sums, counts, lone, objects, sizes)
        return sealed(name, b"".join(map(little, parts)))

    @classmethod
    def decode(cls, name: str, data: object) -> FolderSpace | None:
        """The inverse of `encode`; None for bytes that it did not make."""
        said = unsealed(name, data)
        if said is None or len(said) % 8 or len(said) < 24:
            return None
        numbers = array_of(said)
        states, lone, objects = numbers[:3]
        if min(states, lone, objects) < 0 or len(numbers) != 3 + 3 * states + lone + 2 * objects:
            return None
        parts = []
        end = 3
        for length in (states, states, states, lone, objects, objects):
            parts.append(numbers[end : end + length])
            end += length
        apart = []
        end = 0
        for count in parts[2]:
            apart.append(parts[3][end : end + count])
            end += count
        return cls(parts[0], parts[1], apart, dict(zip(parts[4], parts[5], strict=True)))
