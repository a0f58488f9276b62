"""Damaged stores and caches, read by everything and mended."""

import pytest

from tests.torture.rot import attack


@pytest.mark.parametrize("group", range(4))
def test_what_is_damaged_gives_right_bytes_or_a_typed_error_and_can_be_mended(group, ram, figures):
    for seed in range(5 * group, 5 * group + 5):
        attack(seed, ram, figures)
    assert figures["stores mended"] == 5
    assert figures["typed errors of damage"]
