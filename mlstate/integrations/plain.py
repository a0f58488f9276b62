"""Nested values of a checkpoint: its tensors, which a store keeps, and the plain values around."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch

from mlstate.errors import FormatError
from mlstate.tensors.nested import free_name, mapped

__all__ = ["joined", "parted"]

_TENSOR = "mlstate.tensor"
"""The one key of a mapping that stands for a tensor."""
_COUNT = "count"
"""A tensor that is always there: a state without any could not be stored."""
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def parted(value: Any) -> tuple[dict[str, torch.Tensor], bytes]:
    """Part nested values into tensors with names, and bytes with everything else.

    Raises:
        FormatError: There is something that ``torch.load(weights_only=True)`` would not read.
    """
    tensors = {_COUNT: torch.tensor(0)}

    def leaf(path: str, one: Any) -> Any:
        if isinstance(one, torch.Tensor):
            name = free_name(path, tensors)
            tensors[name] = one.detach()
            return {_TENSOR: name}
        if isinstance(one, dict) and _TENSOR in one:
            raise FormatError("this name is reserved", path=path, found=_TENSOR)
        if type(one) not in _PLAIN:
            _check(path, one)
        return one

    skeleton = mapped(value, leaf, is_leaf=_is_marked)
    tensors[_COUNT] = torch.tensor(len(tensors) - 1)
    return tensors, _pickled(skeleton)


def joined(data: bytes, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The values that were parted.

    Raises:
        FormatError: The bytes are something else.
    """

    def leaf(path: str, one: Any) -> Any:
        if type(one) is not dict:
            return one
        if one[_TENSOR] not in tensors:
            raise FormatError("a checkpoint lacks a tensor", tensor=one[_TENSOR])
        return tensors[one[_TENSOR]]

    try:
        skeleton = torch.load(io.BytesIO(data), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise FormatError("these are no plain values", found=str(error)) from error
    return mapped(skeleton, leaf, is_leaf=_is_marked)


def _is_marked(value: Any) -> bool:
    return isinstance(value, dict) and _TENSOR in value


def _pickled(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _check(path: str, value: Any) -> None:
    """Refuse what could be written, and then not be read."""
    try:
        torch.load(io.BytesIO(_pickled(value)), weights_only=True)
    except Exception as error:  # an object may refuse to be pickled in any way
        raise FormatError(
            "a checkpoint holds an object that is no plain value; nothing was saved",
            path=path,
            expected="numbers, texts, tensors, and lists and mappings of them",
            found=f"{type(value).__module__}.{type(value).__qualname__}",
            remedy="save plain values in its place: in `save_hyperparameters(ignore=[...])`, or in "
            "the `state_dict` of what has it",
        ) from error
