"""Putting right what was found damaged or missing in a folder: set aside, and fetched again."""

from __future__ import annotations

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
from mlstate.operations.verify.dependents import Need, Needing
from mlstate.operations.verify.inspect import Inspection, Problem
from mlstate.reading import Only
from mlstate.states import StateKey

__all__ = ["Mending"]


@dataclass
class _Wanted:
    """What is to be fetched of a state: its state object, tensors and files, each by digest."""

    state: Digest | None = None
    names: dict[str, Digest] = field(default_factory=dict)
    files: dict[str, Digest] = field(default_factory=dict)


class Mending:
    """Repairs a folder.

    Args:
        fetcher: Fetches into the folder.
        own: The folder.
        look: What was found.
        needing: Who needs what.
        entries: The states.
        is_cache: Whether what was fetched is noted in the folder, as caches do. In a store what
            is kept is for its owner to say.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        own: FolderObjectStore,
        look: Inspection,
        needing: Needing,
        entries: Sequence[StateEntry],
        *,
        is_cache: bool,
    ) -> None:
        self._fetcher = fetcher
        self._own = own
        self._look = look
        self._needing = needing
        self._entries = entries
        self._is_cache = is_cache
        self._mended: set[Digest] = set()
        self._tried: dict[Digest, list[object]] = {}
        self._failures: dict[Digest, str] = {}

    def mend(self, digests: Collection[Digest]) -> set[Digest]:
        """Repair objects, and nothing else.

        Returns:
            Those that are right now, or were of no use and are out of the way.
        """
        left = set(digests)
        needs = self._needing.of(left)
        wanted = _wanted(needs)
        for entry in self._entries:
            if left and entry.key in wanted:
                self._bring(entry, wanted[entry.key], left)
        for digest in list(left):
            if digest not in needs or self._is_right(digest):
                self._put_away(digest, left)
        mended = set(digests) - left
        self._mended |= mended
        return mended

    def is_mended(self, digest: Digest, problem: Problem) -> bool:
        """Whether a problem is one no more. What lies in a folder that is only read stays so."""
        return digest in self._mended and problem.place is self._own

    def what_was_done(self, digest: Digest, need: Need, problem: Problem) -> str:
        """How an object was repaired, for people."""
        if problem.kind == "missing":
            return "it was fetched"
        kept = self._kept(digest)
        if not kept:
            return "another process has replaced it"
        return f"it was fetched again; {kept}" if need else kept

    def why_not(self, digest: Digest) -> str | None:
        """Why an object could not be repaired, for people; None if nobody tried."""
        if digest not in self._failures:
            return None
        kept = self._kept(digest)
        more = f"; {kept}" if kept else ""
        return f"repair it when that is possible; now: {self._failures[digest]}{more}"

    def _kept(self, digest: Digest) -> str:
        trash = self._own.root / layout.TRASH
        found = sorted(map(str, trash.glob(f"{digest}{layout.DAMAGED_SUFFIX}.*")))
        return f"what was there is kept: {', '.join(found)}" if found else ""

    def _bring(self, entry: StateEntry, wanted: _Wanted, left: set[Digest]) -> None:
        """Bring what a state needs, if it has mirrors for that and they were not asked already."""
        everything = bool(entry.mirrors or entry.objects)
        names = {name: d for name, d in wanted.names.items() if d in left and everything}
        state = wanted.state if everything and wanted.state in left else None
        files = {
            name: entry.files[name]
            for name, d in wanted.files.items()
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
            if self._is_right(digest) and self._look.is_right(digest, self._own):
                left.discard(digest)

    def _put_away(self, digest: Digest, left: set[Digest]) -> None:
        """Set aside the folder's own copy, which nobody needs or another folder has right."""
        if self._own.size(digest) is not None and not self._look.is_right(digest, self._own):
            try:
                Cache([self._own]).set_aside(digest)
            except OSError as error:
                self._failures[digest] = str(error)
                return
        left.discard(digest)

    def _is_right(self, digest: Digest) -> bool:
        return self._look.is_right(digest, self._fetcher.cache)

    @contextmanager
    def _noted_as_before(self, entry: StateEntry) -> Iterator[None]:
        root = self._own.root / layout.ROOTS / entry.pinned_digest
        there = root.exists()
        try:
            yield
        finally:
            if not self._is_cache and not there:
                forget_root(self._own.root, entry.pinned_digest)


def _wanted(needs: Mapping[Digest, Need]) -> dict[StateKey, _Wanted]:
    """What is to be fetched of each state, from who needs each object."""
    wanted: dict[StateKey, _Wanted] = {}
    for digest, need in needs.items():
        for key in need.states:
            wanted.setdefault(key, _Wanted()).state = digest
        for (name, _), keys in need.refs.items():
            for key in keys:
                wanted.setdefault(key, _Wanted()).names[name] = digest
        for name, keys in need.files.items():
            for key in keys:
                wanted.setdefault(key, _Wanted()).files[name] = digest
    return wanted
