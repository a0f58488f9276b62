"""Tensors that become a model's own, so that what was one tensor in the model is one again."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

__all__ = ["UNINITIALIZED", "assignable", "overlapping", "tied_groups"]

UNINITIALIZED = (UninitializedParameter, UninitializedBuffer)
"""Entries of lazy modules: they have no shape yet, and take any."""


def assignable(
    given: Mapping[str, torch.Tensor], own: Mapping[str, Any], groups: list[list[str]]
) -> tuple[dict[str, Any], set[str]]:
    """The tensors as the model is to hold them: its dtype, its device, its parameters, its ties.

    Args:
        given: The tensors.
        own: The model's entries.
        groups: What `tied_groups` says of them.

    Returns:
        What to give to torch, and the names among it that the state itself lacks: they are tied to
        one that it has.
    """
    ready: dict[str, Any] = {}
    lacking: set[str] = set()
    taken: set[int] = set()
    for name in given.keys() - own.keys():  # hooks of the model may know these
        ready[name] = given[name].clone() if id(given[name]) in taken else given[name]
        taken.add(id(given[name]))
    for group in groups:
        having = [name for name in group if name in given]
        if not having:
            continue
        # Of different values for names that are one in the model the last wins, as in a copy.
        source = given[having[-1]]
        loaded = _in_place_of(source, own[having[-1]])
        if loaded is source and id(source) in taken:
            loaded = source.clone()  # equal to another, but not tied to it in the model
        taken.add(id(source))
        parameters: dict[int, torch.nn.Parameter] = {}
        for name in group:
            target = own[name]
            if isinstance(target, torch.nn.Parameter):
                ready[name] = parameters.setdefault(
                    id(target), torch.nn.Parameter(loaded, requires_grad=target.requires_grad)
                )
            else:
                ready[name] = loaded
        lacking.update(name for name in group if name not in given)
    return ready, lacking


def _in_place_of(loaded: torch.Tensor, target: Any) -> torch.Tensor:
    if not isinstance(target, torch.Tensor):  # an extra state, which takes what it is given
        return loaded
    device = loaded.device if target.is_meta else target.device
    if (loaded.dtype, loaded.device) == (target.dtype, device):
        return loaded
    return loaded.to(device=device, dtype=target.dtype)


def overlapping(own: Mapping[str, Any], groups: list[list[str]]) -> list[str]:
    """Names of a model whose memory overlaps without being the same: a buffer and a part of it.

    Args:
        own: The model's entries.
        groups: What `tied_groups` says of them.
    """
    spans = []
    for group in groups:
        entry = own[group[0]]
        if _has_place(entry):
            start = entry.data_ptr()
            spans.append((_device(entry), start, start + _extent(entry), group[0]))
    spans.sort()
    pairs = itertools.pairwise(spans)
    return sorted({n for a, b in pairs if a[0] == b[0] and b[1] < a[2] for n in (a[3], b[3])})


def _device(entry: torch.Tensor) -> str:
    return "cpu" if entry.is_cpu else str(entry.device)


def _extent(entry: torch.Tensor) -> int:
    """From the first byte of a tensor to behind its last one."""
    if entry.is_contiguous():
        return entry.nbytes
    steps = zip(entry.shape, entry.stride(), strict=True)
    return (sum((size - 1) * step for size, step in steps) + 1) * entry.element_size()


def _has_place(entry: Any) -> bool:
    return (
        isinstance(entry, torch.Tensor)
        and not isinstance(entry, UNINITIALIZED)
        and entry.layout is torch.strided
        and entry.numel() > 0
        and entry.data_ptr() != 0
    )


def tied_groups(own: Mapping[str, Any]) -> list[list[str]]:
    """Names of a model, those that are one tensor or one memory together."""
    starts: dict[Any, list[str]] = {}
    for name, entry in own.items():
        starts.setdefault(_start(entry), []).append(name)
    if len(starts) == len(own):  # most models: nothing begins where something else does
        return list(starts.values())
    groups: dict[Any, list[str]] = {}
    for name, entry in own.items():
        groups.setdefault(_place(name, entry), []).append(name)
    return list(groups.values())


def _start(entry: Any) -> Any:
    """Equal for entries that are one tensor or one memory, and for few others."""
    return entry.data_ptr() if _has_place(entry) else (id(entry),)


def _place(name: str, entry: Any) -> Any:
    """Equal for entries that are one tensor or one memory, and for no others."""
    if _has_place(entry):
        return (entry.device, entry.data_ptr(), entry.shape, entry.stride(), entry.dtype)
    return id(entry) if isinstance(entry, torch.Tensor) else name
