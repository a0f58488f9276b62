"""Set-ups that tests of commands share."""

from __future__ import annotations

import pytest

from tests.support.commands import Shell


@pytest.fixture
def shell(tmp_path):
    """The program in an empty folder, with a cache of its own there."""
    return Shell(tmp_path, {"MLSTATE_CACHE": str(tmp_path / "cache")})
