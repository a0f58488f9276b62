"""Pruning: the removal of objects that no state names, in the same steps for all stores.

The rule, by which a saving and prunings beside each other lose nothing, whatever the grace period:

- A saving makes every object young that it reuses, before it relies on it. (What is younger than a
  bound is left as it is: a minute in a folder, an hour in a bucket, where this costs a request.)
  Then it writes its state file, and *then* it looks at all of its objects again, in their places,
  and writes those anew that are gone.
- A pruning moves an object to trash/ first, if it is unnamed and old, and puts it back if it turns
  out to be young there. *Then* it reads all states again, and puts back what is named by now. Only
  the next pruning deletes, and reads all states after it has listed what lies in trash/.

So an object that is moved before the saving looks again is written anew by the saving; one that is
moved later is put back, for the pruning that has moved it finds the state file. Meanwhile, and if
that pruning is killed, readers find the object in trash/. If the second reading fails, all that was
moved is put back before the error is raised.

What is needed is plain or encoded, and so is a base of an encoded object that is needed or young,
and what that is the difference to. The plain object that was given up for an encoded form lies in
trash/ like any other, and is not put back from there: it is deleted after the grace period.

Other prunings may do the same at once: what is gone already is no error, and is in the report of
the one that has taken it away.
"""

from __future__ import annotations

import abc
import contextlib
import time
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, TypeVar

from mlstate.digests import Digest
from mlstate.errors import FormatError, MlstateError, ObjectNotFoundError, concerning
from mlstate.format import layout
from mlstate.format.encoded_object import Head
from mlstate.index import open_index
from mlstate.log import info
from mlstate.objects import ObjectStore
from mlstate.objects.cache import Root
from mlstate.objects.encoded_forms import size_of_encoded
from mlstate.objects.interface import EncodedObjectStore, TrashingObjectStore
from mlstate.parallel import THREADS, for_each
from mlstate.reading import read_state, read_state_object
from mlstate.states import StateKey
from mlstate.stores.named import NamedObjects
from mlstate.stores.statefiles import StateFiles, parse_state_file

__all__ = ["PruneReport", "Pruning", "check_seconds", "objects_of_root", "objects_of_states"]

AHEAD = 60.0
"""So many seconds after now a time is of the future: of a clock that goes wrong."""
_WAITS = (0.05, 0.2, 0.5)
"""How long to wait, in seconds, for a state whose state object is away at this moment."""

_Objects = TypeVar("_Objects", bound=ObjectStore)
_Place = TypeVar("_Place")


def check_seconds(seconds: object, argument: str = "grace_seconds") -> None:
    """Refuse, by a FormatError, a time that is no number, such as a text."""
    if seconds is not None and not isinstance(seconds, int | float):
        raise FormatError(
            f"{argument} is a number of seconds",
            expected="86400 for a day, say",
            found=repr(seconds),
        )


@dataclass
class PruneReport:
    """What a pruning did, or with ``dry_run`` would do.

    Attributes:
        trashed: Objects moved to trash/, with their sizes in bytes.
        restored: Objects put back from trash/.
        deleted: Objects deleted from trash/, with the bytes that it took; one may have been there
            several times.
        swept: Other leftovers deleted: temporaries, old deleted state files, damaged objects that
            a fetch set aside, uploads that were never finished, indexes of what is encoded of
            states that are gone; by path.
        future: What would have gone, but for a time that is yet to come; by path. A clock was
            wrong when it was written, or is wrong now: its age is unknown, and it stays.
        spared: Objects that no state needs and that stay for the grace period, with their sizes in
            bytes: they are young, or a state needs them that was deleted within it.
        waiting: Other leftovers that stay for it, or are written on; by path, with their sizes.
    """

    trashed: dict[Digest, int] = field(default_factory=dict)
    restored: list[Digest] = field(default_factory=list)
    deleted: dict[Digest, int] = field(default_factory=dict)
    swept: list[str] = field(default_factory=list)
    future: list[str] = field(default_factory=list)
    spared: dict[Digest, int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)


