"""What every test gets: a cache of its own, and nothing from the user's environment."""

from __future__ import annotations

import pytest

from tests.servers.fixtures import *  # noqa: F403


@pytest.fixture(autouse=True)
def own_environment(tmp_path_factory, monkeypatch):
    for variable in ("MLSTATE_READONLY_CACHES", "MLSTATE_MANIFESTS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path_factory.mktemp("cache")))
