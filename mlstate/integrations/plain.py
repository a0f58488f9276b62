"""Nested values of a checkpoint: its tensors, which a store keeps, and the plain values around."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mlstate.errors import FormatError

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
            name = path if path not in tensors else f"{path}~{len(tensors)}"
            tensors[name] = one.detach()
            return {_TENSOR: name}
        if isinstance(one, dict) and _TENSOR in one:
            raise FormatError("this name is reserved", path=path, found=_TENSOR)
        if type(one) not in _PLAIN:
            _check(path, one)
        return one

    skeleton = _mapped(value, "", leaf)
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
    return _mapped(skeleton, "", leaf)


def _mapped(value: Any, path: str, leaf: Callable[[str, Any], Any]) -> Any:
    """The same nesting of mappings, lists and tuples with other leaves."""
    kind = type(value)
    if kind in (dict, OrderedDict) and _TENSOR not in value:
        return kind((name, _mapped(one, _under(path, name), leaf)) for name, one in value.items())
    if kind in (list, tuple):
        return kind(_mapped(one, _under(path, place), leaf) for place, one in enumerate(value))
    return leaf(path, value)


def _under(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


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
