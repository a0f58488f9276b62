"""How near tensors are, from 4 KiB of each."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlstate.encoded import distance, sample_ranges
from mlstate.format.encoded_object import element_width
from mlstate.format.tensor_object import BITS, TensorSpec
from mlstate.tensors.memory import TORCH_DTYPES, as_bytes

COUNT = 50_000


def sample(tensor: torch.Tensor, spec: TensorSpec) -> bytes:
    view = as_bytes(tensor)
    return b"".join(view[part.start : part.stop] for part in sample_ranges(spec))


def weights(seed: int) -> torch.Tensor:
    return 0.02 * torch.randn(COUNT, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "far"), [("F32", 0.85), ("BF16", 0.65), ("F16", 0.75)])
def test_related_tensors_are_nearer_the_less_they_were_changed(name, far):
    spec, dtype = TensorSpec(name, (COUNT,)), TORCH_DTYPES[name]
    base, noise = weights(1), weights(2)
    found = [
        distance(sample((base + part * noise).to(dtype), spec), sample(base.to(dtype), spec), spec)
        for part in (0.0, 1e-5, 1e-3, 1e-2, 1e-1)
    ]
    assert found[0] == 0
    assert found == sorted(found)
    unrelated = distance(sample(noise.to(dtype), spec), sample(base.to(dtype), spec), spec)
    assert found[3] < 0.8 * unrelated
    assert far < unrelated <= 1


@given(dtype=st.sampled_from(list(BITS)), size=st.integers(0, 100_000))
def test_a_sample_is_4_kib_of_whole_elements(dtype, size):
    spec = TensorSpec(dtype, (2 * size,))
    ranges = sample_ranges(spec)
    assert sum(map(len, ranges)) == min(spec.nbytes, 4096)
    for one, following in pairwise(ranges):
        assert one.stop <= following.start
    assert all(part.start % element_width(spec) == 0 for part in ranges)
    assert ranges[-1].stop <= spec.nbytes


@pytest.mark.parametrize(
    ("dtype", "one", "other", "expected"),
    [
        ("U8", b"\x00\x05", b"\xff\x05", 1 / 16),  # 0 - 255 is 1: one of eight bits, and none
        ("BF16", b"\x00\x00", b"\x01\x00", 1 / 16),
        ("BF16", b"\x00\x80", b"\x00\x00", 1.0),
        ("F32", b"\x00\x00\x01\x00", bytes(4), 17 / 32),
        ("I64", b"\xff" * 8, bytes(8), 1 / 64),
        ("F32", b"", b"", 0.0),
    ],
)
def test_it_is_the_mean_bit_length_of_the_difference(dtype, one, other, expected):
    spec = TensorSpec(dtype, (len(one) * 8 // BITS[dtype],))
    assert distance(one, other, spec) == expected


def test_samples_of_different_sizes_are_no_pair():
    with pytest.raises(ValueError, match="8 and 4 bytes"):
        distance(bytes(8), bytes(4), TensorSpec("F32", (2,)))
