"""The head and the index of an encoded object: what is written is read, and nothing else."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate.digests import Digest
from mlstate.errors import FormatError
from mlstate.format.encoded_object import (
    BLOCK,
    DEPTH_LIMIT,
    HEAD_SIZE,
    Head,
    Kind,
    Method,
    Part,
    element_width,
    encode_index,
    index_size,
    parse_index,
)
from mlstate.format.tensor_object import BITS, TensorSpec

SPEC = TensorSpec("F32", (5000,))
BASE = Digest.of(b"a base")


@settings(deadline=None)
@given(
    dtype=st.sampled_from(list(BITS)),
    size=st.integers(0, 2**40),
    depth=st.integers(0, DEPTH_LIMIT),
)
def test_a_head_is_read_as_it_was_written(dtype, size, depth):
    spec = TensorSpec(dtype, (2 * size,))
    head = Head.of(spec, BASE if depth else None, depth)
    data = head.encode()
    assert len(data) == HEAD_SIZE
    assert Head.parse(data, spec) == Head.parse(memoryview(data), spec) == head


@settings(deadline=None)
@given(place=st.integers(0, HEAD_SIZE - 1), bit=st.integers(0, 7), depth=st.sampled_from([0, 3]))
def test_a_head_with_any_other_bit_is_refused_or_says_something_else(place, bit, depth):
    head = Head.of(SPEC, BASE if depth else None, depth)
    changed = bytearray(head.encode())
    changed[place] ^= 1 << bit
    try:
        read = Head.parse(changed, SPEC)
    except FormatError:
        return
    assert depth
    assert place in (9, 11) or place >= 32
    assert read != head
    assert read.encode() == changed


@pytest.mark.parametrize(
    ("place", "value", "found", "remedy"),
    [
        (8, 2, "version 2", "newer"),
        (8, 0, "version 0", None),
        (9, 2, "method 2", "newer"),
        (9, 4, "method 4", "newer"),
        (9, 0, "method 0", None),
        (10, 2, "elements of 2 bytes", None),
        (11, 9, "9 with a base", None),
        (11, 0, None, None),  # there is a digest of a base
        (12, 1, None, None),
        (16, 0, "19968 bytes", None),
        (23, 255, "bytes", None),
        (31, 1, None, None),
    ],
)
def test_what_a_head_must_not_say_is_named(place, value, found, remedy):
    changed = bytearray(Head.of(SPEC, BASE, 1).encode())
    changed[place] = value
    with pytest.raises(FormatError) as caught:
        Head.parse(changed, SPEC)
    assert (found or "") in str(caught.value.found or "")
    assert (caught.value.remedy is None) == (remedy is None)
    assert (remedy or "") in (caught.value.remedy or "")


def test_only_differences_may_be_sparse():
    assert Head.of(SPEC).method is Method.PLANES
    assert Head.of(SPEC, BASE, 1).method is Method.SPARSE_PLANES
    earlier = replace(Head.of(SPEC, BASE, 1), method=Method.PLANES)
    assert Head.parse(earlier.encode(), SPEC) == earlier
    changed = bytearray(Head.of(SPEC).encode())
    changed[9] = Method.SPARSE_PLANES
    with pytest.raises(FormatError, match="not known") as caught:
        Head.parse(changed, SPEC)
    assert caught.value.remedy is None


@pytest.mark.parametrize("size", [0, 8, HEAD_SIZE - 1, HEAD_SIZE + 1])
def test_a_head_of_another_length_is_refused(size):
    data = (Head.of(SPEC).encode() + b"\0")[:size]
    with pytest.raises(FormatError, match="not an encoded object"):
        Head.parse(data, SPEC)


@pytest.mark.parametrize(("base", "depth"), [(None, 1), (BASE, 0), (BASE, 9), (BASE, -1)])
def test_a_depth_that_does_not_fit_the_base_is_refused(base, depth):
    with pytest.raises(FormatError, match="depth"):
        Head.of(SPEC, base, depth)


def test_a_base_has_a_lower_depth():
    deep, flat, alone = Head.of(SPEC, BASE, 2), Head.of(SPEC, BASE, 1), Head.of(SPEC)
    deep.check_base(flat)
    deep.check_base(alone)
    for base in (deep, Head.of(SPEC, BASE, 3)):
        with pytest.raises(FormatError, match="lower depth"):
            deep.check_base(base)


@pytest.mark.parametrize(
    ("dtype", "width"), [("F4", 1), ("BOOL", 1), ("BF16", 2), ("C64", 4), ("F32", 4), ("I64", 8)]
)
def test_the_width_of_an_element(dtype, width):
    assert element_width(TensorSpec(dtype, (2,))) == width
    assert Head.of(TensorSpec(dtype, (2,))).encode()[10] == width


@st.composite
def layouts(draw):
    """A tensor, and planes for each of its blocks as a writer could have them."""
    spec = TensorSpec(
        *draw(
            st.sampled_from(
                [
                    ("U8", (10,)),
                    ("BF16", (BLOCK,)),
                    ("F32", (300_000,)),
                    ("F64", (BLOCK // 8 + 1,)),
                    ("I8", (0,)),
                ]
            )
        )
    )
    method = draw(st.sampled_from(Method))
    width, blocks, remaining = element_width(spec), [], spec.nbytes
    while remaining:
        elements = min(remaining, BLOCK) // width
        remaining -= elements * width
        parts = []
        while len(parts) < width:
            kinds = [Part(Kind.RAW, elements), Part(Kind.CONSTANT, 1)]
            if elements > 1:
                kinds.append(Part(Kind.ZSTD, draw(st.integers(1, elements - 1))))
            if method is Method.SPARSE_PLANES and elements >= 8 and len(parts) >= width - 2:
                kinds.append(Part(Kind.SPARSE, draw(st.integers(1, elements - 1))))
            if len(parts) % 2 == 0 and len(parts) + 1 < width - 2:
                kinds.append(Part(Kind.PAIR, 2 * elements))
            parts.append(draw(st.sampled_from(kinds)))
            if parts[-1].kind is Kind.PAIR:
                parts.append(Part(Kind.PAIR, 0))
        blocks.append(tuple(parts))
    return spec, blocks, method


@settings(deadline=None)
@given(layouts())
def test_an_index_is_read_as_it_was_written(layout):
    spec, written, method = layout
    data = encode_index(written)
    size = HEAD_SIZE + len(data) + sum(part.length for parts in written for part in parts)
    assert len(data) == index_size(spec)
    blocks = parse_index(data, spec, size, method)
    assert [block.parts for block in blocks] == written
    assert sum(block.elements for block in blocks) * element_width(spec) == spec.nbytes
    position = HEAD_SIZE
    for block in blocks:
        assert block.start == position
        position += block.length
    for other in (size - 1, size + 1):
        with pytest.raises(FormatError, match="size"):
            parse_index(data, spec, other, method)


PAIR = [(Kind.PAIR, 10_000), (Kind.PAIR, 0)]
RAW = [(Kind.RAW, 5000)]


@pytest.mark.parametrize(
    "parts",
    [
        [(Kind.RAW, 4999), *RAW * 3],
        [*RAW * 3, (Kind.RAW, 5001)],
        [(Kind.RAW, 0), *RAW * 3],
        [(Kind.CONSTANT, 0), *RAW * 3],
        [(Kind.CONSTANT, 2), *RAW * 3],
        [(Kind.ZSTD, 0), *RAW * 3],
        [(Kind.ZSTD, 5000), *RAW * 3],
        [(Kind.ZSTD, (1 << 30) - 1), *RAW * 3],
        [(Kind.PAIR, 10_000), *RAW * 3],
        [*RAW, *PAIR, *RAW],
        [*RAW * 2, *PAIR],
        [(Kind.PAIR, 9999), (Kind.PAIR, 0), *RAW * 2],
        [(Kind.PAIR, 10_000), (Kind.PAIR, 10_000), *RAW * 2],
        [(Kind.PAIR, 0), (Kind.PAIR, 10_000), *RAW * 2],
        [(Kind.RAW, 5000), (Kind.PAIR, 0), *RAW * 2],
    ],
)
def test_a_length_that_no_writer_gives_is_refused(parts):
    data = struct.pack("<4I", *(kind << 30 | length for kind, length in parts))
    size = HEAD_SIZE + len(data) + sum(length for _, length in parts)
    with pytest.raises(FormatError, match="not possible"):
        parse_index(data, SPEC, size)


@pytest.mark.parametrize(("dtype", "size"), [("U8", 5000), ("BF16", 5000)])
def test_narrow_elements_have_no_pairs(dtype, size):
    spec = TensorSpec(dtype, (size,))
    words = [Kind.PAIR << 30 | 2 * size, Kind.PAIR << 30][: element_width(spec)]
    with pytest.raises(FormatError, match="not possible"):
        parse_index(struct.pack(f"<{len(words)}I", *words), spec, HEAD_SIZE + 2 * size + 8)


@pytest.mark.parametrize(
    ("dtype", "planes"), [("U8", [0]), ("BF16", [0, 1]), ("F32", [2, 3]), ("F64", [6, 7])]
)
def test_the_two_highest_planes_of_differences_may_be_sparse(dtype, planes):
    spec = TensorSpec(dtype, (5000,))
    width = element_width(spec)
    for plane in range(width):
        words = [Kind.CONSTANT << 30 | 1] * width
        words[plane] = 3 << 30 | 700
        data = struct.pack(f"<{width}I", *words)
        size = HEAD_SIZE + len(data) + 700 + width - 1
        if plane in planes:
            (block,) = parse_index(data, spec, size, Method.SPARSE_PLANES)
            assert block.parts[plane] == Part(Kind.SPARSE, 700)
        else:
            with pytest.raises(FormatError, match="not possible"):
                parse_index(data, spec, size, Method.SPARSE_PLANES)
        with pytest.raises(FormatError, match="not possible"):
            parse_index(data, spec, size, Method.PLANES)


@pytest.mark.parametrize(("elements", "length"), [(5000, 0), (5000, 5000), (7, 6), (1, 1)])
def test_a_sparse_plane_has_a_length_below_its_own(elements, length):
    spec = TensorSpec("U8", (elements,))
    data = struct.pack("<I", 3 << 30 | length)
    with pytest.raises(FormatError, match="not possible"):
        parse_index(data, spec, HEAD_SIZE + 4 + length, Method.SPARSE_PLANES)


@pytest.mark.parametrize("size", [0, 12, 20, 32])
def test_an_index_of_another_length_is_refused(size):
    words = struct.pack("<8I", *[Kind.RAW << 30 | 5000] * 4, *[Kind.CONSTANT << 30 | 1] * 4)
    with pytest.raises(FormatError, match="cut short"):
        parse_index(words[:size], SPEC, HEAD_SIZE + 20_000 + 16)
