"""File systems that lack a call: a shim refuses one kind of call below a folder, always."""

from __future__ import annotations

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


@pytest.mark.machines
def test_whatever_a_file_system_says_of_a_call_that_it_lacks(shim: Path, memory: Path):
    check(outcomes(shim, memory, OPTIONAL))
