"""Which tensors a state has in common with older states: found from digests alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mlstate.digests import Digest
from mlstate.states import StateKey, StateType

__all__ = ["Inherited", "Lineage", "family_of"]

_MOST = 3
"""The most older states that a state is linked to: more would add little, and be no picture."""


class Inherited(NamedTuple):
    """The place of an older state among those added, and the bytes that a state has of it."""

    older: int
    nbytes: int


def family_of(key: StateKey) -> StateType:
    """Backend and architecture of a state, as `usage` groups states."""
    return StateType(key.state_type.backend, key.state_type.architecture)


class Lineage:
    """The tensors of all states that were added so far, the oldest first.

    Tensors that the same states have are one group. A group is a chain: the newest of its states,
    and the group without it. So very many tensors of many states take little memory.
    """

    def __init__(self) -> None:
        self._families: list[StateType] = []
        self._group_of: dict[Digest, int] = {}
        self._chains: list[tuple[int, int]] = [(-1, -1)]  # (newest state, group of the others)
        self._joined: dict[tuple[int, int], int] = {}

    def add(self, key: StateKey, tensors: Mapping[Digest, int]) -> list[Inherited]:
        """Add a state; return what it has of older ones, most first, each tensor counted once.

        Of older states that have as much, one of its own architecture comes first, then the oldest.

        Args:
            key: The state.
            tensors: The bytes of each of its tensor objects.
        """
        family, state = family_of(key), len(self._families)
        groups: dict[int, int] = {}
        for digest, nbytes in tensors.items():
            group = self._group_of.get(digest, 0)
            if group:
                groups[group] = groups.get(group, 0) + nbytes
            self._group_of[digest] = self._join(group, state)
        found = list(self._cover(groups, family))
        self._families.append(family)
        return found

    def oldest_of(self, family: StateType) -> int | None:
        """The first state of an architecture that was added, or None."""
        return self._families.index(family) if family in self._families else None

    def _join(self, group: int, state: int) -> int:
        number = self._joined.setdefault((group, state), len(self._chains))
        if number == len(self._chains):
            self._chains.append((state, group))
        return number

    def _members(self, group: int) -> Iterator[int]:
        while group:
            state, group = self._chains[group]
            yield state

    def _cover(self, groups: dict[int, int], family: StateType) -> Iterator[Inherited]:
        """Older states that have the tensors of groups: the one with most, then with most else."""
        members = {group: frozenset(self._members(group)) for group in groups}
        for _ in range(_MOST):
            counts: dict[int, int] = {}
            for group, nbytes in groups.items():
                for state in members[group]:
                    counts[state] = counts.get(state, 0) + nbytes
            if not counts:
                return
            best = max(counts, key=lambda s: (counts[s], self._families[s] == family, -s))
            yield Inherited(best, counts[best])
            groups = {group: n for group, n in groups.items() if best not in members[group]}
