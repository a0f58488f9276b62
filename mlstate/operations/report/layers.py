"""The layers of an architecture against its states: what each has changed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from mlstate.digests import Digest
from mlstate.format.state_object import StateObject
from mlstate.operations.diff import content_of
from mlstate.operations.report.changes import Changes, HeldTensor
from mlstate.operations.report.lineage import family_of
from mlstate.operations.report.values import ArchitectureLayers, Layer, LayerChange, StateLayers
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import Found

__all__ = ["HeldState", "architecture_layers", "changed_pairs"]


@dataclass(frozen=True)
class HeldState:
    """A state whose state object is here, and the place of the older state it is compared with."""

    key: StateKey
    found: Found
    state: StateObject
    base: int | None = None

    def tensor(self, name: str) -> HeldTensor | None:
        """A tensor by its name, or None."""
        tensor = self.state.inline.get(name) or self.state.refs.get(name)
        return None if tensor is None else HeldTensor(tensor, self.found.objects)

    @property
    def sizes(self) -> Mapping[Digest, int]:
        """The bytes of tensor data in each of its tensor objects."""
        return {ref.digest: ref.spec.nbytes for ref in self.state.refs.values()}


def changed_pairs(
    states: list[HeldState], wanted: Iterable[HeldState]
) -> Iterator[tuple[HeldTensor, HeldTensor]]:
    """The tensors that differ from those of the same name in the state's base, with these."""
    for held in wanted:
        if held.base is not None:
            yield from (pair for _, pair in _changed(held, states[held.base]))


def _changed(
    held: HeldState, base: HeldState
) -> Iterator[tuple[str, tuple[HeldTensor, HeldTensor]]]:
    for name in held.state.specs:
        before, now = base.tensor(name), held.tensor(name)
        if before is not None and now is not None and before.content != now.content:
            yield name, (before, now)


def architecture_layers(
    states: list[HeldState], wanted: list[HeldState], changes: Changes, *, is_view: bool
) -> Iterator[ArchitectureLayers]:
    """The layers of each architecture against the wanted of its states.

    Args:
        states: All states, the oldest first.
        wanted: Those to tell of, in the same order.
        changes: The numbers of what changed.
        is_view: Whether bytes that are missing here are elsewhere.
    """
    families: dict[StateType, list[HeldState]] = {}
    for held in wanted:
        families.setdefault(family_of(held.key), []).append(held)
    for family, members in sorted(families.items()):
        layers: dict[str, Layer] = {}
        for held in members:
            for name, spec in held.state.specs.items():
                if name not in layers:
                    layers[name] = Layer(name, spec.dtype, spec.shape, spec.nbytes)
        ordered = sorted(layers, key=_natural)
        places = {name: place for place, name in enumerate(ordered)}
        yield ArchitectureLayers(
            family,
            tuple(layers[name] for name in ordered),
            tuple(_state_layers(held, states, places, changes, is_view) for held in members),
        )


def _natural(name: str) -> tuple[object, ...]:
    """A name as a key to sort by, in which numbers count as such: layer.2 before layer.10."""
    return tuple(
        (0, int(part), "") if part.isdecimal() and len(part) < 20 else (1, 0, part)
        for part in re.split(r"([0-9]+)", name)
    )


def _state_layers(
    held: HeldState,
    states: list[HeldState],
    places: Mapping[str, int],
    changes: Changes,
    is_view: bool,
) -> StateLayers:
    entry = held.found.entry
    base = None if held.base is None else states[held.base]
    pairs = {} if base is None else dict(_changed(held, base))
    marks = ["."] * len(places)
    for name, mark in _marks(held, base, pairs):
        marks[places[name]] = mark
    absent = () if base is None else base.state.specs.keys() - held.state.specs.keys()
    unread = (name for name, pair in pairs.items() if changes.is_unread(pair) and not is_view)
    return StateLayers(
        held.key,
        None if base is None else base.key,
        "".join(marks),
        tuple(_change(place, changes, pairs[n]) for n, place in places.items() if n in pairs),
        tuple(sorted(absent, key=_natural)),
        tuple(sorted(unread, key=_natural)),
        tuple(sorted(entry.files)),
        entry.meta,
    )


def _marks(
    held: HeldState, base: HeldState | None, changed: Mapping[str, object]
) -> Iterator[tuple[str, str]]:
    """The mark of each tensor; a moved one has the bytes of one in the base by another name."""
    contents = set() if base is None else {_moved(base, name) for name in base.state.specs}
    names = set() if base is None else set(base.state.specs)
    for name in held.state.specs:
        if name in changed:
            yield name, "~"
        elif name in names or _moved(held, name) in contents:
            yield name, "="
        else:
            yield name, "+"


def _moved(held: HeldState, name: str) -> tuple[object, ...]:
    """What a tensor keeps under another name; of a small one the last part of the name, too.

    Small tensors are often equal by chance.
    """
    if ref := held.state.refs.get(name):
        return (ref.digest,)
    return (name.rpartition(".")[2], *content_of(held.state.inline[name]))


def _change(place: int, changes: Changes, pair: tuple[HeldTensor, HeldTensor]) -> LayerChange:
    found = changes.numbers(pair)
    if found is None:
        return LayerChange(place)
    return LayerChange(
        place, _six(found.relative), _six(found.max_abs), found.differing, found.nonfinite
    )


def _six(value: float | None) -> float | None:
    """A number of six digits; None for what is none."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
