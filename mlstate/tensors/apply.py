"""A verified state into a model: compared first, then copied or assigned, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn.modules.batchnorm import _NormBase

from mlstate.digests import Digest
from mlstate.errors import IncompatibleStateError
from mlstate.format.dtypes import TensorSpec
from mlstate.models import LoadResult, TensorModel
from mlstate.tensors.dtypes import torch_dtype, torch_shape
from mlstate.tensors.memory import as_bytes
from mlstate.tensors.ties import UNINITIALIZED, assignable, tied_groups

__all__ = ["Fit", "apply_state", "compare", "has_own_rules", "load_tensors"]

_EXTRA_STATE = "_extra_state"


@dataclass(frozen=True)
class Fit:
    """How a state fits a model, by names, shapes and dtypes alone.

    Attributes:
        own: The model's entries.
        common: Names in both.
        missing: Names of the model that the state lacks.
        unexpected: Names of the state that the model lacks.
        mismatched: Names in both whose shapes differ, with the stored shape and the model's own.
        cast: Names in both whose dtypes differ.
    """

    own: Mapping[str, Any]
    common: set[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    cast: list[str]

    def problems(self, *, strict: bool, ignore_mismatched_sizes: bool) -> list[str]:
        """What forbids the load, in sentences; nothing if it may go on."""
        lines = []
        if self.strangers and not strict:
            lines.append("the state and the model have no name in common")
        if strict and self.missing:
            lines.append(f"missing in the state: {_some(self.missing)}")
        if strict and self.unexpected:
            lines.append(f"unknown to the model: {_some(self.unexpected)}")
        if not ignore_mismatched_sizes and self.mismatched:
            shapes = [
                f"{name} (stored {list(stored)}, model {list(own)})"
                for name, (stored, own) in self.mismatched.items()
            ]
            lines.append(f"of another shape: {_some(shapes)}")
        return lines

    @property
    def strangers(self) -> bool:
        """Whether there are names on both sides, and none in common."""
        return bool(self.own) and bool(self.unexpected) and not self.common

    def remedy(self, *, strict: bool) -> str:
        """What to do about the problems."""
        if self.strangers:
            return self._prefix() or "look at both sides' names: this is another architecture"
        advice = []
        tied = [
            f"{name} (with {other})"
            for group in tied_groups(self.own)
            for name in group
            if name in self.missing
            for other in [next((n for n in group if n not in self.missing), None)]
            if other is not None
        ]
        if tied:
            advice.append(f"tied in this model, and so loaded all the same: {_some(tied)}")
        if strict and (self.missing or self.unexpected):
            advice.append("strict=False loads the names that both have")
        if self.mismatched:
            advice.append("ignore_mismatched_sizes=True skips what does not fit")
        return "; ".join(advice)

    def _prefix(self) -> str | None:
        """Wrappers (DataParallel, torch.compile) put a name of their own before every name."""
        wrapper = _first_part(self.own)
        if wrapper and {f"{wrapper}.{name}" for name in self.unexpected} & self.own.keys():
            return f"the model's names all begin with {wrapper}: load into model.{wrapper}"
        wrapper = _first_part(self.unexpected)
        if wrapper and {f"{wrapper}.{name}" for name in self.own} & set(self.unexpected):
            return (
                f"the state's names all begin with {wrapper}, as of a wrapped model: take it off "
                "with load_state_dict and save_state_dict"
            )
        return None


def _first_part(names: Iterable[str]) -> str | None:
    """What all names begin with, up to a dot, if they do."""
    firsts = {name.partition(".")[0] for name in names}
    return firsts.pop() if len(firsts) == 1 else None


def load_tensors(
    model: TensorModel,
    specs: Mapping[str, TensorSpec],
    read: Callable[[], Mapping[str, torch.Tensor]],
    *,
    strict: bool,
    assign: bool,
    ignore_mismatched_sizes: bool,
    digest: Digest,
) -> LoadResult:
    """Compare a state with a model, read it, and put it in: in this order, or not at all.

    Args:
        model: The model.
        specs: Every name of the state with its type and shape.
        read: Brings all tensors, verified; called only if they fit.
        strict: Refuse what is missing or unexpected.
        assign: Make the tensors the model's own instead of copying from them.
        ignore_mismatched_sizes: Skip what has another shape instead of refusing.
        digest: The state digest, for the result.

    Raises:
        IncompatibleStateError: The state does not fit; the model is as it was.
    """
    fit = compare(model, specs)
    # Names that a model's own rules may translate are for those rules to judge.
    own_rules = has_own_rules(model)
    problems = fit.problems(
        strict=strict and not own_rules, ignore_mismatched_sizes=ignore_mismatched_sizes
    )
    if problems and not (own_rules and fit.strangers):
        raise IncompatibleStateError(
            f"the state does not fit this {type(model).__name__}; nothing was loaded",
            found="; ".join(problems),
            remedy=fit.remedy(strict=strict),
        )
    tensors = read()
    if strict and (torn := [group for group in tied_groups(fit.own) if _differ(group, tensors)]):
        raise IncompatibleStateError(
            "names that are one tensor in the model have different values in the state; nothing "
            "was loaded",
            found="; ".join(" and ".join(group) for group in torn),
            remedy="untie them in the model; with strict=False the last of them wins, as in torch",
        )
    result = apply_state(model, tensors, fit, strict=strict, assign=assign)
    result.digest = digest
    return result


def _differ(group: list[str], tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether names that a model has tied have different values in a state, bit for bit."""
    having = [tensors[name] for name in group if name in tensors]
    return any(
        other is not having[0]
        and (
            (other.dtype, other.shape) != (having[0].dtype, having[0].shape)
            or as_bytes(other) != as_bytes(having[0])
        )
        for other in having[1:]
    )


