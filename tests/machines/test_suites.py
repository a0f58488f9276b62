"""The suites of every store, over file systems that lack a call."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from tests.machines.shim import OPTIONAL, environment

pytestmark = pytest.mark.machines

ROOT = Path(__file__).parents[2]
SUITES = ("tests/objects/test_conformance.py::TestObjectStores", "tests/stores/test_conformance.py")
THESE = "(folder and not chain) or (TestLocal and not Anew)"


@pytest.mark.parametrize(
    ("call", "error"),
    [(call, error) for call, errors in OPTIONAL.items() for error in errors[:1]],
    ids=lambda value: errno.errorcode.get(value, str(value)) if isinstance(value, int) else value,
)
def test_the_suites_pass_where_a_call_is_lacking(shim: Path, memory: Path, call: str, error: int):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUITES]
    command += ["-k", THESE, "--basetemp", str(memory / "tests")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(shim, call, error, memory),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
