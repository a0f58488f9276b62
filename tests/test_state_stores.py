"""Every store that saves, held against the one suite."""

from __future__ import annotations

import pytest

from mlstate import LocalStateStore, MemoryStateStore
from tests.conformance.state_stores import StateStoreSuite


class TestMemory(StateStoreSuite):
    @pytest.fixture
    def store(self):
        return MemoryStateStore()


class TestLocal(StateStoreSuite):
    @pytest.fixture
    def store(self, tmp_path):
        return LocalStateStore(tmp_path / "store")


class TestLocalOpenedAnewForEveryCall(StateStoreSuite):
    @pytest.fixture
    def store(self, tmp_path):
        class Fresh:
            def __getattr__(self, name):
                return getattr(LocalStateStore(tmp_path / "store"), name)

        return Fresh()
