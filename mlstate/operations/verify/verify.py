"""`verify`: every byte of the states of a store is read, and what is wrong is said or repaired."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from mlstate.digests import Digest
from mlstate.errors import FormatError, ManifestError, SignatureError
from mlstate.fetch import Fetcher, OnProgress
from mlstate.fetch.fetcher import has_mirrors
from mlstate.fetch.progress import Meter, listener
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore, ListedObjectStore
from mlstate.objects.cache import Cache, folders_of, last_use
from mlstate.objects.verified import REMEDY
from mlstate.operations.verify.collect import collect
from mlstate.operations.verify.dependents import Dependents, find_dependents, incomplete_states
from mlstate.operations.verify.inspect import Inspection, Problem
from mlstate.operations.verify.mirrors import verify_mirrors
from mlstate.operations.verify.repair import FolderRepair
from mlstate.operations.verify.report import (
    Finding,
    MirrorCheck,
    VerifyReport,
    in_order,
    wrong_size,
)
from mlstate.operations.verify.unchecked import Unchecked, all_without_digest
from mlstate.phrases import flag
from mlstate.reading import state_object_limit
from mlstate.states import StateKey
from mlstate.stores.abstract import AnyStore
from mlstate.stores.cache import make_fetcher
from mlstate.stores.custom import state_store
from mlstate.stores.read import StateStore

__all__ = ["Finding", "MirrorCheck", "VerifyReport", "verify"]


def verify(
    store: AnyStore,
    keys: Iterable[StateKey] | None = None,
    *,
    repair: bool = False,
    strict: bool | None = None,
    mirrors: bool = False,
    deep: bool = False,
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
      each folder of the cache. What was not fetched yet cannot be checked: see `absent` and
      `partial` of the report. Of a state in `keys` that is a finding, and `repair` fetches it.

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
        strict: Whether a state of which something was not checked is a finding: not here, without a
            digest, without a mirror. By default so where `keys` are given.
        mirrors: Ask the mirrors instead of the cache: does each have what each state needs, in the
            right size? Nothing is stored. Headers alone are asked for, and state objects.
        deep: With `mirrors`: read every byte of each.
        progress: Told how many bytes are read; True: a bar on the terminal.

    Returns:
        What was read, and what was found.

    Raises:
        StateNotFoundError: There is no such state.
        FormatError: `keys` is no list of keys, this store is none of mlstate's, or arguments
            contradict each other.
        TransportError: A store on the network cannot be asked.
        OfflineError: Mirrors are on the network, which may not be used.

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
    if repair and mirrors:
        raise FormatError("mirrors cannot be repaired from here", remedy="leave one of both out")
    if deep and not mirrors:
        raise FormatError(
            "what is here is always read whole",
            found=flag("deep"),
            remedy="ask the mirrors, by " + flag("mirrors") + ", or leave it out",
        )
    view = state_store(store)
    meter = Meter("verify", listener(progress))
    try:
        if mirrors:
            return verify_mirrors(view, keys, meter, strict=strict, deep=deep)
        return _Verification(view, keys, meter, strict=strict).run(repair=repair)
    finally:
        meter.end()


class _Verification:
    """One run of `verify`; without `keys` of all states, and of what no state needs."""

    def __init__(
        self,
        store: StateStore,
        keys: Iterable[StateKey] | None,
        meter: Meter,
        *,
        strict: bool | None,
    ) -> None:
        self._store = store
        self._strict = keys is not None if strict is None else strict
        fetcher = None if store.own is not None else store.fetcher
        own = store.objects if store.own is None else store.own
        places = (own,) if fetcher is None else fetcher.cache.stores
        self._fetcher = fetcher
        self._own = places[-1]
        self._is_view = fetcher is not None  # then what is missing is only not fetched yet
        self._collected = collect(store, keys, 1 if self._is_view else store.threads)
        self._entries = self._collected.entries
        self._findings = self._collected.findings
        self._inspection = Inspection(places, store.threads, meter, trash=not self._is_view)
        self._unchecked = Unchecked(self._inspection, self._own)
        self._repair: FolderRepair | None = None
        self._problems: dict[Digest, list[Problem]] = {}

    def run(self, *, repair: bool) -> VerifyReport:
        """Inspect, repair, report."""
        inspection = self._inspection
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
        if self._collected.keys is None and isinstance(self._own, ListedObjectStore):
            inspection.read_others(self._own)
        self._repair_problems()
        if self._strict and self._fetcher is not None:
            self._take_unchecked(limits, self._fetcher if repair else None)
        return self._report()

    def _take_unchecked(self, limits: Mapping[Digest, int], fetcher: Fetcher | None) -> None:
        """Note the states of which something is not here; with a fetcher bring it, and read it."""
        inspection = self._inspection
        absent, partial = self._incomplete()
        incomplete = {*absent, *partial}
        entries = [entry for entry in self._entries if entry.key in incomplete]
        self._unchecked.note(entries, absent=set(absent))
        if fetcher is None or not entries:
            return
        self._unchecked.fetch(entries, fetcher)
        missing = set(inspection.missing)
        for digest in missing:
            inspection.forget(digest)
        inspection.read_states({d: limits[d] for d in missing if d in limits})
        inspection.read_wanted()
        self._repair_problems()

    def _incomplete(self) -> tuple[list[StateKey], list[StateKey]]:
        folders = folders_of(self._fetcher.cache) if self._fetcher is not None else []

        def is_noted(digest: Digest) -> bool:
            return any(last_use(folder.root, digest) is not None for folder in folders)

        return incomplete_states(self._inspection, self._entries, is_noted)

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
            absent, partial = self._incomplete()
        if self._strict:
            self._findings += self._unchecked.findings({*absent, *partial})
            self._findings += all_without_digest(self._collected)
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
            tuple(sorted([*self._collected.compared, *present])),
            self._inspection.objects,
            self._inspection.nbytes,
            in_order(self._findings),
            tuple(absent),
            tuple(partial),
            tuple(entry.key for entry in self._collected.without_digest),
            tuple(self._collected.unverifiable),
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
