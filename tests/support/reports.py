"""Stores whose states are of known ages, and made-up reports of any size."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from mlstate import LocalStateStore, StateKey, StateType
from mlstate.format import layout
from mlstate.operations.report.page import Report
from mlstate.operations.report.values import (
    ArchitectureLayers,
    Layer,
    LayerChange,
    Link,
    StateLayers,
)
from mlstate.operations.usage_report import ArchitectureUsage, StateUsage, Usage

__all__ = ["HOSTILE", "hostile_store", "key", "large_report", "save"]

DAY = 86400.0
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><!-- \n\u202e\x1b[2J{{data}}"
"""A text that would run, hide or forge something, if it were not shown as text."""


def key(text: str) -> StateKey:
    return StateKey.parse(f"pytorch.{text}")


def save(
    store: LocalStateStore, name: str, tensors: Mapping[str, torch.Tensor], day: int, **more: Any
) -> StateKey:
    """Save a state as of a day."""
    saved = store.save_state_dict(dict(tensors), key(name), **more)
    path = store.folder / layout.state_path(saved)
    os.utime(path, (day * DAY, day * DAY))
    return saved


def hostile_store(store: LocalStateStore) -> None:
    """Save states whose names, notes and files hold what is hostile to a page."""
    torch.manual_seed(0)
    base = {HOSTILE: torch.randn(64, 64), "plain": torch.randn(64, 64), "small": torch.ones(2)}
    meta = {HOSTILE: HOSTILE, "list": [{"<b>": HOSTILE}]}
    save(store, "net.base", base, 1, meta=meta, files={"<i>.json": b"{}"})
    save(store, "net.tuned", {**base, HOSTILE: base[HOSTILE] * 2}, 2, meta={"<i>": "</script>"})
    long = f"{'a' * 60}.{'b' * 60}.{'c' * 64}"
    save(store, long, {"deep." * 40 + "weight": torch.randn(64, 64)}, 3)


def large_report(states: int, tensors: int) -> Report:
    """A made-up report of one architecture, each state with all tensors changed."""
    family = StateType("pytorch", "large")
    keys = [StateKey(family, f"run{number:04}") for number in range(states)]
    size = 4096
    used = tuple(StateUsage(k, None, size * tensors, size * tensors, 0) for k in keys)
    total = size * tensors * states
    changes = tuple(LayerChange(place, 1e-3, 1e-2, 10, 0) for place in range(tensors))
    first = StateLayers(keys[0], None, "+" * tensors)
    later = (StateLayers(k, keys[0], "~" * tensors, changes) for k in keys[1:])
    names = (f"layers.{place // 10}.part{place % 10}.weight" for place in range(tensors))
    layers = tuple(Layer(name, "F32", (32, 32), size) for name in names)
    return Report(
        store="large",
        made=0.0,
        timed=False,
        compared=True,
        usage=Usage(total, None, None, (ArchitectureUsage(family, states, total, total, 0),), used),
        architectures=(ArchitectureLayers(family, layers, (first, *later)),),
        links=tuple(Link(keys[0], k, size) for k in keys[1:]),
    )
