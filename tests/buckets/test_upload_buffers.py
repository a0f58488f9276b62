"""Uploads copy bytes into memory that is given back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate.buckets import upload
from mlstate.buckets.upload import chunks, copied


@pytest.fixture(scope="module", params=[1, 1 << 20], ids=["pages", "malloc"], autouse=True)
def limit(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upload, "_OWN", request.param)
        yield


@given(st.lists(st.binary(max_size=40)), st.integers(1, 50))
def test_chunks_are_the_bytes_in_pieces_of_one_size(parts, size):
    whole = b"".join(parts)
    assert [bytes(chunk) for chunk in chunks(parts, size)] == [
        whole[at : at + size] for at in range(0, len(whole), size)
    ]


@given(st.lists(st.binary(max_size=40)))
def test_a_copy_does_not_change_with_what_it_is_a_copy_of(parts):
    sources = [bytearray(part) for part in parts]
    copy = copied([memoryview(source) for source in sources])
    pieces = [*chunks([memoryview(source) for source in sources], 7)]
    for source in sources:
        source[:] = b"!" * len(source)
    assert bytes(copy) == b"".join(map(bytes, pieces)) == b"".join(parts)


def test_parts_of_other_types_are_copied_as_bytes():
    words = memoryview(b"abcdefgh").cast("I")
    assert bytes(copied([words, b"ij"])) == b"abcdefghij"
    assert [bytes(chunk) for chunk in chunks([words, b"ij"], 4)] == [b"abcd", b"efgh", b"ij"]
