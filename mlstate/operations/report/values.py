"""The values that a report consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlstate.operations.reports import iso_time
from mlstate.operations.usage_report import Usage
from mlstate.operations.verify.report import Finding
from mlstate.states import StateKey, StateType

__all__ = ["ArchitectureLayers", "Layer", "LayerChange", "Link", "ReportData", "StateLayers"]


@dataclass(frozen=True)
class Layer:
    """A tensor that states of an architecture have, as the first of them has it.

    Attributes:
        name: Its name.
        dtype: Its element type, as safetensors names it: ``"F32"``.
        shape: Its shape.
        nbytes: The bytes of its data.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class LayerChange:
    """A tensor that differs from that of the state it is compared with.

    The numbers are those of `mlstate.operations.diff.Change`, of six digits. There are none where
    no values were compared: the shapes differ, the bytes are not on this machine or damaged, or
    values were left out.

    Attributes:
        layer: Its place in the list of layers.
        relative: The Euclidean norm of the change, over that of the tensor before; None also where
            that is 0 and the change is not.
        max_abs: The largest absolute change of an element.
        differing: How many elements have another value.
        nonfinite: How many of these are infinite or not a number.
    """

    layer: int
    relative: float | None = None
    max_abs: float | None = None
    differing: int | None = None
    nonfinite: int | None = None


@dataclass(frozen=True)
class StateLayers:
    """The tensors of a state, compared with those of the state that it is nearest to.

    Attributes:
        key: Its key.
        base: The state that it is compared with: of all that are older the one with which it shares
            most bytes; the oldest of its architecture, if it shares none; None of a first state.
        marks: A character for each layer: ``=`` the same bytes as in the base, under whatever name,
            ``~`` changed, ``+`` not in the base, ``.`` not in this state.
        changes: The layers with ``~``, in order.
        removed: The names that the base has, and this state has not.
        unread: The names of tensors that differ and whose bytes are damaged or missing, in this
            state or in the base.
        files: The names of its files.
        meta: The notes that were saved with it.
    """

    key: StateKey
    base: StateKey | None
    marks: str
    changes: tuple[LayerChange, ...] = ()
    removed: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ArchitectureLayers:
    """The layers of an architecture against its states.

    Attributes:
        state_type: Backend and architecture.
        layers: The tensors, in the order of their names, numbers within these as numbers.
        states: The states, the oldest first.
    """

    state_type: StateType
    layers: tuple[Layer, ...]
    states: tuple[StateLayers, ...]


@dataclass(frozen=True)
class Link:
    """What a state has of an older one: tensors with the same bytes.

    Attributes:
        older: The older state.
        newer: The newer one.
        nbytes: The bytes of tensor data; each counts for one link of the newer state.
    """

    older: StateKey
    newer: StateKey
    nbytes: int


@dataclass(frozen=True)
class ReportData:
    """A store to look at.

    Attributes:
        store: The store, for people.
        made: When the report was made. In Python these are seconds since the epoch.
        timed: Whether the times of states are those when they were saved; else they are ordered by
            their keys.
        compared: Whether values were compared.
        usage: The space: all architectures, and the states that were asked for.
        architectures: The layers of each architecture.
        links: What states have of older ones.
        findings: What a verification found; None if none was given.
    """

    store: str
    made: float = field(metadata={"json": iso_time})
    timed: bool
    compared: bool
    usage: Usage
    architectures: tuple[ArchitectureLayers, ...] = ()
    links: tuple[Link, ...] = ()
    findings: tuple[Finding, ...] | None = None
