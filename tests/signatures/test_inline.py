"""Signatures at the end of the text that they are of: laws, and every damaged byte."""

from __future__ import annotations

import pickle
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate.errors import FormatError, SignatureError
from mlstate.manifests.state_signatures import StateSignatures, StateText
from mlstate.signatures.allowed import parse_allowed_signers
from mlstate.signatures.check import Signers
from mlstate.signatures.inline import is_signed, join_signature, split_signature
from mlstate.states import StateKey
from tests.signatures.test_vectors import LINE, VECTORS

SIGNED = VECTORS["state-file"]["file"].encode()
SIGNATURE = split_signature(SIGNED, "it")[1]
KEY = StateKey.parse("pytorch.net.empty")
CHECK = StateSignatures(Signers(parse_allowed_signers(LINE.encode(), "allowed")))


@given(st.binary().map(lambda data: data + b"\n"))
def test_what_was_joined_is_split(content):
    joined = join_signature(content, SIGNATURE)
    assert split_signature(joined, "it") == (content, SIGNATURE)
    assert is_signed(joined)


@given(st.lists(st.sampled_from(SIGNED.splitlines(keepends=True)) | st.binary(max_size=5)))
def test_of_any_lines_what_is_signed_comes_first_and_is_not_changed(lines):
    data = b"".join(lines)
    with suppress(SignatureError):
        content, signature = split_signature(data, "it")
        assert data.startswith(content)
        if signature is None:
            assert content == data
        else:
            assert join_signature(content, signature) == data


@pytest.mark.parametrize("bit", range(8))
def test_no_changed_byte_is_taken(bit):
    assert CHECK.checked(StateText(SIGNED, KEY, "it", "it"))
    for position in range(len(SIGNED)):
        changed = bytearray(SIGNED)
        changed[position] ^= 1 << bit
        with pytest.raises(SignatureError):
            CHECK.checked(StateText(bytes(changed), KEY, "it", "it"))


def test_no_part_of_it_is_taken():
    for length in range(len(SIGNED)):
        with pytest.raises(SignatureError):
            CHECK.checked(StateText(SIGNED[:length], KEY, "it", "it"))


def test_another_key_is_refused_whoever_signed():
    with pytest.raises(FormatError, match="exactly the state"):
        CHECK.checked(StateText(SIGNED, StateKey.parse("pytorch.net.other"), "it", "it"))


def test_what_a_store_needs_to_know_goes_to_other_processes():
    assert pickle.loads(pickle.dumps(CHECK)) == CHECK
