"""The states of one run of training in a store: their names, and which of them stay."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlstate.errors import FormatError, MlstateError, StateExistsError
from mlstate.phrases import OVERWRITE
from mlstate.states import StateKey, StateType
from mlstate.stores.save import SavingStore
from mlstate.warn import warn

__all__ = ["Point", "Run", "Saved", "Steps"]


@dataclass(frozen=True)
class Point:
    """A moment of a run.

    Attributes:
        name: What is added to the name of the run: ``e3`` after 3 epochs, ``s500`` after 500 steps.
        step: The number of steps until then.
        metrics: What was measured then.
    """

    name: str
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Saved:
    """A state of a run that is in the store."""

    key: StateKey
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """A run of training, whose states are ``<run>-e3``, ``<run>-s500`` and so on.

    The store alone knows which states a run has, so that a run that goes on in another process
    finds them. Of a run that goes on from an earlier step, states of later steps count no more:
    they stay until the run comes there, and are then replaced.

    Attributes:
        store: Where the states are.
        state_type: Their type.
        name: The name of the run.
        keep_last: How many of its states stay; None: all.
        metric: The metric whose best state stays, too, and has a second name, ``<run>-best``.
        greater: Whether more of it is better.
    """

    store: SavingStore
    state_type: StateType
    name: str
    keep_last: int | None = None
    metric: str | None = None
    greater: bool = False

    def __post_init__(self) -> None:
        if self.keep_last is not None:
            _check_number(self.keep_last)
        self.key("best")  # a name that is not possible is refused at once

    def key(self, point: str) -> StateKey:
        """The key of a state of this run."""
        return StateKey(self.state_type, f"{self.name}-{point}")

    def check_is_new(self, *, overwrite: bool) -> None:
        """Refuse to begin a run under the name of another.

        Raises:
            StateExistsError: The store has states of a run of this name.
        """
        there = self.saved()
        if there and not overwrite:
            raise StateExistsError(
                "the store has states of a run of this name; nothing was changed",
                key=there[-1].key,
                path=self.store,
                remedy="give this run another name, resume the other from its last checkpoint, or "
                + OVERWRITE,
            )

    def save(self, tensors: Mapping[str, Any], point: Point, files: Mapping[str, bytes]) -> None:
        """Save a state, name it the best if it is, and delete those that do not stay.

        Args:
            tensors: The model's.
            point: When it was.
            files: Files to keep with it.
        """
        key = self.key(point.name)
        meta = {**point.metrics, "run": self.name, "step": point.step}
        self.store.save_state_dict(tensors, key, files=files, meta=meta, overwrite=True)
        saved = [one for one in self.saved() if one.step <= point.step]
        best = self._best(saved)
        if best is not None:
            self._name_best(best, tensors if best.key == key else None)
        if self.keep_last is not None:
            for one in saved[: -self.keep_last]:
                if best is None or one.key != best.key:
                    self.store.delete(one.key)

    def _name_best(self, best: Saved, tensors: Mapping[str, Any] | None) -> None:
        """Give the best state its second name, which costs a small file: no tensor is there twice.

        It is looked at each time, for a run that goes on from an earlier step may have lost its
        best.
        """
        store, alias = self.store, self.key("best")
        if store.exists(alias) and (
            store.meta(alias).get("alias_of") == str(best.key)
            and store.digest(alias) == store.digest(best.key)
        ):
            return
        given = store.load_state_dict(best.key) if tensors is None else tensors
        meta = {**best.metrics, "alias_of": str(best.key)}
        files = dict(store.files(best.key))
        store.save_state_dict(given, alias, files=files, meta=meta, overwrite=True)

    def saved(self) -> list[Saved]:
        """The states of this run, the latest last."""
        own = re.compile(rf"{re.escape(self.name)}-[es]\d+")
        found = []
        for key in self.store.get_state_keys(self.state_type):
            if key.state_type == self.state_type and own.fullmatch(key.training_id):
                meta = self.store.meta(key)
                if meta.get("run") == self.name and isinstance(meta.get("step"), int):
                    found.append(Saved(key, meta["step"], meta))
        return sorted(found, key=lambda one: one.step)

    def _best(self, saved: list[Saved]) -> Saved | None:
        """The best of these states, of equals the first; of those that were measured."""
        if self.metric is None:
            return None
        values = ((one, one.metrics.get(self.metric)) for one in saved)
        known = [
            (value if self.greater else -value, one)
            for one, value in values
            if isinstance(value, int | float) and not math.isnan(value)
        ]
        return max(known, key=lambda item: item[0])[1] if known else None


@dataclass(frozen=True)
class Steps:
    """Checkpoints whose training ids end in a number, ``step-1000``, of which the last stay.

    Attributes:
        store: Where they are.
        keep_last: How many stay.
        grace_seconds: For how long the objects of those that were deleted stay.
    """

    store: SavingStore
    keep_last: int
    grace_seconds: float

    def __post_init__(self) -> None:
        _check_number(self.keep_last)

    def check(self, key: StateKey) -> None:
        """Refuse, by a FormatError, a key without a number at its end."""
        if _numbered(key) is None:
            raise FormatError(
                "keep_last needs training ids that end in a number, to know which is older",
                expected='for instance "step-1000"',
                found=repr(key.training_id),
            )

    def delete_older(self, key: StateKey) -> None:
        """Delete the checkpoints that are older than the last, this one included, and prune.

        Those of later steps, which a run had before it went back to an earlier one, stay and do not
        count. What cannot be deleted stays, with a warning: the checkpoint that was saved is whole.
        """
        try:
            older = sorted(self._older(key))
            gone = [other for _, other in older[: max(0, len(older) + 1 - self.keep_last)]]
            for other in gone:
                self.store.delete(other)
            prune = getattr(self.store, "prune", None)
            if gone and prune is not None:
                prune(grace_seconds=self.grace_seconds)
        except (MlstateError, OSError) as error:
            warn(f"{key} was saved; an older checkpoint may not have been deleted: {error}")

    def _older(self, key: StateKey) -> Iterator[tuple[int, StateKey]]:
        """The checkpoints of DCP before one, each with its number."""
        name, number = _numbered(key) or ("", 0)
        for other in self.store.get_state_keys(key.state_type):
            begin, step = _numbered(other) or ("", 0)
            is_older = other.state_type == key.state_type and begin == name and step < number
            if is_older and self.store.meta(other).get("format") == "dcp":
                yield step, other


def _numbered(key: StateKey) -> tuple[str, int] | None:
    """A training id without the number at its end, and that number; None without one."""
    match = re.fullmatch(r"(.*?)(\d+)", key.training_id)
    return (match[1], int(match[2])) if match else None


def _check_number(keep_last: int) -> None:
    if keep_last < 1:
        raise FormatError("keep_last is a number of states", expected="1 or more", found=keep_last)
