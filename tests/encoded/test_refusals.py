"""Damaged and hostile encoded objects: an error that says why, before memory is spent."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate.digests import Digest
from mlstate.encoded import Base, decode_verified, encode, read_head
from mlstate.encoded.zstd import zstd
from mlstate.errors import FormatError, IntegrityError, MlstateError
from mlstate.format.encoded_object import BLOCK, HEAD_SIZE, Kind
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import TensorSpec
from mlstate.pickled.source import BytesSource
from tests.encoded.making import (
    base_of,
    decoded,
    digest_of,
    encoded,
    file_of,
    pair_of,
    spec_of,
)

SPEC = TensorSpec("U8", (20_000,))
FRAME = zstd.compress(bytes(20_000))
Options = zstd.CompressionParameter


def header(descriptor: int, size: int, width: int) -> bytes:
    """The header of a frame that claims a size, and of what it needs."""
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + size.to_bytes(width, "little")


def streamed() -> bytes:
    """A frame whose size was not known when it began."""
    compressor = zstd.ZstdCompressor()
    return compressor.compress(bytes(20_000)) + compressor.flush()


FRAMES = {
    "a good one": FRAME,
    "of more bytes": zstd.compress(bytes(20_001)),
    "of far more bytes": zstd.compress(bytes(50 << 20)),
    "of fewer bytes": zstd.compress(bytes(19_999)),
    "of no bytes": zstd.compress(b""),
    "that claims 2 GiB": header(0xA0, 2 << 30, 4) + FRAME[7:],
    "that claims 16 EiB": header(0xE0, (1 << 64) - 1, 8) + FRAME[7:],
    "that claims its size and gives more": header(0x60, 20_000 - 256, 2)
    + zstd.compress(bytes(30_000))[7:],
    "that claims its size and gives less": header(0x60, 20_000 - 256, 2)
    + zstd.compress(bytes(10_000))[7:],
    "without a size": streamed(),
    "with a window of 3.75 TiB": b"\x28\xb5\x2f\xfd\x00\xff" + FRAME[7:],
    "with a checksum": zstd.compress(bytes(20_000), options={Options.checksum_flag: 1}),
    "with a dictionary": header(0x61, 7, 1) + (20_000 - 256).to_bytes(2, "little") + FRAME[7:],
    "cut short": FRAME[:-1],
    "cut in its header": FRAME[:6],
    "cut in its magic": FRAME[:3],
    "followed by another": FRAME + FRAME,
    "followed by a byte": FRAME + b"\0",
    "after one that is skipped": b"\x50\x2a\x4d\x18\x01\0\0\0x" + FRAME,
    "no frame": bytes(100),
    "of a reserved block": FRAME[:7] + b"\xff" * 10,
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_is_exactly_one_of_the_plane_s_size(name):
    file = file_of(SPEC, (Kind.ZSTD, FRAMES[name]))
    if name == "a good one":
        assert decoded(SPEC, file) == bytes(20_000)
        return
    with pytest.raises(FormatError, match="not one zstd frame"):
        decoded(SPEC, file)


ZEROS = bytes(20_000)
MOST = 20_000 // 8
LISTS = {
    "a good one": bytes([255, 0, 3, 0, 9, 9]),
    "of the most entries": bytes(MOST) + b"x" * MOST,
    "of as far as the plane": bytes([255] * 78 + [31] + [0] * 79),
    "of no entries": b"",
    "of half an entry": bytes(3),
    "of more entries than an eighth": bytes(2 * MOST + 2),
    "of a place after the plane": bytes([255] * 78 + [32] + [0] * 79),
    "of far places": bytes([255] * MOST + [1] * MOST),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_sparse_plane_lists_an_eighth_of_its_bytes_at_most(name):
    file = file_of(SPEC, (Kind.SPARSE, zstd.compress(LISTS[name])), base=digest_of(SPEC, ZEROS))
    if list(LISTS).index(name) < 3:
        found = decoded(SPEC, file, ZEROS)
        assert found[256] == (9 if name == "a good one" else found[256])
        assert sum(map(bool, found)) == {"a good one": 2, "of the most entries": MOST}.get(name, 0)
        return
    with pytest.raises(FormatError, match="sparse plane"):
        decoded(SPEC, file, ZEROS)


@pytest.mark.parametrize("name", FRAMES)
def test_a_list_of_a_sparse_plane_is_one_frame(name):
    base = digest_of(SPEC, ZEROS)
    with pytest.raises(FormatError, match=r"sparse plane|not one zstd frame"):
        decoded(SPEC, file_of(SPEC, (Kind.SPARSE, FRAMES[name]), base=base), ZEROS)


def test_a_frame_s_size_in_one_byte_is_read():
    spec = TensorSpec("U8", (200,))
    frame = zstd.compress(bytes(200))
    assert frame[4] >> 6 == 0
    assert decoded(spec, file_of(spec, (Kind.ZSTD, frame))) == bytes(200)


@pytest.mark.parametrize("size", [0, HEAD_SIZE, HEAD_SIZE + 3, HEAD_SIZE + 4 + 20_001, 1 << 40])
def test_a_size_that_is_not_possible_is_refused_before_anything_is_read(size):
    class Unread:
        def __init__(self) -> None:
            self.size = size

        def read(self, start: int, size: int) -> bytes:
            raise AssertionError("something was read")

    with pytest.raises(FormatError, match="size that is not possible"):
        read_head(Unread(), SPEC)


def test_every_length_of_a_cut_file_is_refused():
    spec = spec_of("BF16", 4000)
    file = encoded(spec, *pair_of(spec, "near", 1))
    for size in range(0, len(file), 7):
        with pytest.raises(FormatError):
            decoded(spec, file[:size], bytes(4000))
    with pytest.raises(FormatError):
        decoded(spec, file + b"\0", bytes(4000))


@settings(deadline=None, max_examples=150)
@given(
    dtype=st.sampled_from(["U8", "BF16", "F32", "F64"]),
    kind=st.sampled_from(["none", "near", "sparse"]),
    changes=st.lists(
        st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=3
    ),
)
def test_a_changed_byte_never_passes(dtype, kind, changes):
    spec = spec_of(dtype, 5000)
    data, base = pair_of(spec, kind, 1)
    file = bytearray(encoded(spec, data, base))
    good = bytes(file)
    for place, bits in changes:
        file[place % len(file)] ^= bits
    if file == good:
        return
    out = bytearray(spec.nbytes)
    ref = TensorRef(spec, digest_of(spec, data))
    try:
        decode_verified(BytesSource(bytes(file)), ref, memoryview(out), base)
    except MlstateError:
        return
    # What is not read: the depth, while a base is there; bits of a zstd frame that mean nothing;
    # and another digest of the base, which is the caller's to look up by.
    assert out == data


def test_another_tensor_is_refused_by_its_digest():
    data, base = pair_of(SPEC, "near", 1)
    other, _ = pair_of(SPEC, "near", 2)
    file = encoded(SPEC, data, base)
    with pytest.raises(IntegrityError, match="something else than its name says") as caught:
        decode_verified(
            BytesSource(file),
            TensorRef(SPEC, digest_of(SPEC, other)),
            memoryview(bytearray(SPEC.nbytes)),
            base,
        )
    assert caught.value.expected == digest_of(SPEC, other)
    assert caught.value.found == digest_of(SPEC, data)


def test_a_damaged_base_is_the_one_to_blame():
    data, base = pair_of(SPEC, "near", 1)
    file = encoded(SPEC, data, base)
    damaged = b"x" + base[1:]
    with pytest.raises(IntegrityError, match="base of an encoded object is damaged") as caught:
        decode_verified(
            BytesSource(file),
            TensorRef(SPEC, digest_of(SPEC, data)),
            memoryview(bytearray(SPEC.nbytes)),
            damaged,
        )
    assert caught.value.expected == digest_of(SPEC, base)
    assert caught.value.found == digest_of(SPEC, damaged)


def test_a_base_is_given_where_it_is_named_and_only_there():
    data, base = pair_of(SPEC, "near", 1)
    with pytest.raises(FormatError, match="the base that it names"):
        decoded(SPEC, encoded(SPEC, data, base))
    with pytest.raises(FormatError, match="the base that it names"):
        decoded(SPEC, encoded(SPEC, data), base)


def test_memory_and_base_have_the_size_of_the_tensor():
    data, base = pair_of(SPEC, "near", 1)
    file = encoded(SPEC, data, base)
    with pytest.raises(FormatError, match="wrong length"):
        decoded(SPEC, file, base + b"\0")
    with pytest.raises(FormatError, match="wrong length"):
        decode_verified(
            BytesSource(file),
            TensorRef(SPEC, digest_of(SPEC, data)),
            memoryview(bytearray(SPEC.nbytes - 1)),
            base,
        )


@pytest.mark.parametrize(
    "spec",
    [TensorSpec("U8", (20_001,)), TensorSpec("BF16", (10_000,)), TensorSpec("F32", (5000,))],
)
def test_the_form_of_a_tensor_of_another_width_or_size_is_refused(spec):
    file = encoded(SPEC, bytes(20_000))
    with pytest.raises(FormatError):
        decoded(spec, file)


def test_a_bool_that_is_neither_0_nor_1_is_refused_though_its_digest_is_right():
    spec = TensorSpec("BOOL", (20_000,))
    data = bytes(19_999) + b"\2"
    with pytest.raises(FormatError, match="BOOL"):
        decode_verified(
            BytesSource(encoded(spec, data)),
            TensorRef(spec, digest_of(spec, data)),
            memoryview(bytearray(20_000)),
        )


def test_an_error_in_one_block_ends_all(monkeypatch):
    spec = spec_of("F32", 4 * BLOCK)
    data, base = bytes(spec.nbytes), struct.pack("<f", 1.0) * (spec.nbytes // 4)
    file = bytearray(b"".join(encode(data, spec, base_of(spec, base))))
    size = len(file)
    file[-16] ^= 0xFF  # the first plane of the last block
    with pytest.raises(FormatError):
        decoded(spec, bytes(file), base)
    assert len(file) == size


def test_a_base_is_a_digest():
    with pytest.raises(FormatError, match="digest"):
        Base(Digest("0"), b"")
