"""Tensors over files: mapped where that is safe, private always."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections import deque
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

import mlstate.tensors.memory
from mlstate import LocalStateStore, StateType
from mlstate.digests import Digest
from mlstate.objects import FolderObjectStore, MemoryObjectStore
from mlstate.tensors import encode_tensors, read_tensors
from mlstate.tensors.memory import MAP_FROM, as_bytes, mapped_tensor, read_tensor

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux maps files")

NOBODY = 65534
NFS = 0x6969


def written(path: Path, size: int = MAP_FROM) -> bytes:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    path.write_bytes(data)
    return data


def opened(path: Path, size: int = MAP_FROM) -> torch.Tensor:
    with open(path, "rb", buffering=0) as file:
        return file_tensor(file, size)


def file_tensor(file: BinaryIO, size: int) -> torch.Tensor:
    mapped = mapped_tensor(file, size)
    return read_tensor(file, size) if mapped is None else mapped


def file_behind(tensor: torch.Tensor) -> str | None:
    """The path that the kernel says a tensor's memory is mapped from."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, permissions, _, _, inode, *path = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in place.split("-"))
        if start <= tensor.data_ptr() < end:
            assert permissions == "rw-p"
            return path[0] if inode != "0" else None
    raise AssertionError("the tensor lies nowhere")


@pytest.mark.parametrize("size", [MAP_FROM, MAP_FROM + 1, 3 * MAP_FROM + 4097])
def test_an_own_large_file_is_mapped(tmp_path, size):
    data = written(tmp_path / "file", size)
    tensor = opened(tmp_path / "file", size)
    assert file_behind(tensor) == str(tmp_path / "file")
    assert tensor.dtype is torch.uint8
    assert tensor.shape == (size,)
    assert as_bytes(tensor) == data


@pytest.mark.parametrize("size", [0, 1, 4096, MAP_FROM - 1])
def test_a_small_file_is_read_where_many_are_mapped(tmp_path, monkeypatch, size):
    monkeypatch.setattr(mlstate.tensors.memory, "_room_for_small", deque())
    data = written(tmp_path / "file", size)
    tensor = opened(tmp_path / "file", size)
    assert tensor.shape == (size,)
    assert as_bytes(tensor) == data
    if size:
        assert file_behind(tensor) is None


def test_what_is_not_mapped_any_more_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr(mlstate.tensors.memory, "_room_for_small", deque([None]))
    data = written(tmp_path / "file", 5000)
    first = opened(tmp_path / "file", 5000)
    assert file_behind(first) == str(tmp_path / "file")
    assert file_behind(opened(tmp_path / "file", 5000)) is None
    del first
    again = opened(tmp_path / "file", 5000)
    assert file_behind(again) == str(tmp_path / "file")
    assert as_bytes(again) == data


@pytest.mark.parametrize("size", [5000, MAP_FROM + 5])
def test_a_tensor_is_writable_and_private(tmp_path, size):
    data = written(tmp_path / "file", size)
    os.chmod(tmp_path / "file", 0o444)
    first, second = opened(tmp_path / "file", size), opened(tmp_path / "file", size)
    first.fill_(7)
    assert as_bytes(first) == bytes([7]) * size
    assert as_bytes(second) == data
    assert as_bytes(opened(tmp_path / "file", size)) == data
    assert (tmp_path / "file").read_bytes() == data


def test_a_file_read_to_its_end_is_read_from_its_start(tmp_path):
    for size in (5000, MAP_FROM):
        data = written(tmp_path / "file", size)
        with open(tmp_path / "file", "rb", buffering=0) as file:
            file.seek(0, 2)
            assert as_bytes(file_tensor(file, size)) == data


