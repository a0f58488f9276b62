"""The encoded index of a state: what is written is read, and nothing else."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate.digests import Digest
from mlstate.errors import FormatError
from mlstate.format import layout
from mlstate.format.encoded_index import MAX_INDEX, EncodedForm, EncodedIndex
from mlstate.format.encoded_object import DEPTH_LIMIT, HEAD_SIZE

STATE = Digest.of(b"a state")
ONE, OTHER, ABSENT = (Digest.of(name) for name in (b"one", b"other", b"absent"))
INDEX = EncodedIndex(
    STATE, {ONE: EncodedForm(700, OTHER, 2), OTHER: EncodedForm(900, ABSENT, 1, plain=True)}
)


def said(**changes):
    return {**json.loads(INDEX.encode()), **changes}


def written(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


sizes = st.integers(HEAD_SIZE, 2**63 - 1)
digests = st.binary(max_size=8).map(Digest.of)


@st.composite
def indexes(draw):
    """Chains, and objects that are encoded alone, or against one that is not encoded."""
    forms = {}
    for digest in draw(st.lists(digests, unique=True, max_size=12)):
        lower = [d for d, form in forms.items() if form.depth < DEPTH_LIMIT]
        base = draw(st.sampled_from([None, ABSENT, *lower]))
        below = forms[base].depth if base in forms else 0
        depth = 0 if base is None else draw(st.integers(below + 1, DEPTH_LIMIT))
        forms[digest] = EncodedForm(draw(sizes), base, depth, draw(st.booleans()))
    return EncodedIndex(draw(digests), forms)


@settings(deadline=None)
@given(index=indexes())
def test_an_index_is_read_as_it_was_written(index):
    data = index.encode()
    assert EncodedIndex.parse(data, index.state) == index
    assert EncodedIndex.parse(memoryview(data), index.state) == index
    assert data.isascii()
    backwards = EncodedIndex(index.state, dict(reversed(index.forms.items())))
    assert backwards.encode() == data


@settings(deadline=None)
@given(index=indexes(), data=st.data())
def test_one_index_has_one_text(index, data):
    changed = bytearray(index.encode())
    place = data.draw(st.integers(0, len(changed) - 1))
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        read = EncodedIndex.parse(bytes(changed), index.state)
    except FormatError:
        return
    assert read != index
    assert read.encode() == bytes(changed)


def test_the_text_is_that_of_the_format():
    of_one = f'"{ONE}":{{"base":"{OTHER}","depth":2,"size":700}}'
    of_other = f'"{OTHER}":{{"base":"{ABSENT}","depth":1,"size":900}}'
    entries = ",".join(sorted([of_one, of_other]))
    text = f'{{"encoded":{{{entries}}},"mlstate":"1","plain":["{OTHER}"],"state":"{STATE}"}}'
    assert INDEX.encode() == text.encode()
    alone = EncodedIndex(STATE, {ONE: EncodedForm(64)})
    assert f'{{"{ONE}":{{"size":64}}}}' in alone.encode().decode()


def test_the_path_is_apart_from_those_of_encoded_objects():
    path = layout.encoded_index_path(STATE)
    assert path == f"encoded/states/{STATE[:2]}/{STATE[2:]}"
    assert layout.digest_of_object_path(path) is None


ENTRY = {"base": OTHER, "depth": 2, "size": 700}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff{}", "not valid JSON"),
        (INDEX.encode() + b" ", "not written as it must be"),
        (INDEX.encode()[:-1], "not valid JSON"),
        (written(said(mlstate="2")), "form that is not known"),
        (written(said(mlstate=1)), "form that is not known"),
        (written(said(state=str(ONE))), "of another state"),
        (written(said(state=[])), "of another state"),
        (written(said(encoded=[])), "no list of objects"),
        (written(said(plain={})), "no list of objects"),
        (written(said(more=1)), "not written as it must be"),
        (written(said(plain=[OTHER, OTHER])), "not written as it must be"),
        (written(said(plain=[ABSENT])), "not written as it must be"),
        (written(said(plain=[1, OTHER])), "not written as it must be"),
        (written(said(encoded={"ab": ENTRY})), "not a BLAKE3 digest"),
        (written(said(encoded={ONE: 1})), "entry that is malformed"),
        (written(said(encoded={ONE: {}})), "size that is not possible"),
        (written(said(encoded={ONE: {"size": 63}})), "size that is not possible"),
        (written(said(encoded={ONE: {"size": 2**63}})), "size that is not possible"),
        (written(said(encoded={ONE: {"size": 700.0}})), "size that is not possible"),
        (written(said(encoded={ONE: {"size": True}})), "size that is not possible"),
        (written(said(encoded={ONE: {**ENTRY, "size": -1}})), "size that is not possible"),
        (written(said(encoded={ONE: {**ENTRY, "depth": 9}})), "depth that does not fit"),
        (written(said(encoded={ONE: {**ENTRY, "depth": 0}})), "depth that does not fit"),
        (written(said(encoded={ONE: {**ENTRY, "depth": "2"}})), "depth that does not fit"),
        (written(said(encoded={ONE: {"depth": 1, "size": 70}})), "depth that does not fit"),
        (written(said(encoded={ONE: {**ENTRY, "base": 5}})), "not a BLAKE3 digest"),
        (written(said(encoded={ONE: {**ENTRY, "base": ONE}})), "no lower depth"),
        (written(said(encoded={ONE: {"depth": 0, "size": 70}}, plain=[])), "as it must be"),
        (written(said(encoded={ONE: {**ENTRY, "base": None}})), "depth that does not fit"),
        (
            written(said(encoded={ONE: ENTRY, OTHER: {**ENTRY, "base": ABSENT}})),
            "no lower depth",
        ),
        (b" " * (MAX_INDEX + 1), "too long"),
        (b'{"encoded":' + b"[" * 5000, "nested at most|more in it"),
        (b'{"a":' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_anything_else_is_refused_with_the_reason(data, message):
    with pytest.raises(FormatError) as caught:
        EncodedIndex.parse(data, STATE)
    assert any(
        one in f"{caught.value.message} {caught.value.expected}" for one in message.split("|")
    )
    assert len(str(caught.value)) < 1000
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_circle_cannot_be_made():
    with pytest.raises(FormatError, match="no lower depth"):
        EncodedIndex(STATE, {ONE: EncodedForm(64, OTHER, 2), OTHER: EncodedForm(64, ONE, 1)})


def test_an_index_that_nobody_would_read_is_not_written():
    form = EncodedForm(2**62, ABSENT, 1)
    many = EncodedIndex(STATE, {Digest(f"{n:064x}"): form for n in range(190_000)})
    with pytest.raises(FormatError, match="too long"):
        many.encode()
