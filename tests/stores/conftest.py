"""Set-ups that tests of several stores share."""

from __future__ import annotations

from itertools import count

import pytest

from tests.support.github_stores import github_store


@pytest.fixture
def fresh(tmp_path):
    """Opens the GitHub store with an empty cache, as somebody else has it; again at each call."""
    number = count()
    return lambda **options: github_store(tmp_path / f"other{next(number)}", **options)