@dataclass
class Pruning(abc.ABC, Generic[_Objects, _Place]):
    """One pruning; a subclass for each kind of store says how things are found and moved.

    Everything younger than the grace period is spared. It is `now`, in seconds since the epoch, by
    the clock that dates what is pruned. `forgotten` are fetched states whose objects are not needed
    any more, each with its last use: one that is used after that is needed again.
    """

    states: StateFiles
    objects: _Objects
    now: float
    grace_seconds: float
    dry_run: bool
    forgotten: Mapping[Digest, float] = field(default_factory=dict)
    threads: int = THREADS
    report: PruneReport = field(default_factory=PruneReport, init=False)
    _refs: dict[Digest, tuple[Digest, ...]] = field(default_factory=dict, init=False)
    # Fine-tunes share most of their tensors: thousands of states name one digest, kept once.
    _digests: dict[Digest, Digest] = field(default_factory=dict, init=False)
    _of_deleted: set[Digest] = field(default_factory=set, init=False)
    _forms: Collection[Digest] = field(default=(), init=False)
    _bases: dict[tuple[str, float | None], Digest | None] = field(default_factory=dict, init=False)
    _begun: float = field(default_factory=time.monotonic, init=False)

    def roots(self) -> Iterator[Root]:
        """The fetched states that a cache keeps; other stores have none."""
        return iter(())

    @abc.abstractmethod
    def all_objects(self) -> Iterator[tuple[_Place, Digest]]:
        """Everything under objects/ that has an object's name; other things are left alone."""

    @abc.abstractmethod
    def all_encoded(self) -> Iterator[tuple[_Place, Digest]]:
        """Everything under encoded/ that has an object's name."""

    @abc.abstractmethod
    def indexes(self) -> Iterator[tuple[_Place, Digest]]:
        """What says of states which of their objects are encoded, with the state digests."""

    @abc.abstractmethod
    def is_encoded(self, place: _Place) -> bool:
        """Whether something is the encoded form of an object, in its place or in trash/."""

    @abc.abstractmethod
    def read_head(self, place: _Place) -> bytes:
        """The first bytes of an encoded form, as many as a head has; fewer of a shorter one."""

    @abc.abstractmethod
    def trash(self) -> Iterator[tuple[_Place, str]]:
        """Everything in trash/, with its name there."""

    @abc.abstractmethod
    def modified(self, place: _Place) -> float | None:
        """When something was written or made young, in seconds since the epoch; None if gone."""

    def is_fresh(self, place: _Place) -> bool:
        """Whether something is younger than the grace period; what is gone is not."""
        modified = self.modified(place)
        if modified is None:
            return False
        return modified > self.now - self.grace_seconds or self.is_ahead(modified)

    def is_ahead(self, modified: float) -> bool:
        """Whether a time is yet to come."""
        return modified > self.now + (time.monotonic() - self._begun) + AHEAD

    def is_under_way(self, place: _Place) -> bool:
        """Whether something may be written on by a process that is alive, whatever the grace."""
        return False

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
    def move_back(self, place: _Place, digest: Digest) -> bool:
        """Move an object back from trash/, unless a save has written it anew.

        Returns False if it was gone.
        """

    @abc.abstractmethod
    def delete(self, place: _Place) -> bool:
        """Remove something for good; False if it was gone already, where that can be known."""

    def leftovers(self) -> Iterator[_Place]:
        """What crashed writers left, and state files in trash/, whatever their age."""
        return (place for place, name in self.trash() if layout.TRASHED_STATE.fullmatch(name))

    def run(self) -> PruneReport:
        """Prune."""
        self._rescue_state_objects()
        earlier = list(self._trashed_objects())
        live = self._live()
        moved: list[tuple[_Place, Digest]] = []
        try:
            for place, digest in self._move_unnamed(live):
                moved.append((place, digest))
            if moved:
                live = self._live()  # a save may have named one meanwhile
        except BaseException:
            self._put_all_back(moved)  # nobody knows whether they are named
            raise
        named = [(place, digest) for place, digest in moved if digest in live]
        if errors := self._put_all_back(named):
            raise errors[0]
        for place, digest in earlier:
            if self._is_given_up(place, digest):
                self._delete_old(place, digest)
                continue
            if digest in live or self.comes_back(place):
                size = self.size(place)
                if size is not None and (digest not in live or digest in self._of_deleted):
                    self.report.spared[digest] = size
                self.put_back(place, digest)
            else:
                self._delete(place, digest)
        self.sweep(live)
        if not self.dry_run:
            moved_now, deleted = len(self.report.trashed), len(self.report.deleted)
            info("pruned: %d objects moved to trash, %d deleted", moved_now, deleted)
        return self.report

    def _is_given_up(self, place: _Place, digest: Digest) -> bool:
        """Whether an object in trash/ is there since it has another form, which can be read."""
        objects = self.objects
        if digest not in self._forms or not isinstance(objects, EncodedObjectStore):
            return False
        is_plain = objects.plain_size(digest) is not None
        if self.is_encoded(place):
            return is_plain
        return not is_plain and size_of_encoded(objects, digest) is not None

    def _delete_old(self, place: _Place, digest: Digest) -> None:
        """Delete an object from trash/ that has been there for the grace period."""
        if not self.is_fresh(place):
            self._delete(place, digest)
        elif (size := self.size(place)) is not None:
            self.report.waiting[str(place)] = size

    def _delete(self, place: _Place, digest: Digest) -> None:
        """Delete an object from trash/."""
        if (size := self.size(place)) is not None and (self.dry_run or self.delete(place)):
            self.report.deleted[digest] = self.report.deleted.get(digest, 0) + size

    def sweep(self, live: Container[Digest]) -> None:
        """Delete the leftovers that are old, and indexes of states that are not needed."""
        unneeded = (place for place, state in self.indexes() if state not in live)
        for place in [*self.leftovers(), *unneeded]:
            if self.is_fresh(place) or self.is_under_way(place):
                self._note_future(place)
                if (size := self.size(place)) is not None:
                    self.report.waiting[str(place)] = size
            elif self.dry_run or self.delete(place):
                self.report.swept.append(str(place))

    def put_back(self, place: _Place, digest: Digest) -> None:
        """Put an object back from trash/, unless another pruning has done so."""
        if self.dry_run or self.move_back(place, digest):
            self.report.trashed.pop(digest, None)
            self.report.restored.append(digest)

    def _put_all_back(self, moved: list[tuple[_Place, Digest]]) -> list[Exception]:
        """Put objects back, each whatever happens to the others; the errors that were met."""
        errors: list[Exception] = []
        for place, digest in moved:
            try:
                self.put_back(place, digest)
            except Exception as error:
                errors.append(error)
        return errors

    def _note_future(self, place: _Place) -> None:
        modified = self.modified(place)
        if modified is not None and self.is_ahead(modified):
            self.report.future.append(str(place))

    def _live(self) -> Container[Digest]:
        """Every object that a state names, or a state that was deleted a short while ago."""
        if self.dry_run:
            return self._live_by_index()
        named: set[Digest] = set()

        def look(key: StateKey) -> None:
            named.update(self._named_by_state(key))

        for_each(look, self.states.keys(), self.threads)
        for root in self._kept_roots():
            named |= objects_of_root(root, self.objects)
        deleted = self._named_in_trash()
        forms = self._encoded_forms()
        named |= self._bases_of((d for d in forms if d in named or self._is_young(forms[d])), forms)
        deleted |= self._bases_of(deleted, forms)
        self._of_deleted = deleted - named
        return named | deleted

    def _live_by_index(self) -> Container[Digest]:
        """The same, for a list that nothing is removed by: not all states are read anew."""
        with open_index() as index:
            present = (digest for _, digest in chain(self.all_objects(), self.all_encoded()))
            named = NamedObjects(self.states, self.objects, present, index)
            named.add_states(self._named_by_state, self.threads)
            roots = list(self._kept_roots())
            index.load(root.digest for root in roots)
            for root in roots:
                named.add((root.digest, *root.files))
                if not named.add_known(root.digest):
                    named.add(objects_of_root(root, self.objects))
            deleted, forms = self._named_in_trash(), self._encoded_forms()
            needed = [d for d in forms if d in named or self._is_young(forms[d])]
            named.add(self._bases_of(needed, forms))
            deleted |= self._bases_of(deleted, forms)
            self._of_deleted = {digest for digest in deleted if digest not in named}
            named.add(deleted)
        return named

    def _encoded_forms(self) -> dict[Digest, list[_Place]]:
        """The encoded forms of objects, in their places and in trash/."""
        found: dict[Digest, list[_Place]] = {}
        trashed = (item for item in self._trashed_objects() if self.is_encoded(item[0]))
        for place, digest in chain(self.all_encoded(), trashed):
            found.setdefault(digest, []).append(place)
        self._forms = found.keys()
        return found

    def _is_young(self, places: list[_Place]) -> bool:
        return any(map(self.is_fresh, places))

    def _bases_of(
        self, digests: Iterable[Digest], forms: Mapping[Digest, list[_Place]]
    ) -> set[Digest]:
        """What encoded objects are the difference to, and what that is, to the last."""
        found: set[Digest] = set()
        left = [digest for digest in digests if digest in forms]
        while left:
            for place in forms[left.pop()]:
                base = self._base(place)
                if base is not None and base not in found:
                    found.add(base)
                    left += [base] if base in forms else []
        return found

    def _base(self, place: _Place) -> Digest | None:
        """What an encoded form is the difference to; of one that says nothing readable, nothing.

        Such a one is damaged, and needs none.
        """
        version = (str(place), self.modified(place))
        if version not in self._bases:
            base = None
            with contextlib.suppress(FormatError, FileNotFoundError):
                base = Head.peek(self.read_head(place)).base
            self._bases[version] = base
        return self._bases[version]

    def _kept_roots(self) -> Iterator[Root]:
        """The fetched states that are kept, and not to be forgotten now."""
        for root in self.roots():
            if root.used > self.forgotten.get(root.digest, -1.0):
                yield root

    def _named_in_trash(self) -> set[Digest]:
        """The objects of states that were deleted a short while ago."""
        deleted: set[Digest] = set()
        for place, name in self.trash():
            if (match := layout.TRASHED_STATE.fullmatch(name)) and self.is_fresh(place):
                # It is deleted, and need not be whole; another pruning may have swept it.
                with contextlib.suppress(MlstateError, FileNotFoundError):
                    key = StateKey.parse(match[1])
                    deleted |= self._named_by(self.read(place), key, str(place))
        return deleted

    def _trashed_objects(self) -> Iterator[tuple[_Place, Digest]]:
        """Objects that an earlier pruning moved to trash/."""
        for place, name in self.trash():
            for named in (layout.TRASHED_OBJECT, layout.TRASHED_ENCODED):
                if match := named.fullmatch(name):
                    yield place, Digest(match[1])

    def _named_by_state(self, key: StateKey) -> set[Digest]:
        """The objects that a state names; none if it is deleted by now."""
        for wait in (*_WAITS, None):
            data = self.states.read(key)
            if data is None:
                break
            try:
                with concerning(key):
                    return self._named_by(data, key, self.states.locate(key))
            except ObjectNotFoundError:
                # It is being deleted, or its save is just about to write the object again; or it
                # was saved when this pruning had looked, which has moved the object.
                if wait is None:
                    raise
                if not self._brought_back(parse_state_file(data, key, "").pinned_digest):
                    time.sleep(wait)
        return set()

    def _brought_back(self, digest: Digest) -> bool:
        """Put the state object of a state that is there back from the trash."""
        objects: ObjectStore = self.objects
        if self.dry_run or not isinstance(objects, TrashingObjectStore):
            return False
        return objects.restore(digest)

    def _named_by(self, data: bytes, key: StateKey, origin: str) -> set[Digest]:
        """The objects that a state file names, and those that its state object names."""
        entry = parse_state_file(data, key, origin)
        digest = entry.pinned_digest
        if digest not in self._refs:
            named = {ref.digest for ref in read_state(entry, self.objects).refs.values()}
            self._refs[digest] = tuple(self._digests.setdefault(one, one) for one in named)
        return {digest, *self._refs[digest], *(file.digest for file in entry.files.values())}

    def _move_unnamed(self, live: Container[Digest]) -> Iterator[tuple[_Place, Digest]]:
        """Move old unnamed objects to trash/."""
        for place, digest in chain(self.all_objects(), self.all_encoded()):
            if digest in live and digest not in self._of_deleted:
                continue
            if digest in live or self.is_fresh(place):
                if digest not in live:
                    self._note_future(place)
                if (size := self.size(place)) is not None:
                    self.report.spared[digest] = self.report.spared.get(digest, 0) + size
                continue
            if (size := self.size(place)) is None:
                continue
            if self.dry_run:
                self._note_trashed(digest, size)
            elif (target := self.move(place, digest)) is not None:
                self._note_trashed(digest, size)
                yield target, digest

    def _note_trashed(self, digest: Digest, size: int) -> None:
        """Count an object that is moved to trash/, or its encoded form: it may have both."""
        self.report.trashed[digest] = self.report.trashed.get(digest, 0) + size

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


def objects_of_states(states: StateFiles, objects: ObjectStore) -> dict[StateKey, set[Digest]]:
    """The objects of saved states, as far as these can be read: a pruning says what cannot."""
    found: dict[StateKey, set[Digest]] = {}
    for key in list(states.keys()):
        named = found.setdefault(key, set())
        with contextlib.suppress(MlstateError, OSError):
            if (data := states.read(key)) is not None:
                entry = parse_state_file(data, key, states.locate(key))
                named |= {entry.pinned_digest, *(file.digest for file in entry.files.values())}
                named |= {ref.digest for ref in read_state(entry, objects).refs.values()}
    return found