def test_a_mapped_tensor_survives_what_happens_to_the_name(tmp_path):
    data = written(tmp_path / "deleted")
    written(tmp_path / "replaced")
    deleted, replaced = opened(tmp_path / "deleted"), opened(tmp_path / "replaced")
    assert file_behind(deleted) == str(tmp_path / "deleted")
    assert file_behind(replaced) == str(tmp_path / "replaced")
    (tmp_path / "deleted").unlink()
    (tmp_path / "other").write_bytes(bytes(MAP_FROM))
    (tmp_path / "other").replace(tmp_path / "replaced")
    assert as_bytes(deleted) == data
    assert as_bytes(replaced) == data


def test_it_is_the_open_file_that_is_mapped_not_the_name(tmp_path):
    data = written(tmp_path / "file")
    with open(tmp_path / "file", "rb", buffering=0) as file:
        (tmp_path / "other").write_bytes(bytes(MAP_FROM))
        (tmp_path / "other").replace(tmp_path / "file")
        tensor = file_tensor(file, MAP_FROM)
    assert as_bytes(tensor) == data
    assert file_behind(tensor) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another owner")
def test_a_file_of_another_owner_is_copied(tmp_path):
    data = written(tmp_path / "file")
    os.chown(tmp_path / "file", NOBODY, -1)
    tensor = opened(tmp_path / "file")
    assert as_bytes(tensor) == data
    assert file_behind(tensor) is None
    with open(tmp_path / "file", "r+b") as file:
        file.write(b"changed")
    assert as_bytes(tensor) == data


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_roots_files_are_mapped_by_others(tmp_path, monkeypatch):
    data = written(tmp_path / "file")
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    tensor = opened(tmp_path / "file")
    assert file_behind(tensor) == str(tmp_path / "file")
    assert as_bytes(tensor) == data


@pytest.mark.parametrize("magic", [NFS, 0x517B, 0xFF534D42, 0xFE534D42, 0x01021997, 0x65735546])
def test_a_file_on_a_network_is_copied(tmp_path, monkeypatch, magic):
    data = written(tmp_path / "file")
    monkeypatch.setattr(mlstate.objects.mapped, "_file_system", lambda _: magic)
    tensor = opened(tmp_path / "file")
    assert as_bytes(tensor) == data
    assert file_behind(tensor) is None


def test_the_file_system_is_what_the_kernel_says():
    descriptor = os.open("/proc/self/status", os.O_RDONLY)
    try:
        assert mlstate.objects.mapped._file_system(descriptor) == 0x9FA0  # procfs
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------ through a store


def saved(folder: Path, **tensors: torch.Tensor):
    store = FolderObjectStore(folder)
    writer = store.writer()
    return store, encode_tensors(tensors, writer.put).state


def test_what_is_read_from_a_folder_is_mapped_and_private(tmp_path):
    weight = torch.arange(600_000, dtype=torch.float32).reshape(600, 1000)
    store, state = saved(tmp_path, weight=weight)
    path = store.path(state.refs["weight"].digest)
    before = path.read_bytes()
    first = read_tensors(store, state)["weight"]
    assert file_behind(first) == str(path)
    assert first.is_contiguous()
    assert first.data_ptr() % 4096 == 0
    first.mul_(2)
    assert torch.equal(first, weight * 2)
    assert torch.equal(read_tensors(store, state)["weight"], weight)
    assert path.read_bytes() == before


def test_some_small_objects_are_mapped_and_the_rest_is_read(tmp_path, monkeypatch):
    """All of them would be too many maps for a process that holds thousands of adapters."""
    room = deque([None] * 3)
    monkeypatch.setattr(mlstate.tensors.memory, "_room_for_small", room)
    values = {f"w{i}": torch.full((5_000 + i,), i * 1.0) for i in range(6)}
    store, state = saved(tmp_path, large=torch.zeros(300_000), **values)
    found = read_tensors(store, state)
    mapped = {name for name, tensor in found.items() if file_behind(tensor)}
    assert mapped == {"large", "w5", "w4", "w3"}
    for name, value in values.items():
        assert torch.equal(found[name], value)
    del found
    assert len(room) == 3


