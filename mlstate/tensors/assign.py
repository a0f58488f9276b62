"""Tensors into a module whose entries are plain ones, without the detours of torch's own loading.

Torch's `load_state_dict` looks at every name several times, and is there for old versions, hooks
and lazy modules. Where there are none of these, and the names are exactly the model's, only the
copying or assigning is left to do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch

from mlstate.parallel import for_each
from mlstate.tensors.fit import EXTRA_STATE, Fit

__all__ = ["can_put", "put"]

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_Pair = tuple[torch.Tensor, torch.Tensor]
"""An entry of the model, and what is copied into it."""
_LARGE = 1 << 20
_PIECE = 4 << 20


def can_put(fit: Fit, given: Mapping[str, Any], *, assign: bool) -> bool:
    """Whether `put` does what the module's own load would do.

    Args:
        fit: The model, one that has no rules of its own.
        given: The tensors.
        assign: Whether the module is to hold the tensors themselves.
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


def put(fit: Fit, given: Mapping[str, Any], *, assign: bool) -> None:
    """Copy tensors into the entries of a model, or make them its own.

    Args:
        fit: The model.
        given: The tensors, for each entry; those of parameters are parameters, if they are
            assigned.
        assign: Make the model's modules hold the tensors themselves.
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
    plain: list[_Pair] = []
    other: list[_Pair] = []
    for pair in pairs.values():
        (plain if fit.apart and _is_copy_of_bytes(*pair) else other).append(pair)
    try:
        _copy_by_torch(other)
        _copy_bytes(plain)
    except BaseException:  # Ctrl-C, say: the model is not to be left half loaded
        _copy_by_torch(list(pairs.values()))
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