def compare(model: TensorModel, specs: Mapping[str, TensorSpec]) -> Fit:
    """Compare a state's names, shapes and dtypes with a model's, as torch's own load would.

    Args:
        model: The model.
        specs: Every name of the state with its type and shape.

    Raises:
        FormatError: A stored element type that this torch lacks.
    """
    own = _entries(model)
    filled_in = _filled_in_by_torch(model)
    mismatched, casts = {}, []
    for name, spec in specs.items():
        target = own.get(name)
        if not isinstance(target, torch.Tensor) or name.endswith(_EXTRA_STATE):
            continue
        stored = torch_shape(spec)
        if not isinstance(target, UNINITIALIZED) and not _fits(stored, target.shape):
            mismatched[name] = (stored, tuple(target.shape))
        elif torch_dtype(spec) != target.dtype:
            casts.append(name)
    return Fit(
        own,
        specs.keys() & own.keys(),
        [name for name in own if name not in specs and name not in filled_in],
        sorted(specs.keys() - own.keys()),
        mismatched,
        casts,
    )


def apply_state(
    model: TensorModel,
    tensors: Mapping[str, torch.Tensor],
    fit: Fit,
    *,
    strict: bool,
    assign: bool,
) -> LoadResult:
    """Put verified tensors into a model.

    Args:
        model: The model.
        tensors: All tensors of the state, verified, private; equal ones may be one.
        fit: What `compare` said; mismatched names are skipped.
        strict: Refuse what is missing or unexpected; for a model with rules of its own, which
            alone can tell. For all others `Fit.problems` has told before.
        assign: Make the tensors the model's own instead of copying from them.

    Returns:
        What torch reports, without a digest.

    Raises:
        IncompatibleStateError: torch, or a hook of the model, refused; or `assign` is asked of
            something that is no module, or its lack of a module on the meta device.
    """
    given = {name: tensor for name, tensor in tensors.items() if name not in fit.mismatched}
    if not isinstance(model, torch.nn.Module):
        if assign:
            raise IncompatibleStateError("assign=True needs a torch.nn.Module", found=type(model))
        model.load_state_dict({name: given[name] for name in given if name in fit.own})
        return LoadResult(fit.missing, fit.unexpected, fit.mismatched, fit.cast)
    if not assign and any(getattr(entry, "is_meta", False) for entry in fit.own.values()):
        raise IncompatibleStateError(
            "the model is on the meta device, so there is nothing to copy into",
            remedy="load with assign=True, or move it with to_empty() first",
        )
    tied: set[str] = set()
    if assign:
        given, tied = assignable(given, fit.own)
    guard = _restored_on_error(model, assign=assign) if has_own_rules(model) else nullcontext()
    with guard:
        keys = model.load_state_dict(given, strict=False, assign=assign)
        left = {*keys.missing_keys, *tied} - fit.mismatched.keys()
        if strict and (left or keys.unexpected_keys):
            raise RuntimeError(
                f"missing: {_some(sorted(left))}; unknown: {_some(keys.unexpected_keys)}"
            )
    return LoadResult(
        [name for name in fit.own if name in left],
        keys.unexpected_keys,
        fit.mismatched,
        fit.cast,
    )


def has_own_rules(model: TensorModel) -> bool:
    """Whether a model loads by rules of its own: hooks, or an overridden method.

    Such a model may rename what it is given, so only its own load can say what is missing.
    """
    if not isinstance(model, torch.nn.Module):
        return False
    if type(model).load_state_dict is not torch.nn.Module.load_state_dict:
        return True
    known = (torch.nn.Module._load_from_state_dict, _NormBase._load_from_state_dict)
    return any(
        module._load_state_dict_pre_hooks or type(module)._load_from_state_dict not in known
        for module in model.modules()
    )


def _entries(model: TensorModel) -> Mapping[str, Any]:
    if isinstance(model, torch.nn.Module):
        # keep_vars: the parameters themselves, so that it can be seen which names are one.
        return cast(Mapping[str, Any], model.state_dict(keep_vars=True))
    return model.state_dict()


def _filled_in_by_torch(model: TensorModel) -> set[str]:
    """Names that torch does not miss: checkpoints older than this counter of BatchNorm lack it."""
    if not isinstance(model, torch.nn.Module):
        return set()
    return {
        f"{prefix}.num_batches_tracked" if prefix else "num_batches_tracked"
        for prefix, module in model.named_modules()
        if isinstance(module, _NormBase)
    }


def _fits(stored: tuple[int, ...], own: tuple[int, ...]) -> bool:
    # torch takes a tensor of one dimension for a scalar: that is how version 0.3 wrote scalars.
    return stored == tuple(own) or (not own and len(stored) == 1 and stored[0] > 0)


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@contextmanager
def _restored_on_error(model: torch.nn.Module, *, assign: bool) -> Iterator[None]:
    """Give a model its tensors back if its load fails half way.

    Only for models with rules of their own: for all others the comparison said before that torch
    will take everything, and no copy of the model is needed.
    """
    held = [(module, {**module._parameters}, {**module._buffers}) for module in model.modules()]
    values = [] if assign else [(t, t.detach().clone()) for t in _real_tensors(model)]
    try:
        yield
    except Exception as error:
        for module, parameters, buffers in held:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        raise IncompatibleStateError(
            "the model's own loading refused the state; its values are as before",
            found=str(error),
        ) from error


def _real_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    for tensor in (*model.parameters(), *model.buffers()):
        if not isinstance(tensor, UNINITIALIZED) and not tensor.is_meta:
            yield tensor
