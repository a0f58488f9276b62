"""`adopt_all`: all weights below a folder, each as a state of its own."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlstate.errors import FormatError, MlstateError, WeightsNotFoundError
from mlstate.fetch.progress import OnProgress, listener
from mlstate.locations import local_path
from mlstate.operations.adopt import adopt
from mlstate.operations.found_weights import FoundWeights, find_weights, key_template
from mlstate.operations.tables import Table, Tabular, size_cell
from mlstate.parallel import for_each
from mlstate.phrases import Phrase
from mlstate.states import StateKey
from mlstate.stores.abstract import AnyStore
from mlstate.stores.cache import PathLike

__all__ = ["AdoptAllReport", "AdoptedState", "adopt_all"]

_SHOWN = 5


@dataclass(frozen=True)
class AdoptedState:
    """Weights that were found, and what became of them.

    Attributes:
        source: The path of the file or folder, from the folder that was searched.
        key: The key that the template gives; it need not be a valid one if that failed.
        result: ``"stored"``, ``"existed"`` (the same state was there), ``"failed"``, or
            ``"planned"`` of a dry run.
        digest: Its state digest; None if it was not stored.
        size: The bytes of its tensors, every name counted; None if it was not stored.
        added: As of `AdoptReport`.
        spared: As of `AdoptReport`.
        error: What went wrong, or None.
    """

    source: str
    key: str
    result: Literal["stored", "existed", "failed", "planned"]
    digest: str | None = None
    size: int | None = None
    added: int = 0
    spared: int = 0
    error: str | None = None


@dataclass(frozen=True)
class AdoptAllReport(Tabular):
    """What `adopt_all` did.

    Attributes:
        states: All weights that were found, sorted by path.
        added: The bytes of tensors that the target did not have.
        spared: Those that it had.
        failures: The errors of those that failed, by path.
    """

    states: tuple[AdoptedState, ...]
    added: int
    spared: int
    failures: tuple[tuple[str, MlstateError | OSError], ...] = field(default=(), repr=False)

    def _table(self) -> Table:
        rows = [
            (one.source, one.key, one.result, "" if one.size is None else size_cell(one.size))
            for one in self.states
        ]
        summary = f"{size_cell(self.added)} new, {size_cell(self.spared)} shared"
        return Table(("SOURCE", "KEY", "RESULT", ">SIZE"), rows, summary)


def adopt_all(
    folder: str | os.PathLike[str],
    target: AnyStore | PathLike,
    key: str,
    *,
    match: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    dry_run: bool = False,
    jobs: int = 1,
    progress: OnProgress | bool | None = None,
    **options: Any,
) -> AdoptAllReport:
    """Take in all weights below a folder: each file, or folder that is one model, as a state.

    A folder is one model if its only file of weights has a usual name (`model.safetensors`), if it
    holds shards, or is a pipeline; its config and tokenizer are kept. Hidden folders, stores, and
    what a training keeps beside its weights (`optimizer.pt`) are passed over.

    Weights that cannot be adopted do not keep the others from it.

    Args:
        folder: The folder.
        target: As for `adopt`.
        key: The key of each, as a template: ``"pytorch.bert.{parent}.{stem}"``. ``{parent}`` is the
            folder that the file is in, ``{stem}`` its name without endings, ``{folders}`` all
            folders below the one that is searched, with dots between. What no key may have
            becomes ``-``.
        match: Patterns of the paths or names of what is taken; by default all.
        skip: Patterns of what is left out.
        dry_run: Change nothing, and report what would be done.
        jobs: How many are adopted at once.
        progress: As for `adopt`.
        options: As for `adopt`: ``meta``, ``select``, ``strip_prefix``, ``overwrite`` and others.

    Returns:
        What became of each.

    Raises:
        FormatError: Two of them would have the same key, or the template is none; nothing was
            stored.
        WeightsNotFoundError: There is no such folder, or no weights are in it.

    Example:
        >>> import tempfile, torch
        >>> from mlstate import MemoryStateStore
        >>> runs = tempfile.mkdtemp()
        >>> torch.save({"weight": torch.ones(2)}, runs + "/first.pt")
        >>> report = adopt_all(runs, MemoryStateStore(), "pytorch.linear.{stem}")
        >>> [(state.source, state.key, state.result) for state in report.states]
        [('first.pt', 'pytorch.linear.first', 'stored')]
    """
    keyed = key_template(key)
    top = Path(os.path.abspath(local_path(folder)))
    if not top.is_dir():
        raise WeightsNotFoundError("there is no such folder", path=top)
    found = find_weights(top, match=_texts(match), skip=_texts(skip))
    if not found:
        raise WeightsNotFoundError(
            "no weights were found in this folder",
            path=top,
            expected="safetensors files or torch checkpoints" + (" that match" * bool(match)),
        )
    keys = [keyed(each, top) for each in found]
    _refuse_same(found, keys)
    work = list(zip(range(len(found)), found, keys, strict=True))
    done: list[AdoptedState | None] = [None] * len(found)
    failures: dict[int, MlstateError | OSError] = {}
    if dry_run:
        states = tuple(_planned(each, text, failures, number) for number, each, text in work)
        return _report(states, failures)
    options |= {"progress": listener(progress)}

    def take(item: tuple[int, FoundWeights, str]) -> None:
        number, each, text = item
        try:
            state_key = StateKey.parse(text)
            report = adopt(each.source, state_key, target, weights=each.weights, **options)
        except (MlstateError, OSError) as error:
            failures[number] = error
            done[number] = _failed(each, text, error)
            return
        done[number] = AdoptedState(
            each.name,
            text,
            "existed" if report.existed else "stored",
            report.digest,
            report.size,
            report.added,
            report.spared,
        )

    for_each(take, work, max(1, jobs))
    return _report(tuple(state for state in done if state is not None), failures)


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _planned(
    each: FoundWeights, text: str, failures: dict[int, MlstateError | OSError], number: int
) -> AdoptedState:
    try:
        StateKey.parse(text)
    except FormatError as error:
        failures[number] = error
        return _failed(each, text, error)
    return AdoptedState(each.name, text, "planned")


def _failed(each: FoundWeights, text: str, error: MlstateError | OSError) -> AdoptedState:
    said = error.message if isinstance(error, MlstateError) else str(error)
    return AdoptedState(each.name, text, "failed", error=said)


def _report(
    states: tuple[AdoptedState, ...], failures: dict[int, MlstateError | OSError]
) -> AdoptAllReport:
    return AdoptAllReport(
        states,
        sum(state.added for state in states),
        sum(state.spared for state in states),
        tuple((states[number].source, failures[number]) for number in sorted(failures)),
    )


def _refuse_same(found: Sequence[FoundWeights], keys: Sequence[str]) -> None:
    """Refuse two sources with one key, or with keys that differ in case only."""
    named: dict[str, list[str]] = defaultdict(list)
    for each, key in zip(found, keys, strict=True):
        named[key.lower()].append(f"{each.weights or each.name} ({key})")
    same = [names for names in named.values() if len(names) > 1]
    if same:
        shown = "; ".join(" and ".join(names[:_SHOWN]) for names in same[:_SHOWN])
        raise FormatError(
            "several of these weights would have the same key; nothing was stored",
            expected="a key of its own for each",
            found=shown,
            remedy="name more of their paths in the template ({folders}, {parent}, {stem}), or "
            + Phrase("leave some out by skip=", "leave some out with --skip"),
        )
