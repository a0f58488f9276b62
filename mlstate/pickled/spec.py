"""What the format calls a tensor of a checkpoint."""

from __future__ import annotations

from mlstate.errors import FormatError
from mlstate.format.state_object import check_name
from mlstate.format.tensor_object import TensorSpec
from mlstate.pickled.dtypes import FORMAT_NAMES
from mlstate.pickled.tensor import CheckpointTensor

__all__ = ["spec_of"]


def spec_of(name: str, tensor: CheckpointTensor) -> TensorSpec:
    """The element type and shape of a tensor under this name.

    Raises:
        FormatError: The format cannot hold it.
    """
    try:
        check_name(name)
        dtype, shape = FORMAT_NAMES.get(tensor.dtype), tensor.shape
        if dtype is None:
            raise FormatError(
                "the format has no such element type",
                expected=", ".join(FORMAT_NAMES.values()),
                found=f"torch.{tensor.dtype}",
            )
        if dtype == "F4":  # torch counts pairs, the format counts elements
            if not shape:
                raise FormatError("a scalar of two 4-bit elements has no shape in the format")
            shape = (*shape[:-1], 2 * shape[-1])
        return TensorSpec(dtype, shape)
    except FormatError as error:
        error.tensor = name
        error.message = f"this entry of the state dict cannot be stored: {error.message}"
        raise
