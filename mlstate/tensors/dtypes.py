"""The format's element types as torch has them."""

from __future__ import annotations

from functools import lru_cache

import torch

from mlstate.errors import FormatError
from mlstate.format.dtypes import TensorSpec

__all__ = ["TORCH_DTYPES", "spec_of", "torch_dtype", "torch_shape"]

_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F4": "float4_e2m1fn_x2",
}

TORCH_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, attribute)
    for name, attribute in _TORCH_NAMES.items()
    if hasattr(torch, attribute)  # an older torch lacks the newest types
}
"""Element type of the format -> torch dtype, for those that this torch has."""

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    """Element type and shape of a tensor, as the format writes them.

    Raises:
        FormatError: The format has no such element type.
    """
    return _spec(tensor.dtype, tuple(tensor.shape))


@lru_cache(4096)
def _spec(kind: torch.dtype, shape: tuple[int, ...]) -> TensorSpec:
    """A spec that was made before: most tensors of a model are like another one."""
    try:
        dtype = _NAMES[kind]
    except KeyError:
        raise FormatError(
            "the format has no such element type",
            expected=", ".join(_NAMES.values()),
            found=kind,
        ) from None
    if dtype == "F4":  # torch counts pairs, the format counts elements
        if not shape:
            raise FormatError("a scalar of two 4-bit elements has no shape in the format")
        shape = (*shape[:-1], 2 * shape[-1])
    return TensorSpec(dtype, shape)


def torch_dtype(spec: TensorSpec) -> torch.dtype:
    """The torch dtype of a stored tensor.

    Raises:
        FormatError: This version of torch lacks it.
    """
    try:
        return TORCH_DTYPES[spec.dtype]
    except KeyError:
        raise FormatError(
            f"torch {torch.__version__} has no element type for {spec.dtype}",
            remedy="install a newer torch",
        ) from None


def torch_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of a stored tensor as torch counts it.

    Raises:
        FormatError: An odd number of 4-bit elements in the last dimension.
    """
    if spec.dtype != "F4":
        return spec.shape
    if not spec.shape or spec.shape[-1] % 2:
        raise FormatError("torch holds 4-bit elements in pairs", found=spec.shape)
    return (*spec.shape[:-1], spec.shape[-1] // 2)
