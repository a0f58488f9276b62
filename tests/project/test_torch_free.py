"""What needs no torch imports none: each test is a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mlstate import LocalStateStore, Manifest, StateKey
from tests.support.models import LINEAR, net

FREE = """
import sys
assert not [name for name in sys.modules if name.partition(".")[0] == "torch"], "torch came along"
"""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    text = textwrap.dedent(code) + FREE
    command = [sys.executable, "-W", "error", "-c", text, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def free(code: str, *arguments: object) -> str:
    """Run code that imports no torch; what it prints."""
    result = run(code, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, StateKey]:
    folder = tmp_path / "store"
    key = LocalStateStore(folder).save(net(), "one", files={"labels.json": b"[1]"}, meta={"n": 1})
    return folder, key


def test_the_check_notices_torch():
    assert "torch came along" in run("import torch").stderr
    assert "torch came along" in run("from mlstate import state_digest").stderr


def test_importing_mlstate_imports_no_torch():
    free("import mlstate; mlstate.__version__; dir(mlstate)")


NAMES = [
    "LocalStateStore, ManifestStore, StateKey",
    "StateType, Store, MemoryStateStore, Manifest",
    "load_pretrained_model, with_state_type, LoadResult, MlstateError",
    "AbstractStateStore, AbstractListStateStore",
]


@pytest.mark.parametrize("names", NAMES)
def test_importing_a_name_imports_no_torch(names):
    free(f"from mlstate import {names}")


@pytest.mark.parametrize("module", ["stores", "objects", "manifests", "format.encode", "models"])
def test_importing_a_module_imports_no_torch(module):
    free(f"import mlstate.{module}")


def test_keys_digest_and_files_of_a_folder_need_no_torch(saved):
    folder, key = saved
    code = """
        import sys
        from mlstate import LocalStateStore, StateKey
        store = LocalStateStore(sys.argv[1])
        key = StateKey.parse(sys.argv[2])
        assert store.get_state_keys(key.state_type) == [key]
        assert store.exists(key)
        assert dict(store.files(key)) == {"labels.json": b"[1]"}
        print(store.digest(key))
    """
    assert free(code, folder, key) == LocalStateStore(folder).digest(key)


def test_keys_digest_and_files_of_a_manifest_need_no_torch(saved):
    folder, key = saved
    code = """
        import sys
        from mlstate import ManifestStore, StateKey
        store = ManifestStore(sys.argv[1] + "/states", cache=sys.argv[1])
        key = StateKey.parse(sys.argv[2])
        assert store.get_state_keys() == store.get_state_keys(key.state_type) == [key]
        assert store.exists(key)
        assert store.files(key)["labels.json"] == b"[1]"
        print(store.digest(key))
    """
    assert free(code, folder, key) == LocalStateStore(folder).digest(key)


def test_the_default_store_lists_without_torch():
    keys = free("from mlstate import Store; print(len(Store().get_state_keys()))")
    assert int(keys) >= 0


def test_reading_and_writing_manifests_needs_no_torch(saved, tmp_path):
    folder, key = saved
    code = """
        import sys
        from mlstate import Manifest
        Manifest.read(sys.argv[1] + "/states").write(sys.argv[2])
    """
    free(code, folder, tmp_path / "all.toml")
    assert Manifest.read(tmp_path / "all.toml").states.keys() == {key}


def test_names_and_shapes_of_a_state_need_no_torch(saved):
    folder, key = saved
    code = """
        import sys
        from mlstate import LocalStateStore, StateKey
        from mlstate.stores.read import read_state
        state = read_state(*LocalStateStore(sys.argv[1]).get(StateKey.parse(sys.argv[2])))
        print(sorted(state.specs))
    """
    assert free(code, folder, key) == str(sorted(net().state_dict()))


def test_deleting_needs_no_torch(saved):
    folder, key = saved
    code = """
        import sys
        from mlstate import LocalStateStore, StateKey
        LocalStateStore(sys.argv[1]).delete(StateKey.parse(sys.argv[2]))
    """
    free(code, folder, key)
    assert LocalStateStore(folder).get_state_keys(LINEAR) == []


OLD = """
import sys
from mlstate import LocalStateStore, MemoryStateStore, StateKey, StateType

class Old:
    state_type = StateType("sklearn", "forest")
    state = bytes.fromhex("00ff80") * int(sys.argv[2])
    def get_state(self): return self.state
    def set_state(self, state): self.state = state
"""


@pytest.mark.parametrize("size", [0, 1, 20_000])
def test_models_of_the_older_protocol_need_no_torch(tmp_path, size):
    code = """
for store in (LocalStateStore(sys.argv[1]), MemoryStateStore()):
    key = store.save(Old(), "one")
    assert store.save(Old(), "one") == key
    model = Old()
    model.state = b"other"
    result = store.load(model, key, digest=store.digest(key))
    assert result.digest == store.digest(key)
    assert model.state == Old.state
    assert type(model.state) is bytes
print(store.digest(key))
"""
    digest = free(OLD + code, tmp_path, size)
    store = LocalStateStore(tmp_path)
    key = StateKey.parse("sklearn.forest.one")
    assert store.digest(key) == digest
    found = store.load_state_dict(key)
    assert found.keys() == {"mlstate.bytes"}
    expected = torch.tensor([0, 255, 128] * size, dtype=torch.uint8)
    assert torch.equal(found["mlstate.bytes"], expected)


def test_an_older_checkpoint_of_an_older_model_needs_no_torch(tmp_path):
    (tmp_path / "sklearn.forest.old.pt").write_bytes(b"\x00opaque")
    code = """
store = LocalStateStore(sys.argv[1])
key = StateKey.parse("sklearn.forest.old")
assert store.get_state_keys(Old.state_type) == [key]
model = Old()
store.load(model, key)
assert model.state == b"\\0opaque"
"""
    free(OLD + code, tmp_path, 1)
