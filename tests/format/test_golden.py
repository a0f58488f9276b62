"""The golden vectors: the encoder gives exactly these bytes, on every machine and version."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from math import prod
from pathlib import Path

import pytest
import safetensors
import torch
from blake3 import blake3

from mlstate.digests import Digest
from mlstate.format.state_object import StateObject
from mlstate.format.tensor_object import BITS, TensorSpec
from mlstate.objects import MemoryObjectStore
from mlstate.tensors import encode_tensors, read_tensors, state_digest
from mlstate.tensors.memory import TORCH_DTYPES

GOLDEN = Path(__file__).parents[1] / "golden"
VECTORS = {
    vector["name"]: vector
    for vector in tomllib.loads((GOLDEN / "vectors.toml").read_text(encoding="utf-8"))["vector"]
}
every_vector = pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)


def content(table: dict, size: int) -> bytes:
    """The bytes that `data` lists, or `fill`, repeated and cut."""
    if "fill" not in table:
        return bytes.fromhex(table["data"])
    pattern = bytes.fromhex(table["fill"])
    return (pattern * (size // len(pattern) + 1))[:size]


def raw_bytes(vector: dict) -> dict[str, bytes]:
    return {
        tensor["name"]: content(tensor, prod(tensor["shape"]) * BITS[tensor["dtype"]] // 8)
        for tensor in vector["tensors"]
    }


def tensors(vector: dict) -> dict[str, torch.Tensor]:
    """The state as torch tensors, without the code under test."""
    raw = raw_bytes(vector)
    made = {}
    for tensor in vector["tensors"]:
        data = raw[tensor["name"]]
        shape = tensor["shape"]
        if tensor["dtype"] == "F4":
            shape = [*shape[:-1], shape[-1] // 2]
        if tensor["dtype"] not in TORCH_DTYPES:
            pytest.skip(f"torch {torch.__version__} has no {tensor['dtype']}")
        flat = torch.tensor(list(data), dtype=torch.uint8)
        made[tensor["name"]] = flat.view(TORCH_DTYPES[tensor["dtype"]]).reshape(shape)
    return made


def state_object(vector: dict) -> bytes:
    """The bytes of the state object, put together from the literals."""
    expected = vector["state_object"]
    length = expected["header_length"]
    data = content(expected, vector["state_size"] - 8 - length)
    return length.to_bytes(8, "little") + expected["header"].encode().ljust(length) + data


@every_vector
def test_safetensors_reads_the_same_tensors(vector):
    raw = raw_bytes(vector)
    found = dict(safetensors.deserialize(state_object(vector)))
    for name, entry in vector.get("objects", {}).items():
        header = (4088).to_bytes(8, "little") + entry["header"].encode().ljust(4088)
        ((_, found[name]),) = safetensors.deserialize(header + raw[name])
    assert found.keys() == raw.keys()
    for tensor in vector["tensors"]:
        assert found[tensor["name"]]["dtype"] == tensor["dtype"]
        assert found[tensor["name"]]["shape"] == tensor["shape"]
        assert bytes(found[tensor["name"]]["data"]) == raw[tensor["name"]]


@every_vector
def test_the_encoder_gives_exactly_these_bytes(vector):
    objects: dict[str, bytes] = {}

    def keep(digest, parts):
        objects[digest] = b"".join(parts)

    encoded = encode_tensors(tensors(vector), keep)
    raw = raw_bytes(vector)
    assert encoded.data == state_object(vector)
    assert encoded.digest == vector["digest"] == blake3(encoded.data).hexdigest()
    assert objects == {
        entry["blake3"]: (4088).to_bytes(8, "little") + entry["header"].encode().ljust(4088) + data
        for name, entry in vector.get("objects", {}).items()
        for data in [raw[name]]
    }


@every_vector
def test_state_digest_gives_exactly_this_digest(vector):
    state = tensors(vector)
    assert state_digest(state) == vector["digest"]
    assert state_digest(dict(reversed(state.items()))) == vector["digest"]


@every_vector
def test_parse_reads_them_back(vector):
    state = StateObject.parse(state_object(vector))
    assert state.encode() == state_object(vector)
    assert state.specs == {
        tensor["name"]: TensorSpec(tensor["dtype"], tuple(tensor["shape"]))
        for tensor in vector["tensors"]
    }
    raw = raw_bytes(vector)
    for name, entry in state.inline.items():
        assert bytes(entry.data) == raw[name]
    objects = vector.get("objects", {})
    assert {name: ref.digest for name, ref in state.refs.items()} == {
        name: entry["blake3"] for name, entry in objects.items()
    }


@every_vector
def test_the_tensors_come_back_bit_for_bit(vector):
    expected, raw = tensors(vector), raw_bytes(vector)
    objects = MemoryObjectStore()
    for name, entry in vector.get("objects", {}).items():
        header = (4088).to_bytes(8, "little") + entry["header"].encode().ljust(4088)
        objects.put(Digest(entry["blake3"]), [header, raw[name]])
    found = read_tensors(objects, StateObject.parse(state_object(vector)))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.shape == expected[name].shape
        assert bytes(tensor.reshape(-1).view(torch.uint8).tolist()) == raw[name]


def test_the_vectors_cover_the_format():
    dtypes = {tensor["dtype"] for vector in VECTORS.values() for tensor in vector["tensors"]}
    assert dtypes == set(BITS)
    assert any(vector.get("objects") for vector in VECTORS.values())
    assert any(not vector["tensors"] for vector in VECTORS.values())
    digests = [vector["digest"] for vector in VECTORS.values()]
    assert len(digests) == len(set(digests)) > 10


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(GOLDEN / "check_vectors.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def test_the_vectors_agree_with_the_independent_check():
    result = check()
    assert result.returncode == 0, result.stderr
    assert f"{len(VECTORS)} vectors" in result.stdout


def test_the_independent_check_can_fail(tmp_path):
    path = tmp_path / "vectors.toml"
    text = (GOLDEN / "vectors.toml").read_text(encoding="utf-8")
    digest = next(iter(VECTORS.values()))["digest"]
    path.write_text(text.replace(digest, "0" * 64), encoding="utf-8")
    assert check(str(path)).returncode != 0
