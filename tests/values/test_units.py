"""Sizes as texts: what is none is refused by a typed error, however long it is."""

import pytest

from mlstate.errors import FormatError
from mlstate.units import parse_size


@pytest.mark.parametrize("text", ["1" * 5000, "1" * 400 + "GB", "9" * 41, "1" * 39 + "." + "1"])
def test_numbers_without_end_are_no_sizes(text):
    with pytest.raises(FormatError, match="not a size"):
        parse_size(text)


def test_sizes_are_read():
    assert parse_size(" 12 MB ") == 12_000_000
    assert parse_size("9" * 40) == 10**40 - 1
