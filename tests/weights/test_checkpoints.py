"""Torch checkpoints as files of weights: the same tensors as torch sees, without torch."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlstate import file_digest, state_digest
from mlstate.errors import FormatError
from mlstate.tensors.memory import TORCH_DTYPES
from mlstate.weights.files import sources_of_file
from tests.pickled.crafted import legacy, state, storage, tensor, zipped

FORMATS = pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])


def content() -> dict[str, torch.Tensor]:
    large = torch.randn(300, 200)
    return {
        "large": large,
        "tied": large,
        "turned": large.T,
        "steps": large[::2, ::3],
        "flags": torch.tensor([True, False] * 20_000)[1:],
        "conj": torch.randn(100, 100, dtype=torch.complex64).conj(),
        "neg": torch.randn(100, 100, dtype=torch.complex64).conj().imag,
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
    }


@FORMATS
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_the_digest_is_that_of_the_tensors(tmp_path, zip_format, packed):
    path = tmp_path / "x.pt"
    torch.save(content() | (made := content()), path, _use_new_zipfile_serialization=zip_format)
    if packed:
        path = tmp_path / "x.pt.gz"
        path.write_bytes(gzip.compress((tmp_path / "x.pt").read_bytes(), 1))
    assert file_digest(path) == state_digest(made)
    with sources_of_file(path) as sources:
        memory = {source.name: source.memory for source in sources}
        assert memory["large"] == memory["tied"] != memory["turned"]
    assert len([*tmp_path.iterdir()]) == 1 + packed


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_every_element_type_of_the_format(tmp_path, name):
    data = (torch.arange(64) % 2).to(torch.uint8)
    made = {"w": data.view(TORCH_DTYPES[name]).reshape(2, -1)}
    torch.save(made, tmp_path / "x.pt")
    assert file_digest(tmp_path / "x.pt") == state_digest(made)


def test_what_the_format_has_not_is_refused_by_name(tmp_path):
    for value, match in (
        (torch.ones(2, dtype=torch.complex128), "no such element type"),
        (torch.eye(2).to_sparse(), "no tensor"),
        (torch.empty(2, device="meta"), "no tensor"),
    ):
        torch.save({"w": value}, tmp_path / "x.pt")
        with pytest.raises(FormatError, match=match) as caught:
            file_digest(tmp_path / "x.pt")
        assert caught.value.tensor == "w"
    torch.save({"mlstate.w": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(FormatError, match="reserved"):
        file_digest(tmp_path / "x.pt")


def test_memory_that_nobody_wrote_is_never_taken_for_weights(tmp_path):
    content = state(tensor(storage(4096, more=b"N"), (4096,), (1,)))
    (tmp_path / "x.pt").write_bytes(legacy(content, [], []))
    with pytest.raises(FormatError, match="lists other storages"):
        file_digest(tmp_path / "x.pt")


def test_a_small_file_does_not_become_a_large_one(tmp_path):
    file = io.BytesIO()
    torch.save({"w": torch.ones(1).expand(10**6, 10**4)}, file)
    assert len(file.getvalue()) < 2000
    (tmp_path / "x.pt").write_bytes(file.getvalue())
    with pytest.raises(FormatError, match="repeats its storage"):
        file_digest(tmp_path / "x.pt")


def test_gzip_unpacks_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("mlstate.pickled.gzipped._SMALL", 1 << 20)
    (tmp_path / "x.pt.gz").write_bytes(gzip.compress(bytes(64 << 20)))
    with pytest.raises(FormatError, match="larger than it may be"):
        file_digest(tmp_path / "x.pt.gz")
    assert [*tmp_path.iterdir()] == [tmp_path / "x.pt.gz"]


def test_a_damaged_storage_is_noticed(tmp_path):
    good = zipped(state(tensor(storage(8192), (8192,), (1,))), {"0": b"abcd" * 8192})
    (tmp_path / "x.pt").write_bytes(good)
    file_digest(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(good.replace(b"abcd", b"abce", 1))
    with pytest.raises(FormatError, match="damaged"):
        file_digest(tmp_path / "x.pt")


def test_a_checkpoint_needs_no_torch_and_little_memory(tmp_path):
    made = {"x": torch.zeros(50_000_000), "y": torch.zeros(2, 3)}
    torch.save(made, tmp_path / "x.pt")
    code = """
import re, sys
from pathlib import Path
from mlstate import file_digest
digest = file_digest(sys.argv[1])
assert "torch" not in sys.modules
status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent's, too
print(digest, re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "x.pt")]
    root = Path(__file__).parents[2]
    output = subprocess.check_output(command, text=True, cwd=root, env={**os.environ})
    digest, kilobytes = output.split()
    assert digest == state_digest(made)
    assert int(kilobytes) < 150_000  # of 200 MB
