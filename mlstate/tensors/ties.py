"""Tensors that become a model's own, so that what was one tensor in the model is one again."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

__all__ = ["UNINITIALIZED", "assignable", "overlapping", "stand_apart", "tied_groups"]

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
    tied = {name for group in groups for name in group}
    for group in groups:
        having = [name for name in group if name in given]
        if not having:
            continue
        # Of different values for names that are one in the model the last wins, as in a copy.
        loaded = _own_copy(given[having[-1]], own[having[-1]], taken)
        parameters: dict[int, torch.nn.Parameter] = {}
        for name in group:
            target = own[name]
            if not _is_parameter(target):
                ready[name] = loaded
            elif id(target) in parameters:
                ready[name] = parameters[id(target)]
            else:
                parameters[id(target)] = ready[name] = torch.nn.Parameter(
                    loaded, requires_grad=target.requires_grad
                )
        lacking.update(name for name in group if name not in given)
    for name, target in own.items():
        if name in given and name not in tied:
            loaded = _own_copy(given[name], target, taken)
            if _is_parameter(target):
                loaded = torch.nn.Parameter(loaded, requires_grad=target.requires_grad)
            ready[name] = loaded
    return ready, lacking


def _is_parameter(entry: Any) -> bool:
    # The type alone says no of plain tensors, for which torch's isinstance takes long.
    return type(entry) is not torch.Tensor and isinstance(entry, torch.nn.Parameter)


def _own_copy(source: torch.Tensor, target: Any, taken: set[int]) -> torch.Tensor:
    """A tensor as it takes the place of another.

    One that has a place already is copied: it is equal to another name's, but not tied to it in the
    model.

    Args:
        source: The tensor.
        target: The entry of the model.
        taken: The ids of the tensors that have a place. Added to.
    """
    loaded = _in_place_of(source, target)
    if loaded is source and id(source) in taken:
        loaded = source.clone()
    taken.add(id(source))
    return loaded


def _in_place_of(loaded: torch.Tensor, target: Any) -> torch.Tensor:
    if not isinstance(target, torch.Tensor):  # an extra state, which takes what it is given
        return loaded
    if loaded.dtype is target.dtype and loaded.is_cpu and (target.is_cpu or target.is_meta):
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
    again = {name for group in groups for name in group[1:]}
    spans = sorted(
        (_device(entry), *_span(entry), name)
        for name, entry in own.items()
        if name not in again and _has_place(entry)
    )
    pairs = itertools.pairwise(spans)
    return sorted({n for a, b in pairs if a[0] == b[0] and b[1] < a[2] for n in (a[3], b[3])})


def stand_apart(own: Mapping[str, Any]) -> bool:
    """Whether no two entries are one, or share memory. So it is in most models.

    Devices are not told apart: what seems to overlap is looked at again.
    """
    if len(set(map(id, own.values()))) < len(own):
        return False
    spans = sorted(_span(entry) for entry in own.values() if _has_place(entry))
    return all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def _span(entry: torch.Tensor) -> tuple[int, int]:
    """From the first byte of a tensor to behind its last one."""
    start = entry.data_ptr()
    return start, start + _extent(entry)


def _device(entry: torch.Tensor) -> str:
    return "cpu" if entry.is_cpu else str(entry.device)


def _extent(entry: torch.Tensor) -> int:
    """The bytes from a tensor's first one to its last one."""
    if entry.is_contiguous():
        return entry.nbytes
    steps = zip(entry.shape, entry.stride(), strict=True)
    return (sum((size - 1) * step for size, step in steps) + 1) * entry.element_size()


def _has_place(entry: Any) -> bool:
    return (
        isinstance(entry, torch.Tensor)
        and not is_lazy(entry)
        and entry.layout is torch.strided
        and entry.numel() > 0
        and entry.data_ptr() != 0
    )


def tied_groups(own: Mapping[str, Any]) -> list[list[str]]:
    """Names of a model that are one tensor or one memory, together; all others are left out."""
    groups: dict[Any, list[str]] = {}
    for name, entry in own.items():
        groups.setdefault(_place(name, entry), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _place(name: str, entry: Any) -> Any:
    """Equal for entries that are one tensor or one memory, and for no others."""
    if _has_place(entry):
        return (entry.device, entry.data_ptr(), entry.shape, entry.stride(), entry.dtype)
    return id(entry) if isinstance(entry, torch.Tensor) else name
