"""Loading a verified state into a model: compared first, then copied or assigned, or nothing."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mlstate.digests import Digest
from mlstate.errors import IncompatibleStateError
from mlstate.format.tensor_object import TensorSpec
from mlstate.models import LoadResult, TensorModel
from mlstate.parallel import for_each
from mlstate.tensors.assign import assignable, tie_again
from mlstate.tensors.fit import EXTRA_STATE, UNINITIALIZED, Fit, compare, some
from mlstate.tensors.memory import is_shard
from mlstate.tensors.remake import Remade, remake
from mlstate.tensors.restore import restoring, tensors_of
from mlstate.tensors.ties import contradicted, covered

__all__ = ["apply_tensors", "check_fit", "check_ties", "copy_pairs", "load_tensors"]

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_USUAL = (*_PLAIN, *UNINITIALIZED)
_Pair = tuple[torch.Tensor, torch.Tensor]
"""An entry of the model, and what is copied into it."""
_LARGE = 1 << 20
_PIECE = 4 << 20


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

    ``read`` brings all tensors, verified, and is called only if they fit. The options are those of
    a store's ``load``. If the state does not fit, an `IncompatibleStateError` is raised and the
    model is as it was.
    """
    fit = compare(model, specs)
    check_fit(
        model,
        fit,
        specs,
        strict=strict,
        assign=assign,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
    module = model if isinstance(model, torch.nn.Module) else None
    remade = remake(fit) if assign else Remade([], [])
    tensors = read()
    if strict:
        check_ties(fit, tensors)
    if module is None:
        result = _give(model, tensors, fit)
    else:
        with remade.placed(module):
            result = apply_tensors(module, tensors, fit, strict=strict, assign=assign)
    result.digest = digest
    return result


def check_fit(
    model: TensorModel,
    fit: Fit,
    specs: Mapping[str, TensorSpec],
    *,
    strict: bool,
    assign: bool,
    ignore_mismatched_sizes: bool,
) -> None:
    """Refuse, by an `IncompatibleStateError`, a state that does not fit, before it is read."""
    problems = fit.problems(
        specs, strict=strict, assign=assign, ignore_mismatched_sizes=ignore_mismatched_sizes
    )
    if problems:
        raise IncompatibleStateError(
            f"the state does not fit this {type(model).__name__}; nothing was loaded",
            found="; ".join(problems),
            remedy=fit.remedy(strict=strict),
        )
    is_module = isinstance(model, torch.nn.Module)
    if assign and not is_module:
        raise IncompatibleStateError("assign=True needs a torch.nn.Module", found=type(model))
    if is_module and not assign and _any_meta(fit):
        raise IncompatibleStateError(
            "the model is on the meta device, so there is nothing to copy into",
            remedy="load with assign=True",
        )


def check_ties(fit: Fit, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse, by an `IncompatibleStateError`, different values for names that are one tensor."""
    given = {name: tensors[name] for name in tensors if name not in fit.mismatched}
    if not fit.apart and (torn := contradicted(fit.own, fit.ties, given)):
        raise IncompatibleStateError(
            "names that are one tensor in the model have different values in the state; nothing "
            "was loaded",
            found="; ".join(" and ".join(group) for group in torn),
            remedy="untie them in the model; with strict=False the last of them wins, as in torch",
        )


def _any_meta(fit: Fit) -> bool:
    return any(getattr(entry, "is_meta", False) for entry in fit.own.values())


def _give(model: TensorModel, tensors: Mapping[str, torch.Tensor], fit: Fit) -> LoadResult:
    """Give verified tensors to a model that is no module, those whose names it has."""
    model.load_state_dict(
        {name: tensors[name] for name in tensors if name in fit.common - fit.mismatched.keys()}
    )
    return LoadResult(
        fit.absent, fit.unexpected, fit.mismatched, fit.cast, tied_keys=sorted(fit.tied)
    )


def apply_tensors(
    model: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    fit: Fit,
    *,
    strict: bool,
    assign: bool,
) -> LoadResult:
    """Put verified tensors into a module; equal ones may be one.

    Mismatched names are skipped. A model with rules of its own is refused only now what is missing
    or unexpected: it alone can tell. For all others `Fit.problems` has told before. Raises an
    `IncompatibleStateError` if torch or a hook of the model refuses.
    """
    given: dict[str, Any] = OrderedDict(
        (name, tensor) for name, tensor in tensors.items() if name not in fit.mismatched
    )
    tied: set[str] = set()
    if assign:
        given, tied = assignable(given, fit.own, fit.ties)
    if given.keys() == fit.own.keys():
        # Modules migrate what lacks their version, which a state does not record. Of exactly the
        # names of today the version is today's; any other state is for the modules to judge.
        given = OrderedDict(given)
        given._metadata = getattr(fit.own, "_metadata", None)  # type: ignore[attr-defined]
    restore = fit.own_rules or any(
        type(t) not in _USUAL and not is_shard(t) for t in tensors_of(fit.modules)
    )
    with restoring(fit.modules, restore=restore, assign=assign):
        if not restore and not tied and can_set_entries(fit, given, assign=assign):
            set_entries(fit, given, assign=assign)
            return LoadResult((), (), fit.mismatched, fit.cast)
        keys = model.load_state_dict(given, strict=False, assign=assign)
        left = {*keys.missing_keys, *tied} - fit.mismatched.keys()
        # Of a model with rules of its own only now: they may have renamed what it was given.
        tied = covered(fit.own, left & fit.own.keys(), fit.own.keys() - left)
        left -= tied
        if assign and fit.own_rules:
            tie_again(fit, left | tied)
        if strict and (left or keys.unexpected_keys):
            raise RuntimeError(
                f"missing: {some(sorted(left))}; unknown: {some(keys.unexpected_keys)}"
            )
    return LoadResult(
        [name for name in fit.own if name in left],
        keys.unexpected_keys,
        fit.mismatched,
        fit.cast,
        tied_keys=[name for name in fit.own if name in tied],
    )


def can_set_entries(fit: Fit, given: Mapping[str, Any], *, assign: bool) -> bool:
    """Whether `set_entries` does exactly what the module's own load would do.

    Torch's `load_state_dict` looks at every name several times, and is there for old versions,
    hooks and lazy modules. Where there are none of these, and the names are exactly the model's,
    only the copying or assigning is left to do.
    """
    own = fit.own
    return (
        given.keys() == own.keys()
        and not torch.__future__.get_swap_module_params_on_conversion()
        and not any(name.endswith(EXTRA_STATE) for name in own)
        and all(_fits(given[name], entry, assign=assign) for name, entry in own.items())
        # Of names that share memory the last wins; on a GPU copies by one call have no order.
        and (assign or fit.apart or all(entry.is_cpu for entry in own.values()))
    )


def _fits(given: Any, entry: Any, *, assign: bool) -> bool:
    return (
        type(entry) in _PLAIN
        and type(given) in _PLAIN
        and given.shape == entry.shape
        and (assign or (given.device == entry.device and _takes_copies(entry)))
    )


def _takes_copies(entry: torch.Tensor) -> bool:
    return entry.layout is torch.strided and not entry.is_conj() and not entry.is_neg()


def set_entries(fit: Fit, given: Mapping[str, Any], *, assign: bool) -> None:
    """Copy tensors into the entries of a model, or with ``assign`` make its modules hold them.

    Assigned tensors of parameters are parameters already.
    """
    if assign:
        try:
            _assign_all(fit, given)
        except KeyboardInterrupt:  # the model is not to be left half loaded
            _assign_all(fit, given)
            raise
        return
    # In the model's order: of names that are one tensor the last wins.
    pairs = {(id(own), id(given[name])): (own, given[name]) for name, own in fit.own.items()}
    copy_pairs(list(pairs.values()), apart=fit.apart)


def copy_pairs(pairs: list[_Pair], *, apart: bool = True) -> None:
    """Copy the second of each pair into the first; ``apart`` says that no two of these overlap."""
    plain: list[_Pair] = []
    other: list[_Pair] = []
    for pair in pairs:
        (plain if apart and _is_copy_of_bytes(*pair) else other).append(pair)
    try:
        _copy_by_torch(other)
        _copy_bytes(plain)
    except BaseException:  # Ctrl-C, say: the model is not to be left half loaded
        _copy_by_torch(pairs)
        raise


def _copy_by_torch(pairs: list[_Pair]) -> None:
    """Copy by one call, which Ctrl-C does not part."""
    if pairs:  # torch refuses to do nothing
        with torch.no_grad():
            torch._foreach_copy_([own for own, _ in pairs], [tensor for _, tensor in pairs])


def _is_copy_of_bytes(own: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether a copy is nothing but one of bytes, and of enough of them."""
    return (
        own.is_cpu
        and own.dtype == tensor.dtype
        and own.nbytes >= _LARGE
        and own.is_contiguous()
        and tensor.is_contiguous()
    )


def _copy_bytes(pairs: list[_Pair]) -> None:
    """Copy memory, a piece at a time on each core: torch's own way is slower (measured)."""

    def copy(piece: tuple[torch.Tensor, torch.Tensor, int]) -> None:
        own, tensor, start = piece  # which must live as long as their memory is copied
        size = min(_PIECE, own.nbytes - start)
        ctypes.memmove(own.data_ptr() + start, tensor.data_ptr() + start, size)

    starts = ((own, tensor, range(0, own.nbytes, _PIECE)) for own, tensor in pairs)
    for_each(copy, ((own, tensor, start) for own, tensor, pieces in starts for start in pieces))
    for own, _ in pairs:  # autograd is to know that its values changed, as by torch's own copies
        torch.autograd.graph.increment_version(own)


def _assign_all(fit: Fit, given: Mapping[str, Any]) -> None:
    for prefix, module in fit.modules:
        _assign(module, prefix and f"{prefix}.", given)


def _assign(module: torch.nn.Module, prefix: str, given: Mapping[str, Any]) -> None:
    """Do what ``setattr`` does with entries that are there, unless the module has it do more."""
    direct = type(module).__setattr__ is torch.nn.Module.__setattr__ and not _watched()
    for entries in (module._parameters, module._buffers):
        for name, entry in entries.items():
            tensor = None if entry is None else given.get(f"{prefix}{name}")
            if tensor is None:
                continue
            if direct:
                entries[name] = tensor
            else:
                setattr(module, name, tensor)


def _watched() -> bool:
    """Whether somebody wants to hear of every parameter or buffer that a module gets."""
    hooks = torch.nn.modules.module
    return bool(
        hooks._global_parameter_registration_hooks or hooks._global_buffer_registration_hooks
    )
