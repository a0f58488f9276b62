"""The few functions of torch and Python whose results are known, made without calling them."""

from __future__ import annotations

from collections.abc import Callable

from mlstate.errors import FormatError
from mlstate.pickled.dtypes import ITEMSIZES, QUANTIZED
from mlstate.pickled.tensor import CheckpointTensor, StorageClaim, checked_tensor
from mlstate.pickled.values import Call, Global, Items, Pairs, Value

__all__ = ["dtype_of", "understand"]

_Arguments = list[Value]


def understand(call: Call) -> Value:
    """The value of a call that is known; the call itself, which stays undone, otherwise.

    Raises:
        FormatError: A tensor that its storage cannot hold, or arguments that no torch writes.
    """
    function = call.function
    if isinstance(function, Global) and isinstance(call.arguments, tuple | list):
        known = _KNOWN.get(str(function))
        if known is not None:
            return known(call, list(call.arguments))
    return call


def dtype_of(value: Value) -> str | None:
    """The name of the torch dtype that a global is; None if it is none."""
    if not isinstance(value, Global) or value.module != "torch":
        return None
    return value.name if value.name in ITEMSIZES or value.name in QUANTIZED else None


def _count(arguments: _Arguments, least: int, most: int) -> None:
    if not least <= len(arguments) <= most:
        raise FormatError(
            "a tensor in a checkpoint is described in a way that no torch writes",
            expected=f"{least} to {most} parts",
            found=len(arguments),
        )


def _check_grad(value: Value) -> None:
    if type(value) is not bool:
        raise FormatError("whether a tensor has gradients is neither true nor false")


def _metadata(value: Value) -> dict[Value, Value] | None:
    if value is None:
        return None
    if not isinstance(value, Pairs):
        raise FormatError("a tensor's metadata is no mapping")
    return dict(value.items()) if all(type(key) is str for key, _ in value.items()) else {"": 0}


def _tensor_v1(_call: Call, arguments: _Arguments) -> Value:
    _count(arguments, 4, 4)
    storage, offset, shape, strides = arguments
    return checked_tensor(storage, _storage_dtype(storage), offset, shape, strides)


def _tensor_v2(_call: Call, arguments: _Arguments) -> Value:
    _count(arguments, 6, 7)
    storage, offset, shape, strides, grad, _hooks, *metadata = arguments
    _check_grad(grad)
    flags = _metadata(metadata[0]) if metadata else None
    return checked_tensor(storage, _storage_dtype(storage), offset, shape, strides, metadata=flags)


def _tensor_v3(_call: Call, arguments: _Arguments) -> Value:
    _count(arguments, 7, 8)
    storage, offset, shape, strides, grad, _hooks, kind, *metadata = arguments
    _check_grad(grad)
    flags = _metadata(metadata[0]) if metadata else None
    dtype = dtype_of(kind)
    if dtype is None:
        raise FormatError("a tensor has an element type that is not read", found=str(kind)[:60])
    return checked_tensor(storage, dtype, offset, shape, strides, metadata=flags)


def _storage_dtype(storage: Value) -> str:
    return storage.dtype if isinstance(storage, StorageClaim) else ""


def _parameter(call: Call, arguments: _Arguments) -> Value:
    """What a parameter holds; that gradients are to be computed is no part of its value."""
    if not 1 <= len(arguments) <= 4 or not isinstance(arguments[0], CheckpointTensor):
        return call
    if len(arguments) > 1:
        _check_grad(arguments[1])
    return arguments[0] if len(arguments) < 4 or _harmless(arguments[3]) else call


def _harmless(state: Value) -> bool:
    """Whether attributes of a tensor leave its values alone."""
    parts = state if isinstance(state, tuple) else (state,)
    return all(
        not part
        or (isinstance(part, Pairs) and not any(key in part for key in ("data", "real", "imag")))
        for part in parts
    )


def _from_type(call: Call, arguments: _Arguments) -> Value:
    """A tensor that has attributes, and is of no other class than Tensor or Parameter."""
    if len(arguments) != 4 or str(arguments[1]) not in _PLAIN or not _harmless(arguments[3]):
        return call
    value = understand(Call(arguments[0], arguments[2]))
    return value if isinstance(value, CheckpointTensor) else call


_PLAIN = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")


def _mapping(call: Call, arguments: _Arguments) -> Value:
    pairs = Pairs(str(call.function).rpartition(".")[2])
    if not arguments:
        return pairs
    if len(arguments) != 1:
        return call
    given = arguments[0]
    entries = list(given.items()) if isinstance(given, Pairs) else given
    if not isinstance(entries, list | tuple) or (pairs.kind == "Counter" and entries is given):
        return call
    for entry in entries:
        if not isinstance(entry, list | tuple) or len(entry) != 2:
            return call
        pairs.put(*entry)
    return pairs


def _size(call: Call, arguments: _Arguments) -> Value:
    if len(arguments) == 1 and isinstance(arguments[0], tuple | list):
        return tuple(arguments[0])
    return call if arguments else ()


def _set(call: Call, arguments: _Arguments) -> Value:
    kind = str(call.function).rpartition(".")[2]
    if not arguments:
        return Items(kind)
    if len(arguments) == 1 and isinstance(arguments[0], tuple | list):
        return Items(kind, list(arguments[0]))
    return call


def _encode(call: Call, arguments: _Arguments) -> Value:
    """Bytes as protocol 2 has them: a text, and how it becomes bytes."""
    if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] != "latin1":
        return call
    try:
        return arguments[0].encode("latin-1")
    except UnicodeEncodeError:
        raise FormatError("a pickle has bytes that are none") from None


def _complex(call: Call, arguments: _Arguments) -> Value:
    if len(arguments) == 2 and all(type(part) in (float, int) for part in arguments):
        try:
            return complex(*arguments)
        except OverflowError:
            return call
    return call


_KNOWN: dict[str, Callable[[Call, _Arguments], Value]] = {
    "torch._utils._rebuild_tensor": _tensor_v1,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": _size,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.complex": _complex,
    "_codecs.encode": _encode,
}
