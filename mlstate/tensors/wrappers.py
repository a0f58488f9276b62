"""Wrappers that add nothing to a model but a word before its names: the model inside of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from mlstate.models import TensorModel
from mlstate.tensors.encode import any_sharded
from mlstate.tensors.fit import entries
from mlstate.tensors.memory import may_be_sharded
from mlstate.warn import warn

__all__ = ["has_shards", "inner_model", "saved_entries", "unwrapped"]

_COMPILED = "_orig_mod"


def unwrapped(model: TensorModel) -> TensorModel:
    """The model inside of wrappers such as DataParallel and torch.compile, for a save.

    Of names that are stored with a wrapper's word all the same a warning tells.
    """
    while (found := _inside(model)) is not None:
        model = found[1]
    if isinstance(model, AveragedModel):
        warn(
            "the names of this AveragedModel are stored as they are, with module. before them and "
            "with its count: they load into such a wrapper alone; to store the averaged model, "
            "save model.module"
        )
    elif isinstance(model, torch.nn.Module):
        parts = [name for name, module in model.named_modules() if name and _inside(module)]
        if parts:
            word = _inside(model.get_submodule(parts[0]))
            warn(
                f"parts of this model are wrapped, {parts[0]} for one: their names are stored with "
                f"{word[0] if word else ''}. in them, and load into such a model alone"
            )
    return model


def has_shards(model: TensorModel) -> bool:
    """Whether a model has DTensors, of which each rank of a job holds a part."""
    # By its state dict: FSDP2 may hold whole tensors until that is asked for.
    return may_be_sharded() and any_sharded(entries(model))


def saved_entries(model: TensorModel) -> Mapping[str, Any]:
    """The entries of a model as they are saved; names that are one tensor give the same object.

    Not so those of a model with a ``state_dict`` of its own, which gives what it likes.
    """
    inside = unwrapped(model)
    own_rules = type(inside).state_dict is not torch.nn.Module.state_dict
    return inside.state_dict() if own_rules else entries(inside)


def inner_model(model: TensorModel, names: Iterable[str]) -> TensorModel:
    """The model that takes a state: inside of wrappers, unless its names have their words, too."""
    listed = list(names)
    while (found := _inside(model)) is not None:
        word, inside = found
        if any(name.startswith(f"{word}.") for name in listed):
            break
        model = inside
    return model


def _inside(model: object) -> tuple[str, TensorModel] | None:
    """The word that a wrapper puts before all names, and the model in it; None of anything else."""
    if isinstance(model, DataParallel | DistributedDataParallel):
        return "module", model.module
    # Its module is imported when something is compiled, and takes long.
    compiling: Any = sys.modules.get("torch._dynamo.eval_frame")
    if compiling is not None and isinstance(model, compiling.OptimizedModule):
        inside: Any = model
        return _COMPILED, inside._orig_mod
    return None
