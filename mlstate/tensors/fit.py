"""The fit of a state and a model: names, shapes and dtypes, compared before a byte is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from mlstate.format.tensor_object import TensorSpec
from mlstate.models import AVERAGED, TensorModel
from mlstate.tensors.memory import TORCH_DTYPES, torch_dtype, torch_shape
from mlstate.tensors.ties import covered, overlapping, stand_apart, tied_groups

__all__ = [
    "EXTRA_STATE",
    "UNINITIALIZED",
    "Fit",
    "compare",
    "entries",
    "some",
]

EXTRA_STATE = "_extra_state"
UNINITIALIZED = (UninitializedParameter, UninitializedBuffer)
"""Entries of lazy modules: they have no shape yet, and take any."""


@dataclass(frozen=True)
class Fit:
    """How a state fits a model, by names, shapes and dtypes alone.

    `own` are the model's entries; `missing` are names that the state lacks, `unexpected` those that
    the model lacks; `cast` are names in both whose dtypes differ, and `mismatched` those whose
    shapes differ, with the stored shape and the model's own.
    """

    own: Mapping[str, Any]
    modules: list[tuple[str, torch.nn.Module]]  # with their names; none of what is no module
    common: set[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    cast: list[str]

    @cached_property
    def ties(self) -> list[list[str]]:
        """The model's names that are one tensor or one memory, together."""
        return [] if self.apart else tied_groups(self.own)

    @cached_property
    def tied(self) -> set[str]:
        """Names that the state lacks, but not their values: they are one with names that it has."""
        return set() if self.apart else covered(self.own, self.missing, self.common)

    @property
    def absent(self) -> list[str]:
        """Names that the state has no values for."""
        return [name for name in self.missing if name not in self.tied]

    @cached_property
    def apart(self) -> bool:
        """Whether no two names are one tensor, or share memory. So it is in most models."""
        return stand_apart(self.own)

    @cached_property
    def own_rules(self) -> bool:
        """Whether the model loads by rules of its own: hooks, or an overridden method.

        Such a model may rename what it is given, so only its own load can say what is missing.
        """
        return bool(self.modules) and _has_own_rules([module for _, module in self.modules])

    def problems(
        self,
        specs: Mapping[str, TensorSpec],
        *,
        strict: bool,
        assign: bool,
        ignore_mismatched_sizes: bool,
    ) -> list[str]:
        """The sentences that say why the state cannot be loaded; none if it can."""
        lines = []
        if not self.own_rules:
            # Names that a model's own rules may translate are for those rules to judge.
            if self.strangers and not strict:
                lines.append("the state and the model have no name in common")
            if strict and self.absent:
                lines.append(f"missing in the state: {some(self.absent)}")
            if strict and self.unexpected:
                lines.append(f"unknown to the model: {some(self.unexpected)}")
        if self.mismatched and not ignore_mismatched_sizes:
            shapes = [
                f"{name} (stored {list(stored)}, model {list(own)})"
                for name, (stored, own) in self.mismatched.items()
            ]
            lines.append(f"of another shape: {some(shapes)}")
        if assign:
            if clusters := [] if self.apart else overlapping(self.own, self.ties):
                parts = sorted(name for names in clusters for name in names)
                lines.append(
                    f"of memory that overlaps, which assign=True would part: {some(parts)}"
                )
        elif names := self._unwritable(specs):
            lines.append(f"nothing can be copied into: {some(sorted(names))}")
        return lines

    def _unwritable(self, specs: Mapping[str, TensorSpec]) -> list[str]:
        """Entries of the model that torch cannot copy into."""
        return [
            name
            for name in self.common - self.mismatched.keys()
            for entry in [self.own[name]]
            if isinstance(entry, torch.Tensor)
            and not is_lazy(entry)
            and (
                (entry.is_inference() and not torch.is_inference_mode_enabled())
                or any(size > 1 and not step for size, step in zip(*_layout(entry), strict=True))
                or (name in self.cast and "F4" in (specs[name].dtype, _dtype_name(entry)))
            )
        ]

    @property
    def strangers(self) -> bool:
        """Whether there are names on both sides, and none in common."""
        return bool(self.own) and bool(self.unexpected) and not self.common

    def remedy(self, *, strict: bool) -> str:
        """Advice about the problems."""
        if self.strangers:
            return self._prefix() or "compare both sides' names: they have none in common"
        advice = []
        if strict and (self.absent or self.unexpected):
            advice.append("strict=False loads the names that both have")
        if self.mismatched:
            advice.append("ignore_mismatched_sizes=True skips what does not fit")
        return "; ".join(advice)

    def _prefix(self) -> str | None:
        """Wrappers (DataParallel, torch.compile) put a name of their own before every name."""
        wrapper = _first_part(self.own)
        if wrapper and {f"{wrapper}.{name}" for name in self.unexpected} & self.own.keys():
            return f"the model's names all begin with {wrapper}: load into model.{wrapper}"
        for part in {name.partition(".")[0] for name in self.own}:  # a wrapper with its own, too
            if self.own.keys() >= {f"{part}.{name}" for name in self.unexpected}:
                return f"it fits a part of this model: load into model.{part}"
        words, rest = [], set(self.unexpected)
        if AVERAGED in rest and {f"module.{name}" for name in self.own} & rest:
            return (
                "the state is that of an AveragedModel: load it into AveragedModel(model), whose "
                "module is the averaged model"
            )
        while (word := _first_part(rest)) and all("." in name for name in rest):
            words.append(word)
            rest = {name.partition(".")[2] for name in rest}
            if rest & self.own.keys():
                return (
                    f"the state's names all begin with {'.'.join(words)}, as of a wrapped model: "
                    "take it off with load_state_dict and save_state_dict"
                )
        for part in {name.partition(".")[0] for name in self.unexpected}:  # as of AveragedModel
            if {f"{part}.{name}" for name in self.own} <= {*self.unexpected}:
                return (
                    f"the model's names are in the state with {part} before them, as of a wrapped "
                    "model: take it off with load_state_dict and save_state_dict"
                )
        return None


