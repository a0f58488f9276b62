"""`compact`: tensors as the difference to near ones, lossless, and plain again by `undo`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from mlstate.digests import Digest
from mlstate.errors import ArgumentError, MlstateError, ReadOnlyStoreError
from mlstate.fetch import OnProgress
from mlstate.fetch.progress import Meter, listener
from mlstate.format import layout
from mlstate.format.encoded_object import DEPTH_LIMIT
from mlstate.format.tensor_object import object_size
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import one_at_a_time
from mlstate.objects.chains import Chains
from mlstate.objects.durable import make_folders
from mlstate.objects.encoded_indexes import is_said, write_index
from mlstate.objects.interface import EncodingObjectStore, ListedObjectStore
from mlstate.operations.compact.candidates import ReadStates, groups_of, read_states
from mlstate.operations.compact.plan import Known, Plan, plan_chains, plan_stars
from mlstate.operations.compact.report import CompactReport, Tally, UnreadObject
from mlstate.operations.compact.run import Run
from mlstate.operations.compact.samples import Distances
from mlstate.operations.compact.undo import Undoing, refs_in_trash
from mlstate.phrases import flag
from mlstate.states import StateKey, check_keys
from mlstate.stores.abstract import AnyStore
from mlstate.stores.custom import state_store
from mlstate.stores.read import StateStore

__all__ = ["CompactReport", "compact"]


def compact(
    store: AnyStore,
    keys: Iterable[StateKey] | None = None,
    *,
    chain: bool = False,
    alone: bool = False,
    undo: bool = False,
    dry_run: bool = False,
    progress: OnProgress | bool | None = None,
) -> CompactReport:
    """Keep tensors as the difference to near ones, in fewer bytes; every digest stays as it is.

    A tensor is near to another of the same type and shape, of a state of the same backend and
    architecture, if a sample says so; names only say where to look first. The base stays plain.
    What saves less than a tenth stays plain, too. Tensors of bfloat16 that are near to none are
    encoded alone.

    Each encoded object is read back, decoded and held against its digest before the plain one goes
    to trash/, where it takes room until prunings delete it. States load as before, if somewhat
    slower. Others may save, load, delete and prune meanwhile. What was stopped, at whatever moment,
    goes on where it was if it is run again.

    Args:
        store: A `LocalStateStore`, `S3StateStore` or `MemoryStateStore`.
        keys: Whose tensors; by default those of all states. Bases are looked for in all.
        chain: These are checkpoints of one run: the newest stays plain, and each older one becomes
            the difference to the next newer one, at most 8 deep. They are in the order of ``keys``,
            the oldest first, or by default in that in which they were saved. What is built on
            another already, or another on it, stays as it is: later checkpoints make a chain of
            their own beside the one of an earlier call. To join them ``undo`` first.
        alone: Encode tensors of every type alone that are near to none, not of bfloat16 only.
        undo: The other way: plain objects come back, verified, and their encoded forms go. Once no
            object is in encoded form only, older readers read the store again: see ``left``.
        dry_run: Change nothing, and report what would be done; sizes are estimates then.
        progress: Told how many bytes are done; True: a bar on the terminal.

    Returns:
        What was done.

    Raises:
        StateNotFoundError: There is no such state.
        ReadOnlyStoreError: This store has no objects of its own.
        ArgumentError: Arguments contradict each other.
        LimitError: The disk has no room for what would be written beside the plain objects. What
            was done before stays done.
        TransportError: A bucket cannot be asked.

    Example:
        >>> import torch
        >>> from mlstate import MemoryStateStore
        >>> store = MemoryStateStore()
        >>> base, tuned = map(StateKey.parse, ("pytorch.net.base", "pytorch.net.tuned"))
        >>> weight = torch.linspace(-1, 1, 20_000).bfloat16()
        >>> _ = store.save_state_dict({"weight": weight}, base)
        >>> _ = store.save_state_dict({"weight": weight * 1.01}, tuned)
        >>> report = compact(store)
        >>> report.objects, report.saved > 0
        (1, True)
        >>> bool((store.load_state_dict(tuned)["weight"] == weight * 1.01).all())
        True
    """
    if undo and (chain or alone):
        raise ArgumentError(
            "what is undone is not chosen by how it is encoded",
            found=flag("undo") + " with " + flag("chain" if chain else "alone"),
            remedy="leave one of both out",
        )
    view = state_store(store)
    objects = _own_objects(view)
    chosen = None if keys is None else list(dict.fromkeys(check_keys(keys)))
    meter = Meter("compact", listener(progress))
    try:
        with nullcontext() if dry_run else _alone_here(objects):
            read = read_states(view, objects, chosen)
            if undo:
                return _undo(view, objects, read, chosen, meter, dry_run=dry_run)
            order = None if not chain else _order(read, chosen)
            return _compact(view, objects, read, meter, order, alone=alone, dry_run=dry_run)
    finally:
        meter.end()


def _own_objects(view: StateStore) -> EncodingObjectStore:
    own = view.own
    if not isinstance(own, EncodingObjectStore):
        raise ReadOnlyStoreError(
            "objects of this store cannot be encoded",
            path=view,
            expected="a folder or a bucket of states",
            remedy="compact the store that has its objects",
        )
    return own


_LOCK = Digest.of(b"compact")


def _alone_here(objects: EncodingObjectStore) -> AbstractContextManager[object]:
    """Let one process after the other compact a folder; two at once would do work twice."""
    if not isinstance(objects, FolderObjectStore):
        return nullcontext()
    folder = objects.root / layout.TEMPORARIES
    if not objects.root.exists():
        return nullcontext()
    make_folders(objects.root, folder)
    return one_at_a_time(folder / f"{_LOCK}{layout.LOCK_SUFFIX}")


def _order(read: ReadStates, chosen: Sequence[StateKey] | None) -> list[int]:
    """The places of the checkpoints, the oldest first."""
    if chosen is None:
        return list(range(len(read.keys)))
    places = {key: place for place, key in enumerate(read.keys)}
    return [places[key] for key in chosen if key in places]


def _compact(
    view: StateStore,
    objects: EncodingObjectStore,
    read: ReadStates,
    meter: Meter,
    order: Sequence[int] | None,
    *,
    alone: bool,
    dry_run: bool,
) -> CompactReport:
    chains = Chains(objects, view.threads)
    chains.look()
    assert isinstance(objects, ListedObjectStore)
    known = Known(chains, set(objects.digests()), Distances(objects).distance)
    if order is None:
        plan = plan_stars(groups_of(read), known, alone=alone)
    else:
        plan = plan_chains(read, order, known)
    meter.expect(sum(object_size(step.ref.spec) for step in plan.steps))
    run = Run(objects, chains, view.threads, meter)
    if dry_run:
        run.estimate(plan.steps)
    else:
        try:
            run.encode(plan.steps)
        except (OSError, MlstateError):
            with suppress(OSError, MlstateError):  # the disk is full, say; the next run does it
                _write_indexes(objects, read, chains, run.sizes, view.threads)
            raise
        _write_indexes(objects, read, chains, run.sizes, view.threads)
    return _report(read, plan, run, dry_run=dry_run)


def _report(read: ReadStates, plan: Plan, run: Run, *, dry_run: bool) -> CompactReport:
    tally = Tally()
    first = {digest: state for digest, (_, state) in plan.looked_at.items()}
    owners = _owners(read)
    done = [step for step in plan.steps if step.ref.digest in run.sizes]
    for step in done:
        before, after = object_size(step.ref.spec), run.sizes[step.ref.digest]
        base = None if step.base is None else owners.get(step.base.digest)
        tally.add(step.state, before, after, base)
    return CompactReport(
        tally.by_state(read.keys),
        len(done),
        sum(object_size(step.ref.spec) for step in done),
        sum(run.sizes[step.ref.digest] for step in done),
        len(plan.looked_at),
        run.trash,
        _unread(read, run.unread, first),
        estimated=dry_run,
    )


def _undo(
    view: StateStore,
    objects: EncodingObjectStore,
    read: ReadStates,
    chosen: Sequence[StateKey] | None,
    meter: Meter,
    *,
    dry_run: bool,
) -> CompactReport:
    encoded = set(objects.encoded_digests())
    refs = {digest: ref for digest, ref in read.refs().items() if digest in encoded}
    if chosen is None:
        deleted = refs_in_trash(view, objects)
        refs |= {ref.digest: ref for ref in deleted if ref.digest in encoded}
    owners = _owners(read)
    meter.expect(sum(object_size(ref.spec) for ref in refs.values()))
    undoing = Undoing(objects, view.threads, meter)
    left = 0
    if dry_run:
        undoing.sizes = {digest: objects.encoded_size(digest) or 0 for digest in refs}
    else:
        undoing.undo(refs)
        left = undoing.release()
        chains = Chains(objects, view.threads)
        chains.look()
        _write_indexes(objects, read, chains, undoing.sizes, view.threads)
    tally = Tally()
    for digest, size in undoing.sizes.items():
        if digest in owners:
            tally.add(owners[digest], size, object_size(refs[digest].spec), None)
    before = sum(undoing.sizes.values())
    return CompactReport(
        tally.by_state(read.keys),
        len(undoing.sizes),
        before,
        sum(object_size(refs[digest].spec) for digest in undoing.sizes),
        len(refs),
        0 if dry_run else before,
        _unread(read, undoing.unread, owners),
        undone=True,
        estimated=dry_run,
        left=left,
    )


def _owners(read: ReadStates) -> dict[Digest, int]:
    """The oldest state that has each object."""
    owners: dict[Digest, int] = {}
    for place, state in enumerate(read.states):
        for ref in state.refs.values():
            owners.setdefault(ref.digest, place)
    return owners


def _unread(
    read: ReadStates, objects: Mapping[Digest, MlstateError], owners: Mapping[Digest, int]
) -> tuple[UnreadObject, ...]:
    states = [
        UnreadObject(key, None, error.message)
        for key, error in sorted(read.unreadable.items())
        if key in read.chosen
    ]
    tensors = [
        UnreadObject(read.keys[owners[digest]], digest, error.message)
        for digest, error in sorted(objects.items())
        if digest in owners
    ]
    return (*states, *tensors)


def _write_indexes(
    objects: EncodingObjectStore,
    read: ReadStates,
    chains: Chains,
    changed: Mapping[Digest, int],
    threads: int,
) -> None:
    """Say beside each state what its encoded objects cost on the wire, if that is not said.

    So it is of a state whose objects changed, now or in a run that was killed before it said it.
    """

    def is_touched(digest: Digest | None) -> bool:
        """Whether an object changed, or what it is built on."""
        for _ in range(DEPTH_LIMIT + 1):
            if digest is None or digest in changed:
                return digest is not None
            head = chains.head(digest)
            digest = None if head is None else head.base
        return False

    for digest, state in zip(read.digests, read.states, strict=True):
        refs = {ref.digest for ref in state.refs.values()}
        only = [d for d in refs if chains.head(d) and objects.plain_size(d) is None]
        if any(map(is_touched, refs)) or (only and not is_said(objects, digest, only)):
            write_index(objects, digest, state, threads)
