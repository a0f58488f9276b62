"""Pruning: the removal of objects that no state names, in the same steps for all stores.

An object is moved to trash/ first. Then all states are read again, and objects that turn out to be
named or fresh are put back; only the next pruning deletes. A save, for its part, makes the objects
young that it reuses, and looks at them again once its state file is written.
"""

from __future__ import annotations

import abc
import contextlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mlstate.digests import Digest
from mlstate.errors import MlstateError, concerning
from mlstate.format import layout
from mlstate.objects import ObjectStore
from mlstate.objects.cache import Root
from mlstate.parallel import THREADS, for_each
from mlstate.reading import read_state, read_state_object
from mlstate.states import StateKey
from mlstate.stores.statefiles import StateFiles, parse_state_file

__all__ = ["TRASHED_STATE", "PruneReport", "Pruning", "objects_of_root"]

TRASHED_STATE = re.compile(r"(.+)\.toml\.[0-9a-f]{32}")

_Objects = TypeVar("_Objects", bound=ObjectStore)
_Place = TypeVar("_Place")


@dataclass
class PruneReport:
    """What a pruning did, or with ``dry_run`` would do.

    Attributes:
        trashed: Objects moved to trash/, with their sizes in bytes.
        restored: Objects put back from trash/.
        deleted: Objects deleted from trash/, with their sizes in bytes.
        swept: Other leftovers deleted: temporaries, old deleted state files, damaged objects that
            a fetch set aside, uploads that were never finished; by path.
    """

    trashed: dict[Digest, int] = field(default_factory=dict)
    restored: list[Digest] = field(default_factory=list)
    deleted: dict[Digest, int] = field(default_factory=dict)
    swept: list[str] = field(default_factory=list)


