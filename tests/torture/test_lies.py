"""Mirrors that lie at random."""

import pytest

from tests.torture.lies import attack


@pytest.mark.parametrize("group", range(3))
def test_what_a_liar_sends_is_right_or_refused(group, ram, figures):
    for seed in range(8 * group, 8 * group + 8):
        attack(seed, ram, figures)
    assert figures["lies of servers"] > 8
