"""`report` makes a report on a store: to look at in a notebook, or to write as one HTML file."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace

from mlstate.errors import (
    IntegrityError,
    MlstateError,
    ObjectNotFoundError,
    UnsupportedStoreError,
)
from mlstate.fetch.progress import OnProgress, listener
from mlstate.operations.doctor.check import reason_of
from mlstate.operations.report.changes import Changes
from mlstate.operations.report.layers import HeldState, architecture_layers, changed_pairs
from mlstate.operations.report.lineage import Lineage, family_of
from mlstate.operations.report.page import Report
from mlstate.operations.report.values import Link
from mlstate.operations.usage import usage
from mlstate.operations.usage_report import StateUsage, Usage
from mlstate.operations.verify.report import Finding
from mlstate.phrases import in_shell
from mlstate.reading import read_state
from mlstate.shown import without_queries
from mlstate.states import StateKey, check_keys
from mlstate.stores.abstract import AnyStore
from mlstate.stores.custom import state_store
from mlstate.stores.read import StateStore

__all__ = ["report"]


def report(
    store: AnyStore,
    keys: Iterable[StateKey] | None = None,
    *,
    values: bool = True,
    findings: Iterable[Finding] | None = None,
    progress: OnProgress | bool | None = None,
) -> Report:
    """Look at a store: what takes the space, what each fine-tune changed, what came of what.

    In a notebook the result shows itself; `Report.write` makes one HTML file of it, which needs
    nothing else. Each state is compared with the older one that it shares most with. Tensors that
    differ are read for that, once: the numbers are kept beside the cache, by the digests of the two
    tensors. No tensor is fetched.

    Args:
        store: Any store of mlstate, or one of your own with `load_state_dict` or `digest`.
        keys: Tell of these states only. What they share and what they came of is found among all.
        values: Compare the values of tensors that differ. Without, only which differ is told;
            nothing but state objects is read then, and torch is not imported.
        findings: Those of a verification to show, `VerifyReport.findings` say.
        progress: Told how many bytes are compared; True: a bar on the terminal.

    Raises:
        StateNotFoundError: There is no such state.
        TransportError: The store cannot be reached.
        AccessError: A credential is missing, or does not allow this.

    Example:
        >>> import torch
        >>> from mlstate import MemoryStateStore
        >>> store = MemoryStateStore()
        >>> one, two = map(StateKey.parse, ("pytorch.linear.one", "pytorch.linear.two"))
        >>> _ = store.save_state_dict({"weight": torch.ones(3), "bias": torch.zeros(3)}, one)
        >>> _ = store.save_state_dict({"weight": torch.ones(3), "bias": torch.ones(3)}, two)
        >>> found = report(store)
        >>> [layer.name for layer in found.architectures[0].layers]
        ['bias', 'weight']
        >>> found.architectures[0].states[1].marks
        '~='
    """
    view = state_store(store)
    chosen = None if keys is None else set(check_keys(keys))
    for key in chosen or ():
        if not view.exists(key):
            raise view.catalog.absent(key, view)
    used = _usage(view, chosen)
    timed = _is_timed(view, used)
    held, links, damaged = _related(view, used.states, timed=timed)
    if damaged:
        states = (replace(s, error=damaged.get(s.key, s.error)) for s in used.states)
        used = replace(used, states=tuple(states))
    if chosen is not None:
        used = replace(used, states=tuple(s for s in used.states if s.key in chosen))
    wanted = [state for state in held if chosen is None or state.key in chosen]
    changes = Changes()
    if values:
        changes.compare(changed_pairs(held, wanted), listener(progress))
    layers = architecture_layers(held, wanted, changes, is_view=view.fetcher is not None)
    return Report(
        store=without_queries(in_shell(view)),
        made=time.time(),
        timed=timed,
        compared=values,
        usage=used,
        architectures=tuple(layers),
        links=tuple(link for link in links if chosen is None or link.newer in chosen),
        findings=None if findings is None else tuple(findings),
    )


def _usage(store: StateStore, keys: set[StateKey] | None) -> Usage:
    try:
        return usage(store)
    except UnsupportedStoreError:  # a store of one's own does not list all
        if keys is None:
            raise
        return usage(store, keys)


def _is_timed(store: StateStore, used: Usage) -> bool:
    """Whether the times of states are those when they were saved: a cache notes the last use."""
    is_cache = store.fetcher is not None and store.place is None
    return not is_cache and any(state.modified is not None for state in used.states)


def _related(
    store: StateStore, states: Iterable[StateUsage], *, timed: bool
) -> tuple[list[HeldState], list[Link], dict[StateKey, str]]:
    """The states whose state objects are here, the oldest first, and what they have of others.

    The last are the states whose state objects cannot be read, each with the reason: `usage` knows
    from its index what they said before they were damaged.
    """
    lineage, held, links = Lineage(), list[HeldState](), list[Link]()
    damaged: dict[StateKey, str] = {}
    for state in sorted(states, key=lambda s: (_age(s) if timed else 0.0, s.key)):
        try:
            found = _held(store, state)
        except IntegrityError as error:
            damaged[state.key] = reason_of(error)
            continue
        if found is None:
            continue
        oldest = lineage.oldest_of(family_of(found.key))
        inherited = lineage.add(found.key, found.sizes)
        links += [Link(held[older].key, found.key, nbytes) for older, nbytes in inherited]
        held.append(replace(found, base=inherited[0].older if inherited else oldest))
    return held, links, damaged


def _age(state: StateUsage) -> float:
    return math.inf if state.modified is None else state.modified


def _held(store: StateStore, state: StateUsage) -> HeldState | None:
    if state.digest is None or state.error is not None:
        return None
    try:
        found = store.find(state.key)
        if found is None or found.objects.size(found.entry.pinned_digest) is None:
            return None
        return HeldState(state.key, found, read_state(*found))
    except ObjectNotFoundError:  # removed since it was counted
        return None
    except IntegrityError:
        raise
    except (MlstateError, OSError):
        return None
