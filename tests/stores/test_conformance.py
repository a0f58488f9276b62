"""Every store that saves, held against the one suite."""

from __future__ import annotations

import pytest

from mlstate import AbstractStateStore, LocalStateStore, ManifestStore, MemoryStateStore
from mlstate.stores.abstract import DeletingStore, DescribedStore
from tests.conformance.state_stores import StateStoreSuite
from tests.support.encoding import EncodedStateStore
from tests.support.signing import Key, needs_ssh_keygen


def test_what_they_can_beyond_the_three_methods_are_protocols(tmp_path):
    for store in (MemoryStateStore(), LocalStateStore(tmp_path)):
        assert isinstance(store, AbstractStateStore)
        assert isinstance(store, DeletingStore)
        assert isinstance(store, DescribedStore)
    manifest = tmp_path / "m.toml"
    manifest.write_text("version = 1")
    assert isinstance(ManifestStore(manifest), DescribedStore)
    assert not isinstance(ManifestStore(manifest), DeletingStore)


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

            def __repr__(self):
                return repr(self.phrase)

            def __reduce__(self):
                return (LocalStateStore, (self.folder,))

        return Fresh()

    def opened(self, store):
        return LocalStateStore(store.folder)


@needs_ssh_keygen
class TestSigned(StateStoreSuite):
    """Each state is signed when it is saved, and nothing else is read: all else stays the same."""

    @pytest.fixture(scope="class")
    @classmethod
    def signer(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("signer")
        key = Key.make(folder, "alice@lab.example")
        (folder / "allowed_signers").write_text(key.line())
        return {"signing_key": key.path, "require_signature": folder / "allowed_signers"}

    @pytest.fixture
    def store(self, tmp_path, signer):
        return LocalStateStore(tmp_path / "store", **signer)


class TestEncoded(StateStoreSuite):
    """Every tensor object is in encoded form only: all else stays the same."""

    @pytest.fixture
    def store(self, tmp_path):
        return EncodedStateStore(tmp_path / "store")
