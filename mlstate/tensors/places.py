"""Which tensors of a state are wanted on an accelerator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from mlstate.format.dtypes import TensorSpec
from mlstate.models import TensorModel
from mlstate.tensors.fit import entries
from mlstate.tensors.gpu import stages

__all__ = ["Places", "places_of", "places_on"]

Places = Mapping[str, torch.device]
"""The tensors that are wanted on another device than the CPU, and where."""

_SHARE = 0.8
"""How much of the room on a device is counted on: it may be in pieces."""


def places_of(model: TensorModel, specs: Mapping[str, TensorSpec]) -> Places:
    """Where the entries of a model are that a state has values for, if that is an accelerator.

    What is sent there is not the model's own memory, which stays as it is until all is verified.
    So it takes as much again; where there is no room for that, nothing is placed, and the values
    come by way of the CPU.

    Args:
        model: The model.
        specs: Every name of the state with its type and shape.
    """
    begun: Any = torch.cuda.is_initialized  # has no types; without it nothing is on a GPU
    if not isinstance(model, torch.nn.Module) or not begun():
        return {}
    wanted: dict[torch.device, list[str]] = {}
    for name, entry in entries(model).items():
        if name in specs and isinstance(entry, torch.Tensor) and stages(entry.device):
            wanted.setdefault(entry.device, []).append(name)
    return {
        name: device
        for device, names in wanted.items()
        if sum(specs[name].nbytes for name in names) < _SHARE * _room(device)
        for name in names
    }


def places_on(device: Any, names: Iterable[str]) -> Places:
    """All on one device, if it is an accelerator.

    Args:
        device: A ``torch.device`` or what names one.
        names: The tensors.
    """
    try:
        place = torch.device(device)
    except (TypeError, RuntimeError):  # something else that Tensor.to takes, or refuses
        return {}
    if not stages(place):
        return {}
    if place.index is None:
        place = torch.device(place.type, torch.cuda.current_device())
    return dict.fromkeys(names, place)


def _room(device: torch.device) -> int:
    """The bytes that can be had on a device: nobody's, and those that torch keeps for later."""
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept
