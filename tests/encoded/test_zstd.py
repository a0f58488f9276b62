"""The two ways to compress a plane, and what stands in for one that this zstd does not have."""

from __future__ import annotations

import random

import pytest

from mlstate.encoded import zstd
from mlstate.encoded.zstd import Compressors, content_size, decompressed

SIZE = 200_000


def skewed(seed: int = 1) -> bytes:
    """Bytes without order that are mostly 0: what differences of weights look like."""
    chance = random.Random(seed)
    return bytes(chance.choices(range(8), [60, 10, 8, 7, 6, 5, 3, 1], k=SIZE))


@pytest.mark.parametrize("search", [False, True])
def test_a_compressor_is_used_again_and_again(search):
    compressors = Compressors()
    for data in (skewed(), bytes(SIZE), b"a", skewed(2), bytes(range(256)) * 10):
        frame = compressors.compress(data, search=search)
        assert decompressed(frame, len(data)) == data


def test_bytes_without_order_are_smaller_without_a_search():
    compressors = Compressors()
    found = {search: len(compressors.compress(skewed(), search=search)) for search in (0, 1)}
    assert found[0] < 0.95 * found[1]


def test_runs_are_smaller_with_a_search():
    data = bytes(20_000).join([b"x"] * 11)
    compressors = Compressors()
    found = {search: len(compressors.compress(data, search=search)) for search in (0, 1)}
    assert found[1] < found[0]


@pytest.mark.parametrize("search", [False, True])
def test_parts_of_one_frame_have_codes_of_their_own(search):
    chance = random.Random(1)
    parts = [bytes(chance.choices(range(200), k=50_000)), bytes(chance.choices([0, 255], k=50_000))]
    compressors = Compressors()
    for given in (parts, parts[:1], [*parts, b""], parts[::-1]):
        frame = compressors.compress(*given, search=search)
        assert decompressed(frame, content_size(frame)) == b"".join(given)
    together = compressors.compress(b"".join(parts), search=search)
    assert len(compressors.compress(*parts, search=search)) < 0.99 * len(together)


def test_a_zstd_without_the_parameter_searches(monkeypatch):
    monkeypatch.setattr(zstd, "_LITERALS", 9999)
    compressors = Compressors()
    data = skewed()
    for search in (False, True):
        frame = compressors.compress(data, search=search)
        assert decompressed(frame, SIZE) == data
        assert frame == Compressors().compress(data, search=True)
