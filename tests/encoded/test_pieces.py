"""What is decoded piece by piece is what is decoded at once, of every form."""

from __future__ import annotations

import io

import pytest

from mlstate.encoded.pieces import decoded_pieces
from mlstate.errors import FormatError
from mlstate.format.encoded_object import BLOCK
from mlstate.pickled.source import BytesSource
from tests.encoded.making import KINDS, encoded, pair_of, spec_of


def pieces(spec, file, base):
    given = None if base is None else io.BytesIO(base).read
    return b"".join(map(bytes, decoded_pieces(BytesSource(file), spec, given)))


@pytest.mark.parametrize("kind", [*KINDS, "few"])
@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64", "U8"])
def test_all_forms_come_out(dtype, kind):
    spec = spec_of(dtype, 2 * BLOCK + 4096)
    data, base = pair_of(spec, "equal" if kind == "few" else kind, seed=1)
    if kind == "few":  # in one of a thousand elements: the highest planes of differences are sparse
        changed = bytearray(data)
        changed[1::8000] = bytes(byte ^ 3 for byte in changed[1::8000])
        data = bytes(changed)
    assert pieces(spec, encoded(spec, data, base), base) == data


def test_it_is_decoded_with_the_base_that_it_names():
    spec = spec_of("BF16", 20_000)
    data, base = pair_of(spec, "near", seed=2)
    file = encoded(spec, data, base)
    with pytest.raises(FormatError, match="the base that it names"):
        pieces(spec, file, None)
    with pytest.raises(FormatError, match="wrong length"):
        pieces(spec, file, base[:-2])
