"""`verify`: every byte of the states of a store is read, and what is wrong is said or repaired."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from mlstate.digests import Digest
from mlstate.errors import IntegrityError, ManifestError, MlstateError
from mlstate.fetch import OnProgress
from mlstate.fetch.fetcher import has_mirrors
from mlstate.fetch.progress import Meter, listener
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore, ListedObjectStore, ObjectStore
from mlstate.objects.cache import Cache
from mlstate.objects.verified import REMEDY
from mlstate.operations.verify.inspect import Inspection, Problem
from mlstate.operations.verify.needed import Need, Needing
from mlstate.operations.verify.repair import Mending
from mlstate.operations.verify.report import (
    Finding,
    VerifyReport,
    other_weights,
    unreadable_state_file,
    wrong_size,
)
from mlstate.parallel import for_each
from mlstate.phrases import flag
from mlstate.reading import state_object_limit
from mlstate.states import StateKey, check_keys
from mlstate.stores.abstract import AnyStore
from mlstate.stores.arguments import not_found
from mlstate.stores.cache import make_fetcher
from mlstate.stores.custom import state_store
from mlstate.stores.read import StateStore

__all__ = ["Finding", "VerifyReport", "verify"]


def verify(
    store: AnyStore,
    keys: Iterable[StateKey] | None = None,
    *,
    repair: bool = False,
    progress: OnProgress | bool | None = None,
) -> VerifyReport:
    """Read and hash every object of states: state objects, tensors, files. Needs no torch.

    Each object is read once, however many states need it, in pieces, several objects at a time; and
    once more before it is called damaged. What a load would refuse is found. Without `repair`
    nothing is written, fetched or touched. Others may save, load, delete and prune meanwhile.

    - Of a store of one's own (`LocalStateStore`, `MemoryStateStore`, `S3StateStore`) the objects
      in the store itself are read: those of a bucket come over the network once, past the cache.
      What is missing is a finding.
    - Of a view over mirrors (`ManifestStore`, `GitHubReleaseStore`) what its cache has is read, in
      each folder of the cache. That something was not fetched yet is no finding: see `absent` and
      `partial` of the report.

    Without `keys` all other objects of the store, or of the folder that the cache writes to, are
    read too: a save may use one again later, and looks at its name and size only. If such an object
    is damaged, its finding names no state.

    Args:
        store: Where the states are.
        keys: Which ones; all by default.
        repair: Set aside what is damaged, keep it in trash/, and fetch it again from the mirrors
            that the store lists for the state; likewise what is missing in a store of one's own.
            Only these objects are fetched. Folders alone can be repaired, not buckets or memory;
            a damaged object that no state needs is just set aside.
        progress: Told how many bytes are read; True: a bar on the terminal.

    Returns:
        What was read, and what was found.

    Raises:
        StateNotFoundError: There is no such state.
        FormatError: `keys` is no list of keys, or this store is none of mlstate's.
        TransportError: A store on the network cannot be asked.

    Example:
        >>> import torch
        >>> from mlstate import MemoryStateStore
        >>> store = MemoryStateStore()
        >>> key = StateKey.parse("pytorch.linear.ones")
        >>> _ = store.save_state_dict({"weight": torch.ones(100, 100)}, key)
        >>> report = verify(store)
        >>> report.ok, len(report.states), report.objects
        (True, 1, 2)
    """
    view = state_store(store)
    meter = Meter("verify", listener(progress))
    try:
        return _Verification(view, keys, meter).run(repair=repair)
    finally:
        meter.end()


class _Verification:
    """One run.

    Args:
        store: The store.
        keys: The states; None: all, and what no state needs.
        meter: Counts what is read.
    """

    def __init__(self, store: StateStore, keys: Iterable[StateKey] | None, meter: Meter) -> None:
        self._store = store
        self._keys = None if keys is None else list(dict.fromkeys(check_keys(keys)))
        self._threads = store.threads
        self._fetcher = None if store.own is not None else store.fetcher
        self._places: tuple[ObjectStore, ...] = (store.objects if store.own is None else store.own,)
        if self._fetcher is not None:
            self._places = self._fetcher.cache.stores
        self._own = self._places[-1]
        self._entries: list[StateEntry] = []
        self._findings: list[Finding] = []
        self._unpinned: list[StateKey] = []
        self._unverifiable: list[StateKey] = []
        self._compared: list[StateKey] = []
        self._look = Inspection(self._places, self._threads, meter)
        self._needing = Needing(self._look, self._entries)
        self._mending: Mending | None = None
        self._problems: dict[Digest, list[Problem]] = {}

    @property
    def _is_view(self) -> bool:
        """Whether what is missing is only not fetched yet."""
        return self._fetcher is not None

    def run(self, *, repair: bool) -> VerifyReport:
        """Look, repair, report."""
        self._collect()
        if repair and isinstance(self._own, FolderObjectStore):
            self._mending = self._prepare_mending(self._own)
        limits: dict[Digest, int] = {}
        for entry in self._entries:
            digest = entry.pinned_digest
            limits[digest] = max(limits.get(digest, 0), state_object_limit(entry))
        self._look.read_states(limits)
        self._look_again(limits)
        if self._mending is not None:
            # What a state needs is known when its state object is right.
            self._note_problems()
            for digest in self._mending.mend(self._bad()):
                self._look.forget(digest)
                self._look.read_states({digest: limits[digest]})
        for entry in self._entries:
            for file in entry.files.values():
                self._look.want(file.digest)
        self._look.read_wanted()
        self._look_again(limits)
        if self._keys is None and isinstance(self._own, ListedObjectStore):
            self._look.read_others(self._own)
        self._note_problems()
        if self._mending is not None:
            self._mending.mend(self._bad())
        return self._report()

    def _collect(self) -> None:
        """Find out what the store says of each state."""
        keys = self._store.get_state_keys() if self._keys is None else self._keys

        def look(key: StateKey) -> None:
            try:
                entry = self._store.catalog.recorded(key)
            except (ManifestError, OSError) as error:
                if isinstance(error, MlstateError) and not isinstance(error, ManifestError):
                    raise  # the store as a whole cannot be asked
                self._findings.append(unreadable_state_file(key, error))
                return
            if entry is None:
                if self._store.catalog.compares and self._store.exists(key):
                    self._compare(key)
                elif self._store.exists(key):
                    self._unverifiable.append(key)
                elif self._keys is not None:
                    raise not_found(key, self._store, self._store.get_state_keys(key.state_type))
            elif entry.digest is None:
                self._unpinned.append(key)
            else:  # without what may be long and is not needed
                self._entries.append(replace(entry, meta={}, unknown={}))

        for_each(look, keys, 1 if self._is_view else self._threads)
        self._entries.sort(key=lambda entry: entry.key)

    def _compare(self, key: StateKey) -> None:
        """Load a state of a user's own store, which compares it with the digest that it gives."""
        try:
            self._store.get(key)
        except IntegrityError as error:
            self._findings.append(other_weights(key, error))
        else:
            self._compared.append(key)

    def _look_again(self, limits: Mapping[Digest, int]) -> None:
        """What is missing may be of a state that was deleted or replaced meanwhile, or be back."""
        missing = set(self._look.missing)
        if self._is_view or not missing:
            return
        needs = self._needing.of(missing)
        concerned = {key for need in needs.values() for key in need.state_keys()}
        self._entries[:] = [
            entry
            for entry in self._entries
            if entry.key not in concerned or self._is_current(entry)
        ]
        for digest in missing:
            self._look.forget(digest)
        self._look.read_states({d: limits[d] for d in missing if d in limits})
        self._look.read_wanted()
        self._look.missing &= self._needing.of(missing).keys()

    def _is_current(self, entry: StateEntry) -> bool:
        with suppress(ManifestError):
            now = self._store.catalog.recorded(entry.key)
            return now is not None and now.digest == entry.digest
        return False

    def _prepare_mending(self, own: FolderObjectStore) -> Mending:
        fetcher = self._fetcher
        if fetcher is None:
            fetcher = make_fetcher(Cache([own]), offline=None, progress=None)
        return Mending(
            fetcher, own, self._look, self._needing, self._entries, is_cache=self._is_view
        )

    def _note_problems(self) -> None:
        """Keep what was found, before it is repaired."""
        for digest, problems in self._look.problems.items():
            self._problems.setdefault(digest, list(problems))
        for digest in () if self._is_view else self._look.missing:
            path = self._own.locate(digest)
            missing = Problem(self._own, "missing", path, str(digest), "nothing")
            self._problems.setdefault(digest, [missing])

    def _bad(self) -> set[Digest]:
        """What is not right and may be mended: right bytes of a wrong meaning may not."""
        return {
            digest
            for digest, problems in self._problems.items()
            if any(problem.kind != "unreadable" for problem in problems)
        }

    # What is to be said.

    def _report(self) -> VerifyReport:
        absent, partial = self._needing.incomplete() if self._is_view else ([], [])
        without, entries = set(absent), [entry.key for entry in self._entries]
        needs = self._needing.of(self._problems)
        for digest, problems in self._problems.items():
            need = needs.get(digest, Need())
            self._findings += [self._finding(digest, need, problem) for problem in problems]
        for entry in self._entries:
            size = self._look.sizes.get(entry.pinned_digest)
            if size is not None and entry.size not in (None, size):
                self._findings.append(wrong_size(entry, size))
        return VerifyReport(
            tuple(sorted([*self._compared, *(key for key in entries if key not in without)])),
            self._look.objects,
            self._look.nbytes,
            tuple(sorted(self._findings, key=lambda f: (f.keys, f.what, f.path or ""))),
            tuple(absent),
            tuple(partial),
            tuple(sorted(self._unpinned)),
            tuple(sorted(self._unverifiable)),
        )

    def _finding(self, digest: Digest, need: Need, problem: Problem) -> Finding:
        mending = self._mending
        if mending is not None and mending.is_mended(digest, problem):
            repaired, remedy = True, mending.what_was_done(digest, need, problem)
        else:
            repaired, remedy = False, self._remedy(digest, need, problem)
        return Finding(
            need.state_keys(problem.spec),
            problem.kind,
            need.in_words(problem.spec),
            need.tensor_names(problem.spec),
            digest,
            problem.path,
            problem.expected,
            problem.found,
            repaired,
            remedy,
        )

    def _remedy(self, digest: Digest, need: Need, problem: Problem) -> str:
        if problem.kind == "unreadable":
            return "see that it can be read, or save the state again"
        if problem.place is not self._own:
            return "this folder is only read here: remove the object there, or replace it"
        if self._mending and (failure := self._mending.why_not(digest)):
            return failure
        if not need:
            return "remove it: no state needs it, and a save might use it"
        if isinstance(self._own, FolderObjectStore) and not self._mending:
            keys = set(need.state_keys())
            if any(entry.key in keys and has_mirrors(entry) for entry in self._entries):
                return "verify with " + flag("repair") + " fetches it again from its mirrors"
        if self._is_view:
            return "add mirrors to the manifest, or restore this object from a copy"
        return REMEDY