def _layout(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides; other layouts than strided have none that matter here."""
    strided = tensor.layout is torch.strided
    return (tuple(tensor.shape), tensor.stride()) if strided else ((), ())


def _dtype_name(tensor: torch.Tensor) -> str | None:
    return next((name for name, dtype in TORCH_DTYPES.items() if dtype == tensor.dtype), None)


def _first_part(names: Iterable[str]) -> str | None:
    """The part up to the first dot, if all names have the same."""
    firsts = {name.partition(".")[0] for name in names}
    return firsts.pop() if len(firsts) == 1 else None


def compare(model: TensorModel, specs: Mapping[str, TensorSpec]) -> Fit:
    """Compare a state's names, shapes and dtypes with a model's, as torch's own load would.

    A `FormatError` says that this torch lacks a stored element type.
    """
    own = entries(model)
    modules = list(model.named_modules()) if isinstance(model, torch.nn.Module) else []
    filled_in = _filled_in_by_torch(modules)
    mismatched, casts = {}, []
    for name, spec in specs.items():
        target = own.get(name)
        if not isinstance(target, torch.Tensor) or name.endswith(EXTRA_STATE):
            continue
        stored = torch_shape(spec)
        if not is_lazy(target) and not _fits(stored, target.shape):
            mismatched[name] = (stored, tuple(target.shape))
        elif torch_dtype(spec) != target.dtype:
            casts.append(name)
    return Fit(
        own,
        modules,
        specs.keys() & own.keys(),
        [name for name in own if name not in specs and name not in filled_in],
        sorted(specs.keys() - own.keys()),
        mismatched,
        casts,
    )


def _has_own_rules(modules: list[torch.nn.Module]) -> bool:
    if type(modules[0]).load_state_dict is not torch.nn.Module.load_state_dict:
        return True
    known = (torch.nn.Module._load_from_state_dict, _NormBase._load_from_state_dict)
    return any(
        any(map(_is_own_rule, module._load_state_dict_pre_hooks.values()))
        or any(map(_is_own_rule, module._load_state_dict_post_hooks.values()))
        or module._state_dict_hooks
        or any(map(_is_own_rule, module._state_dict_pre_hooks.values()))
        or type(module)._load_from_state_dict not in known
        or type(module).state_dict is not torch.nn.Module.state_dict
        for module in modules
    )


def _is_own_rule(hook: Any) -> bool:
    """Whether a hook may rename what is loaded; those of FSDP2 only put its shards in place."""
    function = getattr(hook, "hook", hook)
    module: str = getattr(function, "__module__", "")
    return not module.startswith("torch.distributed.fsdp._fully_shard.")


def entries(model: TensorModel) -> Mapping[str, Any]:
    """A model's entries: the parameters themselves, so that it can be seen which names are one."""
    if not isinstance(model, torch.nn.Module):
        return model.state_dict()
    if type(model).state_dict is torch.nn.Module.state_dict:
        return cast(Mapping[str, Any], model.state_dict(keep_vars=True))
    themselves: dict[str, Any] = dict(model.named_parameters(remove_duplicate=False))
    themselves |= dict(model.named_buffers(remove_duplicate=False))
    return {name: themselves.get(name, entry) for name, entry in model.state_dict().items()}


def _filled_in_by_torch(modules: list[tuple[str, torch.nn.Module]]) -> set[str]:
    """Names that torch does not miss: checkpoints older than this counter of BatchNorm lack it."""
    return {
        f"{prefix}.num_batches_tracked" if prefix else "num_batches_tracked"
        for prefix, module in modules
        if isinstance(module, _NormBase)
    }


def _fits(stored: tuple[int, ...], own: tuple[int, ...]) -> bool:
    # torch takes a tensor of one dimension for a scalar: that is how version 0.3 wrote scalars.
    return stored == own or (not own and len(stored) == 1 and stored[0] > 0)


def some(names: list[str], most: int = 8) -> str:
    """Names for a message, the first few of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
