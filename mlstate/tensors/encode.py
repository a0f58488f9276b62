"""Tensor sources of a state dict: what may be stored, and the bytes that stand for a value."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mlstate.digests import Bytes
from mlstate.errors import FormatError
from mlstate.format.encode import EncodedState, OnObject, TensorSource, encode_state
from mlstate.format.state_object import check_name
from mlstate.format.tensor_object import TensorSpec
from mlstate.parallel import ProcessLock
from mlstate.tensors.fit import EXTRA_STATE, UNINITIALIZED
from mlstate.tensors.memory import as_bytes, is_shard, may_be_sharded, spec_of

__all__ = [
    "any_sharded",
    "encode_tensors",
    "state_digest",
    "stored_form",
    "tensor_sources",
]

_ONE_COPY = ProcessLock(again=True)
"""Held while a tensor that had to be copied is in use: such copies in one thread at a time, for
memory. A thread that needs two at once has them."""


def state_digest(state_dict: Mapping[str, torch.Tensor]) -> str:
    """The state digest of a mapping from names to tensors; nothing is stored.

    The same mapping has the same digest on every machine, from every container, in every order.

    Args:
        state_dict: Tensors of any device and of every dtype that the format has.

    Returns:
        64 hex digits.

    Raises:
        FormatError: An entry cannot be stored; the error names it.

    Example:
        >>> import torch
        >>> state_digest({"bias": torch.zeros(2)})[:16]
        'e049fd1fca90afc6'
    """
    return encode_tensors(state_dict).digest


def encode_tensors(
    state_dict: Mapping[str, torch.Tensor], on_object: OnObject | None = None
) -> EncodedState:
    """Encode a state dict; see `encode_state` and `tensor_sources`."""
    return encode_state(tensor_sources(state_dict), on_object)


def tensor_sources(state_dict: Mapping[str, Any]) -> list[TensorSource]:
    """The entries of a state dict as sources; all are looked at before anything is stored.

    Of an entry that is not a plain tensor a `FormatError` gives the name, and says what to do.
    """
    if not isinstance(state_dict, Mapping):
        raise FormatError(
            "a state dict is a mapping from names to tensors",
            found=type(state_dict).__name__,
            remedy="of a model, give model.state_dict()",
        )
    if sys.byteorder != "little":
        raise FormatError("only little-endian machines are supported")
    return [_source(name, value) for name, value in state_dict.items()]


def any_sharded(state_dict: Mapping[str, Any]) -> bool:
    """Whether an entry is a DTensor; see `is_shard`."""
    if not may_be_sharded() or not isinstance(state_dict, Mapping):
        return False
    return any(map(is_shard, state_dict.values()))


@dataclass(frozen=True)
class _Source:
    """A tensor of a state dict; see `TensorSource`."""

    name: str
    tensor: torch.Tensor
    spec: TensorSpec

    @property
    def memory(self) -> Hashable:
        tensor = self.tensor
        return (
            tensor.device,
            tensor.data_ptr(),
            tensor.stride(),
            tensor.is_conj(),
            tensor.is_neg(),
        )

    @contextmanager
    def data(self) -> Iterator[Bytes]:
        if _lies_as_stored(self.tensor):
            yield as_bytes(self.tensor)
        else:
            with _ONE_COPY:
                yield as_bytes(stored_form(self.tensor))


def _lies_as_stored(tensor: torch.Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
        and tensor.dtype is not torch.bool
    )


def stored_form(tensor: torch.Tensor) -> torch.Tensor:
    """The value as it is stored: on the CPU, resolved, contiguous, BOOL as 0 and 1."""
    if _lies_as_stored(tensor):
        return tensor
    plain = tensor.cpu().resolve_conj().resolve_neg()
    if plain.dtype is torch.bool:
        # The memory of a bool can hold other bytes, seen through a view; they all mean true.
        return plain.view(torch.uint8).ne(0).contiguous()
    if plain.element_size() == 1:  # torch cannot copy every one of these types
        return plain.view(torch.uint8).contiguous()
    return plain.contiguous()


def _source(name: object, value: object) -> _Source:
    try:
        checked = check_name(name)
        tensor = _plain_tensor(value)
        return _Source(checked, tensor, spec_of(tensor))
    except FormatError as error:
        error.tensor = name if isinstance(name, str) else repr(name)
        error.message = f"this entry of the state dict cannot be stored: {error.message}"
        if isinstance(value, Mapping) and any(isinstance(v, torch.Tensor) for v in value.values()):
            error.remedy = f"if the weights are inside, give state_dict[{name!r}]"
        if isinstance(name, str) and name.rpartition(".")[2] == EXTRA_STATE:
            error.remedy = (
                "have get_extra_state() of the module return a tensor, which is stored; or keep "
                "it as a file of the state (files=), and call set_extra_state() after a load"
            )
        raise


def _plain_tensor(value: object) -> torch.Tensor:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        from mlstate.tensors.arrays import tensor_of

        return tensor_of(value)
    if not isinstance(value, torch.Tensor):
        remedy = "store what is not a tensor as a file of the state (files=) or in meta="
        if isinstance(value, Mapping | list | tuple):
            remedy = "store a flat mapping from names to tensors; an optimizer's state is nested"
        raise FormatError(
            "it is not a tensor", expected="a tensor", found=type(value).__name__, remedy=remedy
        )
    if isinstance(value, UNINITIALIZED):
        raise FormatError(
            "it is a parameter of a lazy module, and has no shape and no values yet",
            found=type(value).__name__,
            remedy="run one batch through the model before it is saved",
        )
    if type(value) not in (torch.Tensor, torch.nn.Parameter):  # Buffer makes plain tensors
        raise FormatError(
            "it is a subclass of Tensor, whose values a plain tensor would not keep",
            expected="exactly Tensor, Parameter or Buffer",
            found=type(value).__name__,
            remedy=_as_plain(value),
        )
    if value.layout is not torch.strided or value.is_nested:
        raise FormatError(
            "it is not a dense tensor",
            expected=torch.strided,
            found="nested" if value.is_nested else value.layout,
            remedy="store to_dense(), or indices and values under names of their own",
        )
    if value.is_meta:
        raise FormatError(
            "it is on the meta device and has no values", remedy="load or initialise the model"
        )
    if not _has_storage(value):
        raise FormatError(
            "its memory is not there, or not all of it",
            remedy="gather or initialise it first: sharding and transforms give such tensors",
        )
    return value.detach()


def _as_plain(value: torch.Tensor) -> str:
    """How a subclass of Tensor becomes a plain one, by what it is for."""
    if hasattr(value, "full_tensor"):  # DTensor: a part of it is on each rank
        return (
            "gather it first, on all ranks: tensor.full_tensor(), or get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True)) of torch.distributed.checkpoint"
        )
    if "dequantize" in vars(type(value)):
        return "convert it to a plain tensor first: tensor.dequantize()"
    return "if its values are all that counts: tensor.as_subclass(torch.Tensor)"


def _has_storage(tensor: torch.Tensor) -> bool:
    """Whether all of a tensor's memory is its own: reading beyond would crash or store garbage."""
    if not tensor.numel():
        return True
    try:
        if tensor._is_zerotensor() or not tensor.data_ptr():
            return False
        if tensor.is_contiguous():  # most are, and this takes less time
            end = tensor.storage_offset() * tensor.element_size() + tensor.nbytes
            return end <= tensor.untyped_storage().nbytes()
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in steps)
        return (last + 1) * tensor.element_size() <= tensor.untyped_storage().nbytes()
    except RuntimeError:  # inside a transform of torch.func there is no memory to speak of
        return False
