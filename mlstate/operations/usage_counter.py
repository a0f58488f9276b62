"""Sums over states: how many bytes each takes, alone and together with others."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import groupby

from mlstate.digests import Digest
from mlstate.errors import MlstateError, SignatureError
from mlstate.format import layout, tensor_object
from mlstate.index import FolderSpace, Index, SharedSpace, StateSpace, number_of
from mlstate.operations.doctor.check import reason_of
from mlstate.operations.listed_objects import ListedObjects
from mlstate.operations.object_forms import ObjectForms
from mlstate.operations.usage_report import ArchitectureUsage, Cached, StateUsage
from mlstate.reading import read_state
from mlstate.states import StateType
from mlstate.stores.abstract import Found, Listing
from mlstate.stores.known import KnownStates
from mlstate.stores.read import StateStore

__all__ = ["Counter", "Result"]

Result = Found | MlstateError | None
"""What a look at a state gave: None for one of whose size the listing tells."""

_Looked = tuple[Listing, Result]


class Counter:
    """Sums over states, architecture by architecture.

    Args:
        store: The store.
        index: What state objects say.
        known: What is known of architectures as a whole.
        elsewhere: Objects that states which are not added name, too.
        few: Whether a small part of a store is added.
        forms: What is encoded, where that is known.
    """

    def __init__(
        self,
        store: StateStore,
        index: Index,
        known: KnownStates,
        elsewhere: Iterable[int] = (),
        *,
        few: bool = False,
        forms: ObjectForms | None = None,
    ) -> None:
        self._forms = forms or None
        self._store = store
        self._index = index
        self._known = known
        self._is_far = store.place is not None  # then the objects here are a cache
        self._is_view = store.fetcher is not None
        self.here = ListedObjects(store.objects, few=few)
        self.checkpoints = 0  # bytes of states that are no objects
        self._families: list[tuple[StateType, list[StateUsage], FolderSpace]] = []
        self._shared = SharedSpace(elsewhere)

    @property
    def total(self) -> int:
        """The bytes of all that was added, each object once."""
        return self.checkpoints + sum(self._shared.sizes.values())

    def is_shared(self, digest: Digest) -> bool | None:
        """Whether several states name an object; None if none of those that were added does."""
        number = number_of(digest)
        return None if number not in self._shared.sizes else number not in self._lone

    @cached_property
    def _lone(self) -> set[int]:
        """The objects that one state alone names; to be asked for once all states are added."""
        lone = (objects for _, _, space in self._families for objects in space.lone)
        return {number for objects in lone for number in objects if self._shared.is_lone(number)}

    def add_all(self, states: Iterable[_Looked]) -> None:
        """Add states, in the order of their keys."""
        for (backend, architecture), group in groupby(states, _family):
            family = list(group)
            whole = self._as_a_whole(f"{layout.STATES}/{backend}/{architecture}", family)
            states_, space = whole or self._one_by_one(family)
            self._families.append((StateType(backend, architecture), states_, space))
            self._shared.add_group(space.sizes.keys(), space.sizes.values())

    def states(self) -> list[StateUsage]:
        """The usage of each state."""
        return [
            state if state.own is None else _with_space(state, state.own + own, total - own)
            for _, states, space in self._families
            for state, own, total in zip(states, self._own(space), space.sums, strict=True)
        ]

    def architectures(self) -> Iterator[ArchitectureUsage]:
        """The usage of each architecture."""
        for (family, states, _), (own, shared) in zip(self._families, self._shared, strict=True):
            apart = sum(state.own or 0 for state in states)
            nbytes = sum(state.nbytes or 0 for state in states)
            yield ArchitectureUsage(family, len(states), nbytes, own + apart, shared)

    def _own(self, space: FolderSpace) -> Iterator[int]:
        """The bytes of each state of an architecture that no other state names."""
        for objects in space.lone:
            yield sum(space.sizes[n] for n in objects if self._shared.is_lone(n))

    def _as_a_whole(
        self, path: str, family: list[_Looked]
    ) -> tuple[list[StateUsage], FolderSpace] | None:
        """The states of an architecture of which all is known, and here; else None."""
        space = None if self._forms else self._known.space(path)
        if space is None or not self.here.has_all(space.sizes):
            return None
        places = self._known.places(path)
        if len(places) != len(family):
            return None
        cached: Cached | None = "yes" if self._is_view else None
        states = []
        for listing, found in family:
            place = places.get(listing.key)
            if place is None or not isinstance(found, Found) or found.entry.digest is None:
                return None
            size, digest = space.nbytes[place], found.entry.digest
            states.append(StateUsage(listing.key, digest, size, 0, 0, cached, listing.modified))
        return states, space

    def _one_by_one(self, family: list[_Looked]) -> tuple[list[StateUsage], FolderSpace]:
        """The states of an architecture, and the objects of them that are here."""
        states, spaces = [], []
        looked_at = (found.entry.digest for _, found in family if isinstance(found, Found))
        self._index.load(digest for digest in looked_at if digest is not None)
        for listing, found in family:
            counted = _Counted()
            try:
                state = self._state(listing, found, counted)
            except (MlstateError, OSError) as error:  # an object in a closed folder, say
                state = StateUsage(
                    listing.key,
                    modified=listing.modified,
                    error=reason_of(error),
                    unsigned=isinstance(error, SignatureError),
                )
            states.append(state)
            spaces.append(StateSpace(0, counted.objects, counted.sizes))
        return states, FolderSpace.of(spaces)

    def _state(self, listing: Listing, found: Result, counted: _Counted) -> StateUsage:
        """The usage of a state; `own` has only what is no object, until all are counted."""
        key, modified = listing.key, listing.modified
        if isinstance(found, MlstateError):
            raise found
        if found is None:
            self.checkpoints += listing.size or 0
            return StateUsage(key, None, listing.size, listing.size, 0, None, modified)
        entry = found.entry
        if entry.digest is None:
            return StateUsage(key, None, entry.size, cached="no" if self._is_view else None)
        if modified is None:
            modified = self.here.last_use(entry.digest)
        is_cache = self._is_view and not self._is_far
        if is_cache and not self.here.has(entry.digest, found.objects):
            # A file that others have, too, does not make it one that is here.
            if modified is None or not self._count_files(found, counted):
                return StateUsage(key, entry.digest, entry.size, cached="no")
            return StateUsage(key, entry.digest, entry.size, 0, 0, "partly", modified)
        nbytes, is_whole = self._count_objects(found, counted)
        cached: Cached | None = None
        if self._is_view:
            cached = "yes" if is_whole else "partly"
        return StateUsage(key, entry.digest, nbytes, 0, 0, cached, modified)

    def _count_objects(self, found: Found, counted: _Counted) -> tuple[int, bool]:
        """Count the objects of a state; return its size, and whether all of it is here."""
        entry, objects = found
        said = self._index.said(entry, objects, here=not self._is_far)
        is_whole = self.here.has_all(said.objects)
        if is_whole or self._is_far:
            counted.objects.extend(said.objects)
            counted.sizes.extend(said.sizes)
        if not is_whole and not (self._is_far and self.here.all_listed):
            is_whole = True
            for ref in read_state(entry, objects).refs.values():
                is_here = self.here.has(ref.digest, objects)
                is_whole &= is_here
                if is_here:
                    counted.add(ref.digest, tensor_object.object_size(ref.spec))
        if self._forms is not None:
            counted.count_forms(self._forms)
        counted.add(entry.pinned_digest, said.size)
        return said.nbytes, self._count_files(found, counted) == len(entry.files) and is_whole

    def _count_files(self, found: Found, counted: _Counted) -> int:
        """Count the files of a state; return how many are here."""
        here = 0
        space = self._known.space(layout.state_folder(found.entry.key.state_type))
        for file in found.entry.files.values():
            size = found.objects.size(file.digest)
            here += size is not None
            if size is None and space is not None:
                size = space.sizes.get(number_of(file.digest))
            if size is None and self._store.own is not None:
                size = self._store.own.size(file.digest)
            if size is not None:
                counted.add(file.digest, size)
        return here


def _with_space(state: StateUsage, own: int, shared: int) -> StateUsage:
    """As `dataclasses.replace`, which takes three times as long: a store has thousands."""
    return StateUsage(**{**vars(state), "own": own, "shared": shared})


class _Counted:
    """The objects of a state that are counted, each once, and their sizes."""

    def __init__(self) -> None:
        self.objects, self.sizes = array("q"), array("q")

    def add(self, digest: Digest, size: int) -> None:
        """Add an object, unless it is there."""
        number = number_of(digest)
        if number not in self.objects:
            self.objects.append(number)
            self.sizes.append(size)

    def count_forms(self, forms: ObjectForms) -> None:
        """Count the objects so far in the forms that are there, and what they are built on."""
        plain = dict(zip(self.objects, self.sizes, strict=True))
        self.sizes = array("q", [forms.size(number, size) for number, size in plain.items()])
        for number in plain:
            for base, size in forms.bases(number):
                self.add(base, size)


def _family(state: _Looked) -> tuple[str, str]:
    state_type = state[0].key.state_type
    return state_type.backend, state_type.architecture
