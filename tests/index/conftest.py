"""A store that every test of the index looks at."""

from __future__ import annotations

import pytest

from mlstate import LocalStateStore
from tests.support.indexing import save, settle


@pytest.fixture
def related(tmp_path) -> LocalStateStore:
    """A store of states that share tensors, within an architecture and across two."""
    store = LocalStateStore(tmp_path / "related")
    save(store, "net.a", 1, 2)
    save(store, "net.b", 1, 3, files={"labels.json": b"[]"})
    save(store, "net.big.c", 1, 2)
    save(store, "other.d", 3, 4)
    settle(store.folder)
    return store
