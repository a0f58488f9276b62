"""A model that torch, or rules of its own, refuse to load into gets its tensors back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from mlstate.errors import IncompatibleStateError

__all__ = ["restoring", "tensors_of"]

_Modules = list[tuple[str, torch.nn.Module]]


@contextmanager
def restoring(modules: _Modules, *, restore: bool, assign: bool) -> Iterator[None]:
    """Turn a refusal by torch or by a model's own rules into an error of ours.

    With ``restore`` the model gets its tensors back. That needs a copy of them, so it is only for
    models with rules of their own: torch takes everything into all others, as `compare` found.
    """
    held, lazy, values = _snapshot(modules, copied=not assign) if restore else ([], [], [])
    try:
        yield
    except BaseException as error:
        if restore:
            for module, parameters, buffers in held:
                module._parameters.update(parameters)
                module._buffers.update(buffers)
            for tensor, kind, data in lazy:
                tensor.data = data
                tensor.__class__ = kind
            with torch.no_grad():
                for tensor, value in values:
                    tensor.copy_(value)
        if not isinstance(error, Exception):
            raise
        after = "its values are as before" if restore else "some of it may have been loaded"
        raise IncompatibleStateError(
            f"the model's own loading refused the state; {after}", found=str(error)
        ) from error


def _snapshot(modules: _Modules, *, copied: bool) -> tuple[list[Any], list[Any], list[Any]]:
    """A model's tensors: which module has which, which are lazy, and copies of values."""
    tensors = {id(tensor): tensor for tensor in tensors_of(modules)}.values()
    return (
        [(module, {**module._parameters}, {**module._buffers}) for _, module in modules],
        [(t, type(t), t.data) for t in tensors if is_lazy(t)],
        [(t, t.detach().clone()) for t in tensors if copied and not is_lazy(t) and not t.is_meta],
    )


def tensors_of(modules: _Modules) -> Iterator[torch.Tensor]:
    """All parameters and buffers of these modules, as often as they are held."""
    for _, module in modules:
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor
