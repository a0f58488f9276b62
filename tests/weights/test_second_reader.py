"""Everything that is written is read by safetensors itself, without torch, and is the same."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import deserialize

from mlstate import LocalStateStore, StateKey, export
from mlstate.digests import Digest
from mlstate.format import layout
from mlstate.tensors.memory import TORCH_DTYPES

KEY = StateKey.parse("pytorch.net.a")


def tensors():
    """Every element type that this torch has: once inside the state object, once outside."""
    made = {}
    for name, dtype in TORCH_DTYPES.items():
        for rows in (3, 5000):
            data = torch.arange(rows * 16, dtype=torch.int32).to(torch.uint8)
            data = data % 2 if dtype == torch.bool else data
            made[f"{name}.{rows}"] = data.view(dtype).reshape(rows, -1)
    return {**made, "scalar": torch.tensor(1.5), "empty": torch.empty(0, 3)}


def raw(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def check(found, state):
    """What safetensors gives is, byte for byte, what was saved."""
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert bytes(found[name]["data"]) == raw(tensor.reshape(-1)), name
        if not name.startswith("F4"):  # of these torch counts pairs
            assert found[name]["shape"] == list(tensor.shape), name
        assert found[name]["dtype"] == name.partition(".")[0] or name in ("scalar", "empty")


@pytest.fixture
def store(tmp_path):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict(tensors(), KEY)
    return store


def test_a_state_object_and_its_tensor_objects(store):
    content = (store.folder / layout.object_path(store.digest(KEY))).read_bytes()
    found = dict(deserialize(content))
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    outside = json.loads(header["__metadata__"]["tensors"])
    assert outside
    for name, entry in outside.items():
        path = store.folder / layout.object_path(Digest(entry["blake3"]))
        ((_, found[name]),) = deserialize(path.read_bytes())
    check(found, tensors())


@pytest.mark.parametrize(("size", "most"), [(None, 1), ("100KB", 30)])
def test_exported_files_and_shards(store, tmp_path, size, most):
    folder = export(store, KEY, tmp_path / "plain", max_shard_size=size)
    shards = [dict(deserialize(file.read_bytes())) for file in folder.glob("*.safetensors")]
    assert 1 <= len(shards) <= most
    assert sum(map(len, shards)) == len(tensors())
    check({name: entry for shard in shards for name, entry in shard.items()}, tensors())


def test_materialized_weights(store, tmp_path):
    store.materialize(KEY, tmp_path / "plain")
    check(dict(deserialize((tmp_path / "plain/model.safetensors").read_bytes())), tensors())
