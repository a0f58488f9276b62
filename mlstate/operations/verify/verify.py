"""`verify`: every byte of the states of a store is read, and what is wrong is said or repaired."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from mlstate.digests import Digest
from mlstate.errors import (
    AccessError,
    IntegrityError,
    ManifestError,
    MlstateError,
    SignatureError,
)
from mlstate.fetch import OnProgress
from mlstate.fetch.fetcher import has_mirrors
from mlstate.fetch.progress import Meter, listener
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore, ListedObjectStore
from mlstate.objects.cache import Cache
from mlstate.objects.verified import REMEDY
from mlstate.operations.verify.dependents import Dependents, find_dependents, incomplete_states
from mlstate.operations.verify.inspect import Inspection, Problem
from mlstate.operations.verify.repair import FolderRepair
from mlstate.operations.verify.report import (
    Finding,
    VerifyReport,
    other_weights,
    unreadable_folder,
    unreadable_state_file,
    unsigned_state,
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
    """One run of `verify`; without `keys` of all states, and of what no state needs."""

    def __init__(self, store: StateStore, keys: Iterable[StateKey] | None, meter: Meter) -> None:
        self._store = store
        self._keys = None if keys is None else list(dict.fromkeys(check_keys(keys)))
        fetcher = None if store.own is not None else store.fetcher
        own = store.objects if store.own is None else store.own
        places = (own,) if fetcher is None else fetcher.cache.stores
        self._fetcher = fetcher
        self._own = places[-1]
        self._is_view = fetcher is not None  # then what is missing is only not fetched yet
        self._entries: list[StateEntry] = []
        self._findings: list[Finding] = []
        self._unpinned: list[StateKey] = []
        self._unverifiable: list[StateKey] = []
        self._compared: list[StateKey] = []
        self._inspection = Inspection(places, store.threads, meter)
        self._repair: FolderRepair | None = None
        self._problems: dict[Digest, list[Problem]] = {}

    def run(self, *, repair: bool) -> VerifyReport:
        """Inspect, repair, report."""
        inspection = self._inspection
        self._collect()
        if repair and isinstance(self._own, FolderObjectStore):
            self._repair = self._prepare_repair(self._own)
        limits: dict[Digest, int] = {}
        for entry in self._entries:
            digest = entry.pinned_digest
            limits[digest] = max(limits.get(digest, 0), state_object_limit(entry))
        inspection.read_states(limits)
        self._look_again(limits)
        # Which tensors a state needs is known only when its state object is right.
        for digest in self._repair_problems() if self._repair is not None else ():
            inspection.forget(digest)
            inspection.read_states({digest: limits[digest]})
        for entry in self._entries:
            for file in entry.files.values():
                inspection.want(file.digest)
        inspection.read_wanted()
        self._look_again(limits)
        if self._keys is None and isinstance(self._own, ListedObjectStore):
            inspection.read_others(self._own)
        self._repair_problems()
        return self._report()

    def _collect(self) -> None:
        """Look up the entry of each state."""
        keys = self._all_keys() if self._keys is None else self._keys

        def look_up(key: StateKey) -> None:
            try:
                entry = self._store.catalog.recorded(key)
            except SignatureError as error:
                self._findings.append(unsigned_state(key, error))
                return
            except (ManifestError, OSError) as error:
                if isinstance(error, MlstateError) and not isinstance(error, ManifestError):
                    raise  # the store as a whole cannot be asked
                self._findings.append(unreadable_state_file(key, error))
                return
            if entry is None:
                self._take_unrecorded(key)
            elif entry.digest is None:
                self._unpinned.append(key)
            else:  # without what may be long and is not needed
                self._entries.append(replace(entry, meta={}, unknown={}))

        for_each(look_up, keys, 1 if self._is_view else self._store.threads)
        self._entries.sort(key=lambda entry: entry.key)

    def _all_keys(self) -> list[StateKey]:
        """The keys of all states; a folder of them that may not be read is a finding."""
        try:
            return self._store.get_state_keys()
        except AccessError as error:
            if self._store.folder is None:
                raise  # a server's: none of it can be asked
            self._findings.append(unreadable_folder(error))
            return sorted(listing.key for listing in self._store.listing())

    def _take_unrecorded(self, key: StateKey) -> None:
        """A checkpoint without a digest; or a user's own state, compared as it is loaded."""
        if not self._store.exists(key):
            if self._keys is not None:
                raise not_found(key, self._store, self._store.get_state_keys(key.state_type))
        elif self._store.catalog.requires_signature:
            try:
                self._store.get(key)
            except SignatureError as error:
                self._findings.append(unsigned_state(key, error))
        elif not self._store.catalog.compares:
            self._unverifiable.append(key)
        else:
            try:
                self._store.get(key)
            except IntegrityError as error:
                self._findings.append(other_weights(key, error))
            else:
                self._compared.append(key)

    def _look_again(self, limits: Mapping[Digest, int]) -> None:
        """Look again for what is missing: its state may be deleted or replaced, or it is back."""
        inspection, missing = self._inspection, set(self._inspection.missing)
        if self._is_view or not missing:
            return
        dependents = self._dependents(missing)
        concerned = {key for found in dependents.values() for key in found.state_keys()}
        self._entries[:] = [
            entry
            for entry in self._entries
            if entry.key not in concerned or self._is_current(entry)
        ]
        for digest in missing:
            inspection.forget(digest)
        inspection.read_states({d: limits[d] for d in missing if d in limits})
        inspection.read_wanted()
        inspection.missing &= self._dependents(missing).keys()

    def _is_current(self, entry: StateEntry) -> bool:
        with suppress(ManifestError, SignatureError):
            now = self._store.catalog.recorded(entry.key)
            return now is not None and now.digest == entry.digest
        return False

    def _dependents(self, digests: Collection[Digest]) -> dict[Digest, Dependents]:
        return find_dependents(self._inspection, self._entries, digests)

    def _prepare_repair(self, folder: FolderObjectStore) -> FolderRepair:
        fetcher = self._fetcher or make_fetcher(Cache([folder]), offline=None, progress=None)
        return FolderRepair(
            fetcher, folder, self._inspection, self._entries, is_cache=self._is_view
        )

    def _repair_problems(self) -> set[Digest]:
        """Note what was found so far, and repair it if that was asked for; return what is right."""
        for digest, problems in self._inspection.problems.items():
            self._problems.setdefault(digest, list(problems))
        for digest in () if self._is_view else self._inspection.missing:
            path = self._own.locate(digest)
            missing = Problem(self._own, "missing", path, str(digest), "nothing")
            self._problems.setdefault(digest, [missing])
        if self._repair is None:
            return set()
        # Right bytes of a wrong meaning are not repaired.
        kinds = {d: {problem.kind for problem in found} for d, found in self._problems.items()}
        return self._repair.repair({d for d, found in kinds.items() if found != {"unreadable"}})

    def _report(self) -> VerifyReport:
        absent: list[StateKey] = []
        partial: list[StateKey] = []
        if self._is_view:
            absent, partial = incomplete_states(self._inspection, self._entries)
        without = set(absent)
        present = [entry.key for entry in self._entries if entry.key not in without]
        dependents = self._dependents(self._problems)
        for digest, problems in self._problems.items():
            found = dependents.get(digest, Dependents())
            self._findings += [self._finding(digest, found, problem) for problem in problems]
        for entry in self._entries:
            size = self._inspection.sizes.get(entry.pinned_digest)
            if size is not None and entry.size not in (None, size):
                self._findings.append(wrong_size(entry, size))
        return VerifyReport(
            tuple(sorted([*self._compared, *present])),
            self._inspection.objects,
            self._inspection.nbytes,
            tuple(sorted(self._findings, key=lambda f: (f.keys, f.what, f.path or ""))),
            tuple(absent),
            tuple(partial),
            tuple(sorted(self._unpinned)),
            tuple(sorted(self._unverifiable)),
        )

    def _finding(self, digest: Digest, dependents: Dependents, problem: Problem) -> Finding:
        repair = self._repair
        repaired = repair is not None and repair.is_repaired(digest, problem)
        if repair is not None and repaired:
            remedy = repair.what_was_done(digest, problem, needed=bool(dependents))
        else:
            remedy = self._remedy(digest, dependents, problem)
        return Finding(
            dependents.state_keys(problem.spec),
            problem.kind,
            dependents.in_words(problem.spec),
            dependents.tensor_names(problem.spec),
            digest,
            problem.path,
            problem.expected,
            problem.found,
            repaired,
            remedy,
        )

    def _remedy(self, digest: Digest, dependents: Dependents, problem: Problem) -> str:
        if problem.kind == "unreadable":
            return "see that it can be read, or save the state again"
        if problem.place is not self._own:
            return "this folder is only read here: remove the object there, or replace it"
        if self._repair and (failure := self._repair.why_not(digest)):
            return failure
        if not dependents:
            return "remove it: no state needs it, and a save might use it"
        if isinstance(self._own, FolderObjectStore) and not self._repair:
            keys = set(dependents.state_keys())
            if any(entry.key in keys and has_mirrors(entry) for entry in self._entries):
                return "verify with " + flag("repair") + " fetches it again from its mirrors"
        if self._is_view:
            return "add mirrors to the manifest, or restore this object from a copy"
        return REMEDY
