"""Repair of a folder: damaged objects are set aside, and fetched again with the missing ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from mlstate.digests import Digest
from mlstate.errors import MlstateError
from mlstate.fetch import Fetcher
from mlstate.format import layout
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import Cache, forget_root
from mlstate.operations.verify.dependents import Dependents, find_dependents
from mlstate.operations.verify.inspect import Inspection, Problem
from mlstate.reading import Only
from mlstate.states import StateKey

__all__ = ["FolderRepair"]


@dataclass
class _Parts:
    """The parts of a state that are to be fetched, each with its digest."""

    state: Digest | None = None
    names: dict[str, Digest] = field(default_factory=dict)
    files: dict[str, Digest] = field(default_factory=dict)


class FolderRepair:
    """Repairs the objects of a folder, from the mirrors of the states that need them.

    What was fetched into a cache is noted there. In a store (``is_cache=False``) it is not: what
    is kept there is for its owner to say.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        folder: FolderObjectStore,
        inspection: Inspection,
        entries: Sequence[StateEntry],
        *,
        is_cache: bool,
    ) -> None:
        self._fetcher = fetcher
        self._folder = folder
        self._inspection = inspection
        self._entries = entries
        self._is_cache = is_cache
        self._repaired: set[Digest] = set()
        self._put_back: set[Digest] = set()
        self._tried: dict[Digest, list[object]] = {}
        self._failures: dict[Digest, str] = {}

    def repair(self, digests: Collection[Digest]) -> set[Digest]:
        """Repair these objects; return those that are right now, or unneeded and set aside."""
        left = {digest for digest in digests if not self._back_from_trash(digest)}
        dependents = find_dependents(self._inspection, self._entries, left)
        parts = _parts_by_state(dependents)
        for entry in self._entries:
            if left and entry.key in parts:
                self._fetch_parts(entry, parts[entry.key], left)
        for digest in list(left):
            if digest not in dependents or self._is_right(digest):
                self._set_aside(digest, left)
        repaired = set(digests) - left
        self._repaired |= repaired
        return repaired

    def is_repaired(self, digest: Digest, problem: Problem) -> bool:
        """Whether a problem is solved; one in a folder that is only read never is."""
        return digest in self._repaired and problem.place is self._folder

    def what_was_done(self, digest: Digest, problem: Problem, *, needed: bool) -> str:
        """How an object was repaired, for people."""
        kept = self._kept(digest)
        if digest in self._put_back:
            return f"the plain object was put back from the trash; {kept}"
        if problem.kind == "missing":
            return "it was fetched"
        own = (self._folder.path(digest), self._folder.encoded_path(digest))
        if not kept and problem.path not in map(str, own):
            return "what it is built on was repaired"
        if not kept:
            return "another process has replaced it"
        return f"it was fetched again; {kept}" if needed else kept

    def why_not(self, digest: Digest) -> str | None:
        """Why an object could not be repaired, for people; None if nobody tried."""
        if digest not in self._failures:
            return None
        kept = self._kept(digest)
        more = f"; {kept}" if kept else ""
        return f"repair it when that is possible; now: {self._failures[digest]}{more}"

    def _kept(self, digest: Digest) -> str:
        trash = self._folder.root / layout.TRASH
        found = sorted(map(str, trash.glob(f"{digest}{layout.DAMAGED_SUFFIX}.*")))
        return f"what was there is kept: {', '.join(found)}" if found else ""

    def _fetch_parts(self, entry: StateEntry, parts: _Parts, left: set[Digest]) -> None:
        """Fetch parts of a state, if it has mirrors for them that were not asked already."""
        has_mirrors = bool(entry.mirrors or entry.objects)
        names = {name: d for name, d in parts.names.items() if d in left and has_mirrors}
        state = parts.state if has_mirrors and parts.state in left else None
        files = {
            name: entry.files[name]
            for name, d in parts.files.items()
            if d in left and (entry.files[name].mirrors or entry.objects)
        }
        concerned = {*names.values(), *(file.digest for file in files.values())}
        concerned |= set() if state is None else {state}
        places = (entry.mirrors, entry.objects, files)
        if all(places in self._tried.get(digest, ()) for digest in concerned):
            return
        asked = replace(entry, files=files)
        tensors = list(names) or (Only.FILES if state is None else Only.STATE_OBJECT)
        try:
            with self._noted_as_before(entry):
                self._fetcher.repair(asked, tensors, files=bool(files))
                self._fetcher.fetch(asked, tensors, files=bool(files))
        except (MlstateError, OSError) as error:
            said = error.message if isinstance(error, MlstateError) else str(error)
            self._failures.update(dict.fromkeys(concerned, said))
        for digest in concerned:
            self._tried.setdefault(digest, []).append(places)
            if self._is_right(digest) and self._inspection.is_right(digest, self._folder):
                left.discard(digest)

    def _back_from_trash(self, digest: Digest) -> bool:
        """Put a plain object back that was given up for an encoded form, which is damaged."""
        folder = self._folder
        is_encoded = folder.encoded_size(digest) is not None and folder.plain_size(digest) is None
        if not is_encoded or not folder.in_trash(digest) or self._is_right(digest):
            return False
        try:
            Cache([folder]).set_aside(digest)
            if not folder.restore(digest):
                return False
        except OSError as error:
            self._failures[digest] = str(error)
            return False
        if not self._inspection.is_right(digest, folder):
            return False
        self._put_back.add(digest)
        return True

    def _set_aside(self, digest: Digest, left: set[Digest]) -> None:
        """Set aside the folder's own copy, which nobody needs or another folder has right."""
        is_there = self._folder.size(digest) is not None
        if is_there and not self._inspection.is_right(digest, self._folder):
            try:
                Cache([self._folder]).set_aside(digest)
            except OSError as error:
                self._failures[digest] = str(error)
                return
        left.discard(digest)

    def _is_right(self, digest: Digest) -> bool:
        return self._inspection.is_right(digest, self._fetcher.cache)

    @contextmanager
    def _noted_as_before(self, entry: StateEntry) -> Iterator[None]:
        root = self._folder.root / layout.ROOTS / entry.pinned_digest
        was_noted = root.exists()
        try:
            yield
        finally:
            if not self._is_cache and not was_noted:
                forget_root(self._folder.root, entry.pinned_digest)


def _parts_by_state(dependents: Mapping[Digest, Dependents]) -> Mapping[StateKey, _Parts]:
    parts: defaultdict[StateKey, _Parts] = defaultdict(_Parts)
    for digest, found in dependents.items():
        for key in found.states:
            parts[key].state = digest
        for (name, _), keys in found.refs.items():
            for key in keys:
                parts[key].names[name] = digest
        for name, keys in found.files.items():
            for key in keys:
                parts[key].files[name] = digest
    return parts
