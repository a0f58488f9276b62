"""The objects of states that could be the base of each other: same type and shape, one family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mlstate.digests import Digest
from mlstate.errors import MlstateError
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.format.tensor_object import TensorSpec
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore
from mlstate.parallel import for_each
from mlstate.reading import read_state
from mlstate.states import StateKey
from mlstate.stores.read import StateStore

__all__ = [
    "Candidate",
    "Family",
    "Group",
    "ReadStates",
    "by_name",
    "family_of",
    "groups_of",
    "read_states",
]

Family = tuple[str, str]
"""Backend and architecture: only states of the same ones give each other bases."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An object that may be encoded, or be the base of others.

    Attributes:
        ref: Its type, shape and digest.
        names: The names that states give it, sorted.
        states: The states that have it, by their places in time: the oldest first.
        is_chosen: Whether a state has it that is to be compacted.
    """

    ref: TensorRef
    names: tuple[str, ...]
    states: tuple[int, ...]
    is_chosen: bool


@dataclass(frozen=True)
class Group:
    """Objects of one type and shape in the states of one family, the oldest first."""

    spec: TensorSpec
    members: tuple[Candidate, ...]


@dataclass
class ReadStates:
    """The state objects of a store, of the families that are to be compacted.

    Attributes:
        keys: The keys in the order in which the states were saved, as far as that is known.
        states: What each of these says.
        digests: The state digest of each.
        chosen: The states that are to be compacted.
        unreadable: The states of which nobody knows what they have.
    """

    keys: list[StateKey] = field(default_factory=list)
    states: list[StateObject] = field(default_factory=list)
    digests: list[Digest] = field(default_factory=list)
    chosen: set[StateKey] = field(default_factory=set)
    unreadable: dict[StateKey, MlstateError] = field(default_factory=dict)

    def refs(self) -> dict[Digest, TensorRef]:
        """The objects of the chosen states."""
        chosen = (s for k, s in zip(self.keys, self.states, strict=True) if k in self.chosen)
        return {ref.digest: ref for state in chosen for ref in state.refs.values()}


def read_states(
    store: StateStore, objects: ObjectStore, keys: Sequence[StateKey] | None
) -> ReadStates:
    """Read the state objects of the chosen states, and of all others of their families.

    Checkpoints of an older layout have no objects, and are passed over.

    Raises:
        MlstateError: A state that is given in ``keys`` cannot be read.
    """
    listings = list(store.listing())
    chosen = {listing.key for listing in listings} if keys is None else set(keys)
    families = {family_of(key) for key in chosen}
    times = {listing.key: listing.modified or 0.0 for listing in listings}
    wanted = sorted(
        (key for key in times.keys() | chosen if family_of(key) in families),
        key=lambda key: (times.get(key, 0.0), key),
    )
    found: dict[StateKey, tuple[StateEntry, StateObject]] = {}
    read = ReadStates(chosen=chosen)

    def look(key: StateKey) -> None:
        try:
            entry = store.catalog.recorded(key)
            if entry is not None and entry.digest is not None:
                found[key] = entry, read_state(entry, objects)
            elif keys is not None and key in chosen and not store.exists(key):
                store.get(key)  # says what is there instead
        except MlstateError as error:
            if keys is not None and key in chosen:
                raise
            read.unreadable[key] = error

    for_each(look, wanted, store.threads)
    for key in (key for key in wanted if key in found):
        entry, state = found[key]
        read.keys.append(key)
        read.states.append(state)
        read.digests.append(entry.pinned_digest)
    return read


def groups_of(read: ReadStates) -> Iterator[Group]:
    """The objects by family, type and shape; an object of two families is in two groups."""
    families: dict[Family, dict[TensorSpec, dict[Digest, _Seen]]] = {}
    for place, (key, state) in enumerate(zip(read.keys, read.states, strict=True)):
        family = families.setdefault(family_of(key), {})
        for name, ref in state.refs.items():
            seen = family.setdefault(ref.spec, {}).setdefault(ref.digest, _Seen(ref))
            seen.names.add(name)
            seen.states[place] = None
            seen.is_chosen |= key in read.chosen
    for family in families.values():
        for spec, objects in family.items():
            members = sorted((one.candidate() for one in objects.values()), key=_by_age)
            if any(member.is_chosen for member in members):
                yield Group(spec, tuple(members))


@dataclass
class _Seen:
    """An object, while states are looked at one after the other."""

    ref: TensorRef
    names: set[str] = field(default_factory=set)
    states: dict[int, None] = field(default_factory=dict)
    is_chosen: bool = False

    def candidate(self) -> Candidate:
        return Candidate(self.ref, tuple(sorted(self.names)), tuple(self.states), self.is_chosen)


def _by_age(candidate: Candidate) -> tuple[int, tuple[str, ...], Digest]:
    return candidate.states[0], candidate.names, candidate.ref.digest


def family_of(key: StateKey) -> Family:
    """The family of a state."""
    return key.state_type.backend, key.state_type.architecture


def by_name(members: Sequence[Candidate]) -> Mapping[str, list[Candidate]]:
    """The members that have each name, in their order."""
    named: dict[str, list[Candidate]] = {}
    for member in members:
        for name in member.names:
            named.setdefault(name, []).append(member)
    return named
