"""What is encoded comes back, of every type, size and nearness to a base."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate.digests import Digest
from mlstate.encoded import Base, decode_verified, encode, estimated_size, saves_enough
from mlstate.errors import FormatError
from mlstate.format.encoded_object import BLOCK, HEAD_SIZE, element_width, index_size
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import BITS, TensorSpec
from mlstate.pickled.source import BytesSource
from mlstate.tensors import tensor_sources
from mlstate.tensors.memory import as_bytes
from tests.encoded.making import (
    KINDS,
    base_of,
    decoded,
    digest_of,
    encoded,
    pair_of,
    spec_of,
)

BY_WIDTH = {1: "U8", 2: "BF16", 4: "F32", 8: "F64"}


@settings(deadline=None, max_examples=150)
@given(
    dtype=st.sampled_from(list(BITS)),
    size=st.integers(0, 300) | st.integers(4000, 40_000),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
)
def test_every_type_and_size_comes_back(dtype, size, kind, seed):
    spec = spec_of(dtype, size)
    data, base = pair_of(spec, kind, seed)
    file = encoded(spec, data, base)
    assert decoded(spec, file, base) == data
    assert len(file) <= HEAD_SIZE + spec.nbytes + index_size(spec)


@settings(deadline=None, max_examples=100)
@given(
    numbers=st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 2), min_size=1, max_size=50),
    width=st.sampled_from(list(BY_WIDTH)),
    alone=st.booleans(),
)
def test_every_bit_pattern_comes_back(numbers, width, alone):
    spec = TensorSpec(BY_WIDTH[width], (len(numbers),))
    mask = (1 << 8 * width) - 1
    data, base = (
        b"".join((pair[i] & mask).to_bytes(width, "little") for pair in numbers) for i in (0, 1)
    )
    given_base = None if alone else base
    assert decoded(spec, encoded(spec, data, given_base), given_base) == data


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", list(BY_WIDTH))
@pytest.mark.parametrize("size", [BLOCK - 8, BLOCK, BLOCK + 8, 3 * BLOCK + 80])
def test_both_sides_of_a_block_s_end_come_back(kind, width, size):
    spec = spec_of(BY_WIDTH[width], size)
    data = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator())
    base = data.clone()
    if kind == "near":
        base[::width] += 3
    elif kind == "sparse":
        base[:: 100 * width] += 3
        base[width - 1 :: 700 * width] += 90
    elif kind == "far":
        base = base.roll(1)
    elif kind == "zeros":
        data.zero_()
    others = None if kind in ("none", "zeros") else bytes(as_bytes(base))
    given_data = bytes(as_bytes(data))
    file = encoded(spec, given_data, others, threads=3)
    # By digest: pytest would take minutes to show how megabytes differ.
    assert Digest.of(decoded(spec, file, others, threads=2)) == Digest.of(given_data)
    assert Digest.of(file) == Digest.of(encoded(spec, given_data, others, threads=1))
    assert len(file) <= HEAD_SIZE + spec.nbytes + index_size(spec)
    if kind in ("equal", "zeros"):  # a byte for each plane of each block, and its entry
        assert len(file) == HEAD_SIZE + index_size(spec) * 5 // 4


@pytest.mark.parametrize("kind", ["none", "near"])
def test_infinities_and_nans_come_back_bit_by_bit(kind):
    patterns = [0x7F800000, 0xFF800000, 0x7FC00001, 0xFFFFFFFF, 0x80000000, 0, 1, 0x7F7FFFFF]
    data = struct.pack("<8I", *patterns) * 1000
    base = None if kind == "none" else struct.pack("<8I", *reversed(patterns)) * 1000
    for dtype in ("F32", "BF16", "F16", "F64", "C64", "F8_E5M2"):
        spec = spec_of(dtype, len(data))
        assert decoded(spec, encoded(spec, data, base), base) == data


def test_a_tensor_that_is_not_contiguous_comes_back():
    weights = torch.randn(300, 200).to(torch.bfloat16)
    near = weights + 0.001 * torch.randn(300, 200).to(torch.bfloat16)
    data = []
    for tensor in (weights, near):
        (source,) = tensor_sources({"w": tensor.t()})
        with source.data() as content:
            data.append(bytes(content))
    file = encoded(source.spec, data[1], data[0])
    assert len(file) < 0.8 * source.spec.nbytes
    raw = torch.frombuffer(bytearray(decoded(source.spec, file, data[0])), dtype=torch.bfloat16)
    assert torch.equal(raw.view(200, 300), near.t())


@pytest.mark.parametrize("readonly", [False, True])
def test_memory_of_any_kind_is_taken_and_not_changed(readonly):
    spec = spec_of("F32", 40_000)
    data, base = pair_of(spec, "near", 1)
    kinds = (
        (bytes, memoryview) if readonly else (bytearray, lambda given: memoryview(bytearray(given)))
    )
    for kind in kinds:
        held, held_base = kind(data), kind(base)
        file = b"".join(encode(held, spec, Base(digest_of(spec, base), held_base)))
        assert (held, held_base) == (data, base)
        assert decoded(spec, file, held_base) == data
        assert held_base == base


def test_what_comes_out_is_held_against_its_name():
    spec = spec_of("BF16", 40_000)
    data, base = pair_of(spec, "near", 2)
    out = bytearray(spec.nbytes)
    ref = TensorRef(spec, digest_of(spec, data))
    decode_verified(BytesSource(encoded(spec, data, base)), ref, memoryview(out), base)
    assert out == data


def test_weights_near_their_base_take_a_part_of_their_size():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(600_000, generator=generator) * 0.02
    near = weights * (1 + 1e-3 * torch.randn(600_000, generator=generator))
    for dtype, name, most, alone in (
        (torch.bfloat16, "BF16", 0.10, 0.70),
        (torch.float32, "F32", 0.60, 0.88),
    ):
        spec = TensorSpec(name, (600_000,))
        data = bytes(as_bytes(near.to(dtype)))
        base = base_of(spec, bytes(as_bytes(weights.to(dtype))))
        for given_base, limit in ((base, most), (None, alone)):
            size = sum(map(len, encode(data, spec, given_base)))
            assert size < limit * spec.nbytes
            assert saves_enough(size, spec)
            assert abs(estimated_size(data, spec, given_base) - size) < 0.05 * spec.nbytes


@pytest.mark.parametrize(("every", "most"), [(10, 0.045), (100, 0.008), (5000, 0.001)])
def test_what_changed_in_few_places_takes_little_more_than_these(every, most):
    generator = torch.Generator().manual_seed(0)
    spec = TensorSpec("BF16", (600_000,))
    weights = torch.randn(600_000, generator=generator).to(torch.bfloat16).view(torch.int16)
    changed = torch.randint(every, (600_000,), generator=generator) == 0
    data, base = (bytes(as_bytes(one)) for one in (weights + changed.short(), weights))
    file = encoded(spec, data, base)
    assert len(file) < most * spec.nbytes
    assert Digest.of(decoded(spec, file, base)) == Digest.of(data)


def test_whole_numbers_that_repeat_are_found_to_do_so():
    spec = TensorSpec("I64", (40_000,))
    data = struct.pack("<400q", *range(400)) * 100
    assert len(encoded(spec, data)) < 0.05 * spec.nbytes


def test_noise_saves_nothing_and_takes_no_more_than_its_index():
    spec = spec_of("F32", 2 * BLOCK + 4000)
    data, _ = pair_of(spec, "none", 3)
    file = encoded(spec, data)
    assert len(file) == HEAD_SIZE + spec.nbytes + index_size(spec)
    assert not saves_enough(len(file), spec)
    assert not saves_enough(estimated_size(data, spec), spec)


@pytest.mark.parametrize("dtype", ["F32", "U8"])
def test_nothing_is_encoded_as_nothing(dtype):
    spec = TensorSpec(dtype, (0, 3))
    file = encoded(spec, b"")
    assert len(file) == HEAD_SIZE == estimated_size(b"", spec)
    assert decoded(spec, file) == b""


def test_data_of_another_size_are_refused():
    spec = TensorSpec("F32", (100,))
    for data, base in ((bytes(399), None), (bytes(400), bytes(404))):
        given_base = None if base is None else Base(digest_of(spec, bytes(400)), base)
        with pytest.raises(FormatError, match="wrong length"):
            encode(data, spec, given_base)
        with pytest.raises(FormatError, match="wrong length"):
            estimated_size(data, spec, given_base)


def test_a_chain_has_an_end():
    spec = TensorSpec("F32", (100,))
    base = bytes(400)
    assert b"".join(encode(base, spec, base_of(spec, base, depth=7)))[11] == 8
    with pytest.raises(FormatError, match="depth"):
        encode(base, spec, base_of(spec, base, depth=8))


def test_every_width_has_a_type():
    assert {element_width(TensorSpec(name, (2,))) for name in BITS} == set(BY_WIDTH)
