"""The releases of a GitHub repository, held against the suite of all stores that save."""

from __future__ import annotations

import pytest

from mlstate import GitHubReleaseStore
from tests.conformance.state_stores import StateStoreSuite


class TestGitHub(StateStoreSuite):
    @pytest.fixture
    def store(self, github, tmp_path):
        return GitHubReleaseStore("org", "models", cache=tmp_path / "cache")

    def bring(self, store, key):
        store.fetch(key)
