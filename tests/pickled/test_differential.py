"""Files of torch.save, whole and damaged: what is read of them is what torch reads."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pickled.differential import check_mutated, check_whole, mutated

SHORT = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@SHORT
@given(st.integers(0, 2**32))
def test_whole_files_are_read_bit_for_bit_as_torch_reads_them(seed):
    check_whole(random.Random(seed))


@SHORT
@given(st.integers(0, 2**32), st.integers(1, 8))
def test_what_is_taken_of_a_damaged_file_torch_takes_alike(seed, times):
    rng = random.Random(seed)
    data = check_whole(rng)
    for _ in range(times):
        check_mutated(rng, mutated(rng, data))
