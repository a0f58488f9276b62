"""The objects that the states of a store name, by the user's index: for a pruning that is dry.

A pruning that removes something reads every state anew, and never comes here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress

from mlstate.digests import Digest
from mlstate.errors import MlstateError
from mlstate.index import Index, number_of
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore
from mlstate.parallel import for_each
from mlstate.states import StateKey
from mlstate.stores.abstract import Listing
from mlstate.stores.known import KnownStates
from mlstate.stores.statefiles import StateFiles, parse_state_file

__all__ = ["NamedObjects"]


class NamedObjects:
    """The objects that states name, as a container of their digests.

    Args:
        states: The state files of the store.
        objects: Its objects.
        present: All of these that are there.
        index: The index.
    """

    def __init__(
        self,
        states: StateFiles,
        objects: ObjectStore,
        present: Iterable[Digest],
        index: Index,
    ) -> None:
        self._states, self._objects, self._index = states, objects, index
        self._present = set(map(number_of, present))
        self._numbers: set[int] = set()

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, Digest) and number_of(digest) in self._numbers

    def add(self, digests: Iterable[Digest]) -> None:
        """Add objects."""
        self._numbers.update(map(number_of, digests))

    def add_known(self, digest: Digest) -> bool:
        """Add what a state object names that is there; False if the index does not know it."""
        said = self._index.kept(digest) if number_of(digest) in self._present else None
        if said is not None:
            self._numbers.update(said.objects)
        return said is not None

    def add_states(self, read: Callable[[StateKey], Collection[Digest]], threads: int) -> None:
        """Add what all states name.

        Args:
            read: Reads what a state names, and raises if that cannot be known.
            threads: How many are read at once.

        Raises:
            MlstateError: As `read`.
        """
        keys = self._states.keys()
        known = KnownStates(self._states, self._objects, self._index, far=self._objects)
        entries = self._entries(known, threads)
        self._index.load(entry.pinned_digest for entry in entries.values())

        def learn(entry: StateEntry) -> None:
            with suppress(MlstateError):  # `read` meets it, too
                self._index.said(entry, self._objects, here=False)

        for_each(learn, list(entries.values()), threads)
        unknown = [key for key in keys if key not in entries]
        for key, entry in entries.items():
            self.add((entry.pinned_digest, *(file.digest for file in entry.files.values())))
            if not self.add_known(entry.pinned_digest):
                unknown.append(key)
        for_each(lambda key: self.add(read(key)), unknown, threads)
        known.keep()

    def _entries(self, known: KnownStates, threads: int) -> dict[StateKey, StateEntry]:
        """What the state files say; those that cannot be read are left out."""
        found: dict[StateKey, StateEntry] = {}
        unknown: list[Listing] = []
        for listing in self._states.listing():
            entry = known.entry(listing)
            if entry is None:
                unknown.append(listing)
            else:
                found[listing.key] = entry

        def look(listing: Listing) -> None:
            key = listing.key
            data = self._states.read(key)
            try:
                entry = data and parse_state_file(data, key, self._states.locate(key))
            except MlstateError:
                return
            if entry and entry.digest is not None:
                found[key] = entry

        for_each(look, unknown, threads)
        for listing in unknown:
            known.learn(listing, found.get(listing.key))
        return found
