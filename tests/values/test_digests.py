"""Digests: what one may look like, and what it is of."""

from __future__ import annotations

import copy
import pickle
import shutil
import subprocess

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate.digests import Digest, Hasher
from mlstate.errors import FormatError

EMPTY = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
ABC = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"


def test_digests_are_those_of_the_published_vectors():
    assert Digest.of() == Digest.of(b"") == EMPTY
    assert Digest.of(b"abc") == ABC


@pytest.mark.parametrize(
    "text",
    {
        "empty": "",
        "prefix": EMPTY[:16],
        "63 digits": EMPTY[:63],
        "65 digits": EMPTY + "0",
        "upper case": EMPTY.upper(),
        "one upper case digit": "A" + EMPTY[1:],
        "newline": EMPTY + "\n",
        "newline in the count": EMPTY[:63] + "\n",
        "space": " " + EMPTY[:63],
        "not hex": "g" + EMPTY[1:],
        "other digits": "\u0661" + EMPTY[1:],
        "fullwidth": "\uff41" + EMPTY[1:],
        "prefixed": "0x" + EMPTY[2:],
        "labelled": "blake3:" + EMPTY,
    }.values(),
)
def test_anything_but_64_lower_case_hex_digits_is_refused(text):
    with pytest.raises(FormatError) as caught:
        Digest(text)
    assert caught.value.found == repr(text)
    assert "64" in str(caught.value)


def test_a_hostile_text_does_not_fill_the_message():
    with pytest.raises(FormatError) as caught:
        Digest("a" * 1_000_000)
    assert len(str(caught.value)) < 1000


@given(st.binary(min_size=32, max_size=32))
def test_every_256_bits_are_a_digest(data):
    assert Digest(data.hex()) == data.hex()
    assert str(Digest(data.hex())) == data.hex()


@given(st.lists(st.binary(max_size=100)))
def test_how_bytes_are_cut_does_not_matter(pieces):
    hasher = Hasher()
    for piece in pieces:
        hasher.update(piece)
    whole = blake3.blake3(b"".join(pieces)).hexdigest()
    assert hasher.digest() == Digest.of(*pieces) == Digest.of(b"".join(pieces)) == whole


@given(st.binary(max_size=300))
def test_kinds_of_bytes_do_not_matter(data):
    assert Digest.of(data) == Digest.of(bytearray(data)) == Digest.of(memoryview(data))


def test_a_hasher_can_go_on_after_its_digest_was_asked():
    hasher = Hasher()
    hasher.update(b"a")
    first = hasher.digest()
    assert hasher.digest() == first == Digest.of(b"a")
    hasher.update(b"bc")
    assert hasher.digest() == ABC


def test_a_digest_is_a_value():
    digest = Digest(ABC)
    assert type(Digest.of(b"abc")) is type(pickle.loads(pickle.dumps(digest))) is Digest
    assert pickle.loads(pickle.dumps(digest)) == copy.deepcopy(digest) == digest
    assert {digest: 1}[ABC] == 1
    with pytest.raises(AttributeError):
        digest.note = "x"


@pytest.mark.skipif(shutil.which("b3sum") is None, reason="needs b3sum")
def test_b3sum_prints_the_same(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    printed = subprocess.run(
        ["b3sum", str(tmp_path / "file")], capture_output=True, check=True, text=True
    )
    assert printed.stdout.split()[0] == Digest.of(b"abc")