@dataclass
class Pruning(abc.ABC, Generic[_Objects, _Place]):
    """One pruning; a subclass for each kind of store says how things are found and moved.

    Everything younger than `limit`, in seconds since the epoch, is spared. The objects of fetched
    states that are `forgotten` are not.
    """

    states: StateFiles
    objects: _Objects
    limit: float
    dry_run: bool
    forgotten: Collection[Digest] = ()
    threads: int = THREADS
    report: PruneReport = field(default_factory=PruneReport, init=False)
    _refs: dict[Digest, tuple[Digest, ...]] = field(default_factory=dict, init=False)
    # Fine-tunes share most of their tensors: thousands of states name one digest, kept once.
    _digests: dict[Digest, Digest] = field(default_factory=dict, init=False)

    def roots(self) -> Iterator[Root]:
        """The fetched states that a cache keeps; other stores have none."""
        return iter(())

    @abc.abstractmethod
    def all_objects(self) -> Iterator[tuple[_Place, Digest]]:
        """Everything under objects/ that has an object's name; other things are left alone."""

    @abc.abstractmethod
    def trash(self) -> Iterator[tuple[_Place, str]]:
        """Everything in trash/, with its name there."""

    @abc.abstractmethod
    def is_fresh(self, place: _Place) -> bool:
        """Whether something is younger than the grace period; what is gone is not."""

    def comes_back(self, place: _Place) -> bool:
        """Whether an object in trash/ was in use when an earlier pruning moved it there."""
        return False

    @abc.abstractmethod
    def read(self, place: _Place) -> bytes:
        """The bytes of a small thing."""

    @abc.abstractmethod
    def size(self, place: _Place) -> int | None:
        """The size of something in bytes, or None if it is gone."""

    @abc.abstractmethod
    def move(self, place: _Place, digest: Digest) -> _Place | None:
        """Move an object to trash/; None if it is gone, or turned out to be in use."""

    @abc.abstractmethod
    def move_back(self, place: _Place, digest: Digest) -> None:
        """Move an object back from trash/, unless a save has written it anew."""

    @abc.abstractmethod
    def delete(self, place: _Place) -> None:
        """Remove something for good; what is gone already is no error."""

    def leftovers(self) -> Iterator[_Place]:
        """What crashed writers left, and state files in trash/, whatever their age."""
        return (place for place, name in self.trash() if TRASHED_STATE.fullmatch(name))

    def run(self) -> PruneReport:
        """Prune."""
        self._rescue_state_objects()
        earlier = list(self._trashed_objects())
        live = self._live()
        moved = list(self._move_unnamed(live))
        if moved:
            live = self._live()  # a save may have named one meanwhile
        for place, digest in moved:
            if digest in live:
                self.put_back(place, digest)
        for place, digest in earlier:
            if digest in live or self.comes_back(place):
                self.put_back(place, digest)
            elif (size := self.size(place)) is not None:
                self.report.deleted[digest] = size
                if not self.dry_run:
                    self.delete(place)
        self.sweep()
        return self.report

    def sweep(self) -> None:
        """Delete the leftovers that are old."""
        for place in list(self.leftovers()):
            if not self.is_fresh(place):
                self.report.swept.append(str(place))
                if not self.dry_run:
                    self.delete(place)

    def put_back(self, place: _Place, digest: Digest) -> None:
        """Put an object back from trash/."""
        if not self.dry_run:
            self.move_back(place, digest)
        self.report.trashed.pop(digest, None)
        self.report.restored.append(digest)

    def _live(self) -> set[Digest]:
        """Every object that a state names, or a state that was deleted a short while ago."""
        named: set[Digest] = set()

        def look(key: StateKey) -> None:
            data = self.states.read(key)
            if data is not None:
                with concerning(key):
                    named.update(self._named_by(data, key, self.states.locate(key)))

        for_each(look, self.states.keys(), self.threads)
        for root in self.roots():
            if root.digest not in self.forgotten:
                named |= objects_of_root(root, self.objects)
        for place, name in self.trash():
            if (match := TRASHED_STATE.fullmatch(name)) and self.is_fresh(place):
                with contextlib.suppress(MlstateError):  # it is deleted, it need not be whole
                    key = StateKey.parse(match[1])
                    named |= self._named_by(self.read(place), key, str(place))
        return named

    def _trashed_objects(self) -> Iterator[tuple[_Place, Digest]]:
        """Objects that an earlier pruning moved to trash/."""
        for place, name in self.trash():
            if match := layout.TRASHED_OBJECT.fullmatch(name):
                yield place, Digest(match[1])

    def _named_by(self, data: bytes, key: StateKey, origin: str) -> set[Digest]:
        """The objects that a state file names, and those that its state object names."""
        entry = parse_state_file(data, key, origin)
        digest = entry.pinned_digest
        if digest not in self._refs:
            named = {ref.digest for ref in read_state(entry, self.objects).refs.values()}
            self._refs[digest] = tuple(self._digests.setdefault(one, one) for one in named)
        return {digest, *self._refs[digest], *(file.digest for file in entry.files.values())}

    def _move_unnamed(self, live: set[Digest]) -> Iterator[tuple[_Place, Digest]]:
        """Move old unnamed objects to trash/."""
        for place, digest in self.all_objects():
            if digest in live or self.is_fresh(place) or (size := self.size(place)) is None:
                continue
            self.report.trashed[digest] = size
            if not self.dry_run:
                target = self.move(place, digest)
                if target is None:
                    self.report.trashed.pop(digest, None)
                else:
                    yield target, digest

    def _rescue_state_objects(self) -> None:
        """Put back state objects of live states, which an interrupted pruning left in trash/."""
        trashed = {digest: place for place, digest in self._trashed_objects()}
        for key in self.states.keys() if trashed else ():
            data = self.states.read(key)
            if data is not None:
                digest = parse_state_file(data, key, self.states.locate(key)).digest
                if digest in trashed and self.objects.size(digest) is None:
                    self.put_back(trashed.pop(digest), digest)


def objects_of_root(root: Root, objects: ObjectStore) -> set[Digest]:
    """The objects of a fetched state, as far as its state object can be read."""
    named = {root.digest, *root.files}
    with contextlib.suppress(MlstateError):  # a cache need not be whole
        state = read_state_object(root.digest, objects)
        named |= {ref.digest for ref in state.refs.values()}
    return named
