"""Arrays of NumPy as tensors, and tensors as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mlstate.errors import FormatError, concerning

if TYPE_CHECKING:
    import numpy

__all__ = ["array_of", "arrays_of", "tensor_of"]

_BFLOAT16 = "bfloat16"


def tensor_of(array: Any) -> torch.Tensor:
    """The tensor with the values of an array; its memory, where torch can have that.

    Raises:
        FormatError: An element type that torch has not, such as texts and objects.
    """
    import numpy

    if array.dtype.name == _BFLOAT16:  # of ml_dtypes, which JAX uses
        return tensor_of(array.view(numpy.uint16)).view(torch.bfloat16)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # Torch takes no negative strides, and warns of memory that may not be written.
    if any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise FormatError(
            "it is an array of an element type that is not stored",
            expected="numbers or booleans",
            found=f"dtype {array.dtype}",
            remedy="convert it with astype, or store it as a file of the state (files=)",
        ) from None


def array_of(tensor: torch.Tensor) -> numpy.ndarray[Any, Any]:
    """The array with the memory of a tensor of the CPU.

    Raises:
        FormatError: NumPy has no such element type.
    """
    try:
        return tensor.numpy()
    except TypeError:
        raise FormatError(
            "NumPy has no such element type",
            found=str(tensor.dtype),
            remedy="load it without framework=, and convert it: tensor.float().numpy()",
        ) from None


def arrays_of(tensors: dict[str, torch.Tensor]) -> dict[str, numpy.ndarray[Any, Any]]:
    """The arrays of a state; see `array_of`."""
    arrays = {}
    for name, tensor in tensors.items():
        with concerning(tensor=name):
            arrays[name] = array_of(tensor)
    return arrays
