"""Assigning: the tensors of a state as a model is to hold them, tied where it had them tied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mlstate.tensors.fit import Fit

__all__ = ["assignable", "tie_again"]


def assignable(
    given: Mapping[str, torch.Tensor], own: Mapping[str, Any], groups: list[list[str]]
) -> tuple[dict[str, Any], set[str]]:
    """The tensors as the model is to hold them: its dtype, its device, its parameters, its ties.

    ``groups`` is from `tied_groups`. Returns what to give to torch, and the names that the state
    lacks and that are tied to one it has.
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
    """Whether an entry is a parameter."""
    # The type alone says no of plain tensors, for which torch's isinstance takes long.
    return type(entry) is not torch.Tensor and isinstance(entry, torch.nn.Parameter)


def _own_copy(source: torch.Tensor, target: Any, taken: set[int]) -> torch.Tensor:
    """A tensor as it takes the place of an entry of the model.

    One whose id is in ``taken`` has a place already, and is copied: it is equal to another name's,
    but not tied to it in the model. Its id is added.
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


def tie_again(fit: Fit, left: set[str]) -> None:
    """Make names one tensor that the model had tied, and that its own rules were given one by one.

    ``left`` are names that got nothing.
    """
    modules = dict(fit.modules)
    for group in fit.ties:
        places = [(name, modules.get(name.rpartition(".")[0])) for name in group]
        loaded = [
            (name, getattr(module, name.rpartition(".")[2]))
            for name, module in places
            if module is not None and name not in left
        ]
        if not loaded:
            continue
        last, tensor = loaded[-1]
        for name, module in places:
            same = fit.own[name] is fit.own[last]
            if module is not None and name != last:
                value = tensor if same else tensor.detach()
                if not same and _is_parameter(fit.own[name]):
                    value = torch.nn.Parameter(value, fit.own[name].requires_grad)
                setattr(module, name.rpartition(".")[2], value)
