"""Tensors into a module whose entries are plain ones, without the detours of torch's own loading.

Torch's `load_state_dict` looks at every name several times, and is there for old versions, hooks
and lazy modules. Where there are none of these, and the names are exactly the model's, only the
copying or assigning is left to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["can_put", "put"]

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def can_put(given: Mapping[str, Any], own: Mapping[str, Any], *, assign: bool) -> bool:
    """Whether `put` does what the module's own load would do.

    Args:
        given: The tensors.
        own: The entries of a module that has no rules of its own.
        assign: Whether the module is to hold the tensors themselves.
    """
    return (
        given.keys() == own.keys()
        and not torch.__future__.get_swap_module_params_on_conversion()
        and all(_fits(given[name], entry, assign=assign) for name, entry in own.items())
    )


def _fits(given: Any, entry: Any, *, assign: bool) -> bool:
    return (
        type(entry) in _PLAIN
        and type(given) in _PLAIN
        and given.shape == entry.shape
        and (assign or (entry.device.type == "cpu" and entry.layout is torch.strided))
    )


def put(
    module: torch.nn.Module, given: Mapping[str, Any], own: Mapping[str, Any], *, assign: bool
) -> None:
    """Copy tensors into a module's entries, or make them its own.

    Args:
        module: The module.
        given: The tensors; those of parameters are parameters, if they are assigned.
        own: Its entries, under the same names.
        assign: Make it hold the tensors themselves.
    """
    if assign:
        holders = dict(module.named_modules(remove_duplicate=False))
        for name in own:
            path, _, last = name.rpartition(".")
            setattr(holders[path], last, given[name])
        return
    # In the model's order: of names that are one tensor the last wins.
    pairs = {(id(entry), id(given[name])): (entry, given[name]) for name, entry in own.items()}
    with torch.no_grad():
        torch._foreach_copy_(
            [entry for entry, _ in pairs.values()], [tensor for _, tensor in pairs.values()]
        )