def test_equal_tensors_that_are_mapped_do_not_share_memory(tmp_path):
    ones = torch.ones(600_000)
    store, state = saved(tmp_path, a=ones, b=ones.clone())
    assert state.refs["a"] == state.refs["b"]
    found = read_tensors(store, state)
    found["a"].zero_()
    assert torch.equal(found["b"], ones)
    shared = read_tensors(store, state, shared=True)
    assert shared["a"].data_ptr() == shared["b"].data_ptr()


class Tied(torch.nn.Module):
    """A model with one weight under two names."""

    state_type = StateType("pytorch", "tied")

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(700, 700, bias=False)
        self.head = torch.nn.Linear(700, 700, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_are_mapped_when_assigned(tmp_path):
    store = LocalStateStore(tmp_path)
    key = store.save(Tied(), "one")
    model = Tied()
    store.load(model, key, assign=True)
    assert model.head.weight is model.embed.weight
    assert str(file_behind(model.embed.weight)).startswith(str(tmp_path))


def test_a_mapped_read_leaves_no_descriptor_open(tmp_path):
    store, state = saved(tmp_path, **{f"w{i}": torch.full((300_000,), i * 1.0) for i in range(8)})
    before = len(os.listdir("/proc/self/fd"))
    tensors = read_tensors(store, state)
    assert all(file_behind(tensor) for tensor in tensors.values())
    assert len(os.listdir("/proc/self/fd")) == before


def sparse_object(folder: Path, number: int) -> tuple[str, Digest]:
    """A tensor object of 1 MiB that takes two blocks of the disk."""
    from mlstate.format.layout import object_path
    from mlstate.format.tensor_object import TensorSpec, header

    start, end = header(TensorSpec("U8", (MAP_FROM,))), number.to_bytes(8, "little")
    digest = Digest.of(start, bytes(MAP_FROM - 8), end)
    path = folder / object_path(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(start)
        file.seek(4096 + MAP_FROM - 8)
        file.write(end)
    return f"w{number}", digest


@pytest.mark.slow
def test_500_maps_need_fewer_than_64_descriptors(tmp_path):
    from mlstate.format.state_object import StateObject, TensorRef
    from mlstate.format.tensor_object import TensorSpec

    spec = TensorSpec("U8", (MAP_FROM,))
    (tmp_path / "mlstate.toml").write_text("version = 1\nrequires = []\n")
    digests = dict(sparse_object(tmp_path, number) for number in range(500))
    state = StateObject({}, {name: TensorRef(spec, digest) for name, digest in digests.items()})
    (tmp_path / "state").write_bytes(state.encode())
    code = """
        import os, resource, sys, torch
        from mlstate.format.state_object import StateObject
        from mlstate.objects import FolderObjectStore
        from mlstate.tensors import read_tensors
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        state = StateObject.parse(open("state", "rb", closefd=True).read())
        tensors = read_tensors(FolderObjectStore("."), state)
        assert len(os.listdir("/proc/self/fd")) < 20
        assert all(tensors[f"w{i}"][-8:].view(torch.int64) == i for i in range(500))
        assert open("/proc/self/maps").read().count(os.path.realpath("objects")) >= 500
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_memory_objects_are_read(tmp_path):
    weight = torch.arange(600_000, dtype=torch.float32)
    objects = MemoryObjectStore()
    state = encode_tensors({"weight": weight}, objects.put).state
    found = read_tensors(objects, state)["weight"]
    assert file_behind(found) is None
    found.zero_()
    assert torch.equal(read_tensors(objects, state)["weight"], weight)


def test_what_cannot_be_mapped_is_read(tmp_path, monkeypatch):
    """As where there is no /dev/fd, or after as many maps as the kernel allows."""
    data = written(tmp_path / "file")

    def full(*_, **__):
        raise RuntimeError("unable to mmap: Cannot allocate memory (12)")

    monkeypatch.setattr(torch, "from_file", full)
    tensor = opened(tmp_path / "file")
    assert file_behind(tensor) is None
    assert bytes(as_bytes(tensor)) == data
