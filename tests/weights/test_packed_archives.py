"""Torch checkpoints that were unpacked and packed again with compression: read, within limits."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mlstate import MemoryStateStore, StateKey, adopt, file_digest, state_digest
from mlstate.errors import FetchError, FormatError
from mlstate.pickled import gzipped
from tests.pickled.crafted import zipped
from tests.pickled.test_attacks import calls
from tests.support.models import net, same

KEY = StateKey.parse("pytorch.net.a")


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def opened(path: Path, **options: Any) -> dict[str, torch.Tensor]:
    store = MemoryStateStore()
    adopt(path, KEY, store, **options)
    return store.load_state_dict(KEY)


def refused(path: Path, **options: Any) -> FormatError:
    with pytest.raises(FormatError) as caught:
        opened(path, **options)
    return caught.value


def packed_again(path: Path, method: int) -> Path:
    """The same archive with other entries, as who unpacks it and packs it again makes it."""
    target = path.with_name(f"{method}-{path.name}")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", method) as packed:
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
    return target


def test_an_archive_that_was_packed_again_is_what_torch_reads_of_it(tmp_path):
    state = {"w": torch.arange(100_000.0), "view": torch.ones(4, 4).t(), "e": torch.zeros(0)}
    path = packed_again(saved(tmp_path / "net.pth", state), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < (tmp_path / "net.pth").stat().st_size
    assert same(torch.load(path, weights_only=True), state)
    assert file_digest(path) == state_digest(state)
    assert same(opened(path), {name: tensor.contiguous() for name, tensor in state.items()})
    assert sorted(tmp_path.iterdir()) == sorted({path, tmp_path / "net.pth"})  # nothing is left


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_one_that_was_packed_as_torch_reads_not_is_refused_and_the_remedy_helps(tmp_path, method):
    state = {"w": torch.ones(4)}
    path = packed_again(saved(tmp_path / "net.pth", state), method)
    with pytest.raises(RuntimeError, match="unsupported method"):
        torch.load(path, weights_only=True)
    error = refused(path)
    assert "compressed" in error.message
    assert error.remedy == "unpack it, and pack it again without compression"
    assert same(opened(packed_again(path, zipfile.ZIP_STORED)), state)


@pytest.mark.parametrize("way", calls(Path("mark")))
def test_nothing_in_a_compressed_archive_runs(tmp_path, way):
    mark = tmp_path / "it-ran"
    (tmp_path / "net.pth").write_bytes(zipped(b"\x80\x02" + calls(mark)[way]))
    refused(packed_again(tmp_path / "net.pth", zipfile.ZIP_DEFLATED))
    assert not mark.exists()


def test_a_bomb_in_an_archive_is_refused_before_the_disk_is_spent(tmp_path, monkeypatch):
    state = {"w": torch.zeros(1 << 20)}
    path = packed_again(saved(tmp_path / "net.pth", state), zipfile.ZIP_DEFLATED)
    assert refused(path, max_size=1 << 20).expected == "at most 1048576 bytes"
    monkeypatch.setattr(gzipped, "_SMALL", 1 << 10)
    error = refused(path)
    assert "larger than it may be when decompressed" in error.message
    assert same(opened(path, max_size=1 << 23), state)


@pytest.mark.parametrize("part", ["data.pkl", "data/0"])
def test_a_damaged_entry_of_a_compressed_archive_is_refused(tmp_path, part):
    torch.manual_seed(0)
    path = packed_again(saved(tmp_path / "net.pth", net(1).state_dict()), zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"net/{part}")
    for at in range(entry.header_offset + 60, entry.header_offset + entry.compress_size, 701):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        refused(path)


def test_elsewhere_it_is_refused_and_the_remedy_helps(tmp_path, start_nginx, monkeypatch):
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "cache"))
    site = tmp_path / "site"
    site.mkdir()
    state = {"w": torch.ones(4)}
    path = packed_again(saved(tmp_path / "net.pth", state), zipfile.ZIP_DEFLATED)
    path.rename(site / "x.pth")
    with pytest.raises(FetchError, match="compressed entries") as caught:
        opened(start_nginx(site).url("x.pth"))
    assert "download it, and give the file" in str(caught.value)
    assert same(opened(site / "x.pth"), state)
