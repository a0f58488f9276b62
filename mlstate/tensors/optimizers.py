"""State dicts of optimizers as flat mappings of tensors, and back, exactly.

Each tensor has its path as its name (``state.0.exp_avg``), and so has each number or row of numbers
(``param_groups.0.lr``): a float is F64, an int I64, a bool BOOL. What else there is, the nesting,
texts and None, is JSON in one more tensor, so that the state digest covers it, too.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from mlstate.errors import FormatError
from mlstate.tensors.memory import as_bytes
from mlstate.tensors.nested import free_name, mapped, under
from mlstate.texts import parse_json

__all__ = ["STRUCTURE", "flattened", "unflattened"]

STRUCTURE = "structure"
"""The name of the tensor with the nesting: JSON in UTF-8, as U8."""

_LARGEST = 64 << 20
_MOST_DEPTH = 20
"""Three brackets of JSON each at most, of which 64 are read."""
_NUMBERS = {float: torch.float64, int: torch.int64, bool: torch.bool}
_BY_NAME = {kind.__name__: kind for kind in _NUMBERS}
_DICTS = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
_WHAT = "the structure of an optimizer's state"


class _Stored:
    """The place of a leaf that is stored as a tensor: its kind, and the tensor's name."""

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.name = name


def flattened(state_dict: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """An optimizer's state dict as a flat mapping.

    Args:
        state_dict: What ``optimizer.state_dict()`` gives, or another nesting of mappings with keys
            that are texts or whole numbers, lists, tuples, tensors, numbers, texts and None.

    Raises:
        FormatError: There is something else in it; the error says where.
    """
    if not isinstance(state_dict, Mapping):
        raise FormatError(
            "the state dict of an optimizer is a mapping",
            found=type(state_dict).__name__,
            remedy="give optimizer.state_dict()",
        )
    tensors: dict[str, torch.Tensor] = {}

    def leaf(path: str, value: Any) -> Any:
        if value is None or type(value) is str:
            return value
        stored = _tensor(path, value)
        if stored is None:
            raise _unfit(path, value)
        kind, tensor = stored
        name = free_name(path, tensors)
        tensors[name] = tensor
        return _Stored(kind, name)

    skeleton = mapped(dict(state_dict), leaf, is_leaf=_is_row, most=_MOST_DEPTH)
    if STRUCTURE in tensors:
        raise FormatError("this name is reserved", tensor=STRUCTURE)
    text = json.dumps(_encoded(skeleton, ""), ensure_ascii=True, separators=(",", ":"))
    tensors[STRUCTURE] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return tensors


def unflattened(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The state dict that became these tensors.

    Raises:
        FormatError: They are those of something else.
    """
    structure = tensors.get(STRUCTURE)
    if structure is None or structure.dtype is not torch.uint8 or structure.dim() != 1:
        raise FormatError(
            "this state is not that of an optimizer",
            expected=f"a tensor {STRUCTURE}, as save_optimizer_state_dict writes it",
            remedy="load its tensors with load_state_dict",
        )
    text = as_bytes(structure.cpu().contiguous())
    found = _decoded(parse_json(bytes(text), _WHAT, most=_LARGEST), tensors)
    if not isinstance(found, dict):
        raise _damaged(type(found).__name__)
    return found


def _is_row(value: Any) -> bool:
    """Whether a list or tuple is a row of numbers of one kind, which is one tensor."""
    if not isinstance(value, list | tuple) or not value:
        return False
    kind = type(value[0])
    return kind in _NUMBERS and all(type(one) is kind for one in value)


def _tensor(path: str, value: Any) -> tuple[str, torch.Tensor] | None:
    """What kind of leaf a value is, and the tensor that it is stored as; None if there is none."""
    if isinstance(value, torch.Tensor):
        return "tensor", value.detach()
    row = isinstance(value, list | tuple)
    first = value[0] if row else value
    kind = float if isinstance(first, float) else type(first)  # numpy.float64 is a float
    if kind not in _NUMBERS:
        return None
    try:
        tensor = torch.tensor(value, dtype=_NUMBERS[kind])
    except (OverflowError, RuntimeError, ValueError):
        raise FormatError(
            "this number of an optimizer's state is too large; nothing was stored",
            tensor=path,
            expected="less than 2^63",
        ) from None
    return f"{type(value).__name__}[{kind.__name__}]" if row else kind.__name__, tensor


def _encoded(value: Any, path: str) -> Any:
    """The nesting as JSON: lists and texts are themselves, all else is an object of one entry."""
    if isinstance(value, _Stored):
        return {value.kind: value.name}
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise _unfit(under(path, key), key)
        pairs = [[key, _encoded(one, under(path, key))] for key, one in value.items()]
        return {type(value).__name__: pairs}
    if isinstance(value, list | tuple):
        items = [_encoded(one, under(path, at)) for at, one in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    return value


def _decoded(node: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if node is None or isinstance(node, str):
        return node
    if isinstance(node, list):
        return [_decoded(one, tensors) for one in node]
    if not isinstance(node, dict) or len(node) != 1:
        raise _damaged(node)
    ((kind, inside),) = node.items()
    if kind == "tuple" and isinstance(inside, list):
        return tuple(_decoded(one, tensors) for one in inside)
    if kind in _DICTS and isinstance(inside, list):
        pairs = [pair for pair in inside if isinstance(pair, list) and len(pair) == 2]
        if len(pairs) != len(inside) or any(type(key) not in (str, int) for key, _ in pairs):
            raise _damaged(kind)
        return _DICTS[kind]({key: _decoded(one, tensors) for key, one in pairs})
    if not isinstance(inside, str) or inside not in tensors:
        raise _damaged(inside)
    return _leaf(kind, tensors[inside])


def _leaf(kind: str, tensor: torch.Tensor) -> Any:
    """The value that was stored as a tensor."""
    if kind == "tensor":
        return tensor
    outer, bracket, inner = kind.partition("[")
    number = _BY_NAME.get(inner.removesuffix("]") if bracket else outer)
    if bracket and outer not in ("list", "tuple"):
        raise _damaged(kind)
    if number is None or tensor.dtype is not _NUMBERS[number] or tensor.dim() != bool(bracket):
        raise _damaged(kind)
    values = tensor.tolist()
    return tuple(values) if outer == "tuple" else values


def _unfit(path: str, value: Any) -> FormatError:
    return FormatError(
        "this entry of an optimizer's state cannot be stored; nothing was stored",
        tensor=path[:200],
        expected="tensors, numbers, texts, None, and lists, tuples and mappings of them, with keys "
        "that are texts or whole numbers",
        found=f"{type(value).__module__}.{type(value).__qualname__}",
        remedy="put a plain value in its place, or leave it out",
    )


def _damaged(found: object) -> FormatError:
    return FormatError(f"{_WHAT} is damaged", found=str(found)[:60])
