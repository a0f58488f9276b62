"""Set-ups that tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Shell

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """All tests of commands have a target of their own: most start a process, or dozens."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("programs")


@pytest.fixture
def shell(tmp_path):
    """The program in an empty folder, with a cache of its own there."""
    return Shell(tmp_path, {"MLSTATE_CACHE": str(tmp_path / "cache")})
