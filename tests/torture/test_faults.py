"""Errors, short writes and kills at system calls: a part of all cases, the same each time."""

import errno

import pytest

from tests.torture.faults import attack, calls_of, cases
from tests.torture.operations import OPERATIONS
from tests.torture.shim import FAULTS, Fault

CASES = 12


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_fault_at_any_call_leaves_the_old_or_the_new_and_a_second_try_works(
    attacked, name, ram, figures
):
    count = calls_of(attacked, name, ram)
    step = max(1, count * len(FAULTS) // CASES)
    for at, fault in cases(count, FAULTS, 0, step):
        attack(attacked, name, at, fault, folder=ram, figures=figures)
    if name == "save again":
        assert count == 0, "a save that changes nothing writes nothing"
    else:
        assert figures["kills"], "no kill came through"
        assert figures["injected errors"], "no error came through"


def test_every_kind_of_call_is_met(attacked, ram):
    """The shim sees the calls that the operations make."""
    met = set()
    # Several threads write: which call has which number differs from one time to the next.
    for turn, name in enumerate(("save", "delete", *["save"] * 4)):
        if turn >= 2 and {"write", "writev"} <= met:
            break
        for at in range(1, calls_of(attacked, name, ram) + 1):
            root = ram / f"{name} {turn} {at}"
            root.mkdir()
            OPERATIONS[name].prepare(root)
            outcome = attacked.run(name, root, at=at, fault=Fault("kill before"))
            assert outcome.killed == (outcome.hits > 0)
            met.add(outcome.call)
    assert met >= {"open", "mkdir", "write", "writev", "fsync", "rename", "link", "unlink"}
    assert met >= {"ftruncate", "utimens"}


def test_an_error_of_the_system_is_told_as_it_is(attacked, ram):
    OPERATIONS["save"].prepare(ram)
    outcome = attacked.run("save", ram, at=1, fault=Fault("error", errno.ENOSPC, sticky=True))
    assert (outcome.error, outcome.errno) == ("OSError", errno.ENOSPC)
    assert "No space left" in outcome.text
