"""Power cuts after any step of an operation, replayed: a part of all, the same each time."""

import pytest

from tests.torture.cuts import HISTORY, Recorded, cuts_of, record
from tests.torture.operations import OPERATIONS

EVERY = 6


@pytest.mark.parametrize("name", OPERATIONS)
def test_after_a_power_cut_what_had_returned_is_there_and_the_rest_whole_or_not_at_all(
    attacked, name, ram, figures
):
    recorded = record(attacked, name, ram)
    count = len(recorded.steps)
    for seed in range(2):
        moments = [*range(seed, count, EVERY), count]
        cuts_of(recorded, moments, seed, ram, figures)
    assert figures["power cuts"] >= count / EVERY


@pytest.mark.parametrize("kept", ["nothing", "files", "folders"])
def test_a_program_that_does_not_flush_is_found_out(attacked, kept, ram, figures):
    """The same recording without its flushes, or without those of folders or of files."""
    recorded = record(attacked, HISTORY, ram)
    folders = {step.path for step in recorded.steps if step.call == "mkdir"} | {"store", "."}
    steps = [
        step
        for step in recorded.steps
        if step.call != "fsync"
        or (kept == "files" and step.path not in folders)
        or (kept == "folders" and step.path in folders)
    ]
    assert len(steps) < len(recorded.steps)
    found = 0
    for at in range(20, len(steps), 9):
        try:
            cuts_of(Recorded(HISTORY, recorded.before, steps), [at], 1, ram, figures)
        except AssertionError:
            found += 1
    assert found > 3, "nobody noticed"
