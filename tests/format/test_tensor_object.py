"""Tensor objects: one tensor, one safetensors file, its data at byte 4096. No torch here."""

from __future__ import annotations

import json
from math import prod

import pytest
import safetensors
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate.digests import Digest
from mlstate.errors import FormatError
from mlstate.format.tensor_object import (
    BITS,
    DATA_OFFSET,
    TensorCheck,
    TensorSpec,
    check_values,
    header,
    object_size,
)


@st.composite
def specs(draw):
    dtype = draw(st.sampled_from(sorted(BITS)))
    shape = draw(st.lists(st.integers(0, 12), max_size=5))
    if prod(shape) * BITS[dtype] % 8:
        shape.append(2)
    return TensorSpec(dtype, tuple(shape))


@given(specs())
@settings(deadline=None)
def test_the_data_start_at_4096_exactly(spec):
    start = header(spec)
    assert len(start) == DATA_OFFSET == 4096
    assert start[:8] == (4088).to_bytes(8, "little")
    text = start[8:].rstrip(b" ").decode("ascii")
    entry = {"data_offsets": [0, spec.nbytes], "dtype": spec.dtype, "shape": list(spec.shape)}
    assert text == json.dumps({"tensor": entry}, sort_keys=True, separators=(",", ":"))


@given(specs(), st.data())
@settings(deadline=None)
def test_safetensors_reads_the_tensor(spec, data):
    content = data.draw(st.binary(min_size=64, max_size=64)) * (spec.nbytes // 64 + 1)
    content = content[: spec.nbytes]
    file = header(spec) + content
    assert len(file) == object_size(spec) == 4096 + spec.nbytes
    ((name, found),) = safetensors.deserialize(file)
    assert name == "tensor"
    assert found["dtype"] == spec.dtype
    assert tuple(found["shape"]) == spec.shape
    assert bytes(found["data"]) == content


def test_a_tensor_object_byte_for_byte():
    text = b'{"tensor":{"data_offsets":[0,16384],"dtype":"F32","shape":[64,64]}}'
    expected = b"\xf8\x0f\0\0\0\0\0\0" + text + b" " * (4088 - len(text))
    assert header(TensorSpec("F32", (64, 64))) == expected
    digest = Digest.of(expected, bytes(16384))
    assert digest == blake3(expected + bytes(16384)).hexdigest()


@given(specs(), specs())
@settings(deadline=None)
def test_other_tensors_have_other_headers(a, b):
    assert (a == b) == (header(a) == header(b))


@pytest.mark.parametrize("dimensions", [0, 1, 8, 64, 1000])
def test_many_dimensions_fit(dimensions):
    spec = TensorSpec("U8", (1,) * dimensions)
    ((_, found),) = safetensors.deserialize(header(spec) + b"x")
    assert len(found["shape"]) == dimensions


def test_the_header_is_full_before_it_is_refused():
    room = 4088 - len(b'{"tensor":{"data_offsets":[0,1],"dtype":"U8","shape":[]}}')
    most = (room + 1) // 2  # each dimension is a digit, and commas between
    full = header(TensorSpec("U8", (1,) * most))
    assert len(full) == 4096
    assert len(full.rstrip(b" ")) >= 4095
    with pytest.raises(FormatError, match="too many dimensions"):
        header(TensorSpec("U8", (1,) * (most + 1)))


def test_object_size_of_the_largest_tensor():
    assert object_size(TensorSpec("U8", (2**62,))) == 2**62 + 4096


@pytest.mark.parametrize("size", [1, 1 << 20, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_bool_byte_is_0_or_1_wherever_it_lies(size, kind):
    spec = TensorSpec("BOOL", (size,))
    data = bytearray(b"\1\0" * (size // 2 + 1))[:size]
    check_values(spec, kind(data))
    for place in {0, size // 2, size - 1}:
        data[place] ^= 0x10
        with pytest.raises(FormatError, match="BOOL"):
            check_values(spec, kind(data))
        check_values(TensorSpec("U8", (size,)), kind(data))
        data[place] ^= 0x10


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 10_000])
def test_a_check_takes_pieces_of_any_size(size):
    spec = TensorSpec("BOOL", (5000,))
    whole = header(spec) + b"\1\0" * 2500
    check = TensorCheck(spec)
    for start in range(0, len(whole), size):
        check.update(memoryview(whole)[start : start + size])
    assert (check.size, check.digest()) == (len(whole), Digest.of(whole))
    assert check.problem(spec) is None
    assert "not the tensor" in check.problem(TensorSpec("BOOL", (50, 100))).message
    assert "not the tensor" in check.problem(TensorSpec("U8", (5000,))).message


@pytest.mark.parametrize("place", [0, 1, 4999])
@pytest.mark.parametrize("size", [1, 4097, 10_000])
def test_a_check_finds_a_bool_byte_that_is_none(place, size):
    spec = TensorSpec("BOOL", (5000,))
    data = bytearray(5000)
    data[place] = 2
    check = TensorCheck(spec)
    whole = header(spec) + data
    for start in range(0, len(whole), size):
        check.update(whole[start : start + size])
    assert "BOOL" in check.problem(spec).message
    assert check.digest() == Digest.of(whole)  # whatever its values are
