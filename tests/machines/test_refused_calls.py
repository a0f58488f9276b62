"""File systems that lack a call: a shim refuses one kind of call below a folder, always."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.machines.shim import OPTIONAL, environment

ROOT = Path(__file__).parents[2]
USUAL = {call: errors[:1] for call, errors in OPTIONAL.items()}
"""What is said most often."""


def outcomes(
    shim: Path, folder: Path, refusals: Mapping[str, tuple[int, ...]]
) -> list[dict[str, Any]]:
    """Do the whole job once for each refusal, in one process; returns what became of it."""
    wanted = [f"--refuse={call}={number}" for call in refusals for number in refusals[call]]
    command = [sys.executable, "-m", "tests.machines.job", str(folder), *wanted]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(shim), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(wanted)
    return found


def check(found: list[dict[str, Any]]) -> None:
    assert not [one for one in found if one["error"]]
    # A refusal that never happened says nothing: the shim or the job does not reach the call.
    assert all(one["refused"] for one in found), found


def test_the_whole_job_is_done_where_a_call_is_lacking(shim: Path, memory: Path):
    check(outcomes(shim, memory, USUAL))


NEEDED = {
    "create": errno.EACCES,
    "mkdir": errno.EPERM,
    "rename": errno.EPERM,
    "unlink": errno.EPERM,
    "flush file": errno.EIO,
    "flush folder": errno.EIO,
    "link": errno.EIO,
}
"""Without these nothing goes; and a disk that is broken is not one that lacks a call."""
TRY = """
import sys
from pathlib import Path
from tests.machines.job import *
from tests.machines.shim import refusing
for refusal in sys.argv[2:]:
    call, _, number = refusal.rpartition("=")
    folder = Path(sys.argv[1]) / call
    store = save(folder)
    with refusing(call, int(number), folder) as count:
        for work in (
            lambda: store.save_state_dict(tuned(), StateKey.parse("pytorch.other.new")),
            lambda: store.save_state_dict(tensors(), TUNED, overwrite=True),
            lambda: store.materialize(BASE, folder / "plain"),
        ):
            try:
                work()
            except OSError as error:
                assert error.errno == int(number), error
        assert count()
    other = StateKey.parse("pytorch.other.new")
    if store.exists(other):
        assert same(store.load_state_dict(other), tuned())
        store.delete(other)
    assert store.get_state_keys() == KEYS
    assert same(store.load_state_dict(BASE), tensors())
    assert any(same(store.load_state_dict(TUNED), made()) for made in (tuned, tensors))
    assert mlstate.verify(store).findings == ()
    store.prune(grace_seconds=-3600)
    save(folder / "again")
print("done")
"""


@pytest.mark.machines
def test_without_a_call_that_is_needed_nothing_is_lost(shim: Path, memory: Path):
    """To make, rename and remove: the error of the system is raised."""
    wanted = [f"{call}={number}" for call, number in NEEDED.items()]
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(memory), *wanted],
        cwd=ROOT,
        env=environment(shim),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.machines
def test_whatever_a_file_system_says_of_a_call_that_it_lacks(shim: Path, memory: Path):
    check(outcomes(shim, memory, OPTIONAL))
