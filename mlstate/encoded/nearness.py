"""Nearness: how far a tensor is from one that could be its base, from 4 KiB of each."""

from __future__ import annotations

import torch

from mlstate.digests import Bytes
from mlstate.encoded.elements import integers
from mlstate.format.encoded_object import element_width
from mlstate.format.tensor_object import TensorSpec

__all__ = ["distance", "sample_ranges"]

_RUNS, _RUN = 8, 512


def sample_ranges(spec: TensorSpec) -> list[range]:
    """The ranges of a tensor's data that its sample consists of: 4 KiB, spread over it."""
    if spec.nbytes <= _RUNS * _RUN:
        return [range(spec.nbytes)]
    step = spec.nbytes // _RUNS // 8 * 8  # where an element of any width begins
    return [range(number * step, number * step + _RUN) for number in range(_RUNS)]


def distance(sample: Bytes, other: Bytes, spec: TensorSpec) -> float:
    """The share of an element's bits that tell it from the element in the same place.

    It is the mean bit length of the difference of both, as whole numbers: 0 for equal samples, and
    0.7 (bf16) to 0.9 (fp32) for tensors that have nothing to do with each other.

    Args:
        sample: The bytes of a tensor in its `sample_ranges`, one range after the other.
        other: The same of another tensor.
        spec: The type and shape of both.

    Raises:
        ValueError: The samples have different sizes.
    """
    if len(sample) != len(other):
        raise ValueError(
            f"samples of {len(sample)} and {len(other)} bytes are not of equal tensors"
        )
    if not len(sample):
        return 0.0
    width = element_width(spec)
    with torch.inference_mode():
        differences = integers(sample, width) - integers(other, width)
        if width == 1:
            differences = differences.view(torch.int8)
        lengths = torch.frexp(differences.double().abs())[1]
    return min(1.0, float(lengths.double().mean()) / (8 * width))
