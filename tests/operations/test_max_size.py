"""`max_size` of everything that takes weights in: refused before memory or disk is spent."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlstate import LocalStateStore, StateKey, adopt, bundle, diff, file_digest, lock, unbundle
from mlstate.errors import FetchError, FormatError
from mlstate.format import layout
from mlstate.pickled import gzipped
from mlstate.units import check_size, parse_limit

KEY = StateKey.parse("pytorch.net.a")
STATE = {"w": torch.ones(5000), "v": torch.zeros(10)}  # 20,040 bytes
FITS, LESS = 20_040, "20kB"
FILES = ("net.safetensors", "net.pth", "net.pth.gz")


@pytest.fixture
def folder(tmp_path):
    save_file(STATE, tmp_path / "net.safetensors")
    torch.save(STATE, tmp_path / "net.pth")
    (tmp_path / "net.pth.gz").write_bytes(gzip.compress((tmp_path / "net.pth").read_bytes()))
    return tmp_path


def fitting(name: str, folder: Path) -> int:
    """The least that is large enough: of a compressed file what it becomes."""
    return (folder / "net.pth").stat().st_size if name.endswith(".gz") else FITS


def check_refused(caught) -> None:
    text = str(caught.value)
    assert "max_size" in text
    assert "at most 20" in text


@pytest.mark.parametrize("name", FILES)
def test_a_file_on_this_machine(folder, name):
    fits = fitting(name, folder)
    assert file_digest(folder / name, max_size=fits) == file_digest(folder / name)
    assert diff(folder / name, folder / name, max_size=fits).same_weights
    store = LocalStateStore(folder / "store")
    with pytest.raises(FormatError) as caught:
        adopt(folder / name, KEY, store, max_size=LESS)
    check_refused(caught)
    assert not (folder / "store").exists()
    assert adopt(folder / name, KEY, store, max_size=fits).size == FITS
    with pytest.raises(FormatError) as caught:
        file_digest(folder / name, max_size=LESS)
    check_refused(caught)
    with pytest.raises(FormatError) as caught:
        diff((store, KEY), folder / name, max_size=LESS)
    check_refused(caught)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_elsewhere(folder, start_recording, name, ranges):
    server = start_recording(folder, ranges=ranges)
    url = f"{server.url}/{name}"
    for target, mirror in ((LocalStateStore(folder / "store"), False), (folder / "m.toml", True)):
        with pytest.raises(FetchError) as caught:
            adopt(url, KEY, target, mirror=mirror, max_size=LESS, cache=folder / "cache")
        check_refused(caught)
    assert not (folder / "m.toml").exists()
    assert [path for path in (folder / "cache/objects").rglob("*") if path.is_file()] == []
    # The size of a file that must be read whole counts, too.
    fits = FITS + 10_000
    adopt(url, KEY, folder / "m.toml", mirror=True, max_size=fits, cache=folder / "cache")


def test_lock(folder, recording_server):
    recording_server.files = folder
    manifest = folder / "m.toml"
    text = f"""version = 1
[states."{KEY}"]
mirrors = [{{url = "{recording_server.url}/net.pth", format = "torch"}}]
"""
    manifest.write_text(text)
    with pytest.raises(FetchError) as caught:
        lock(manifest, cache=folder / "cache", max_size=LESS)
    check_refused(caught)
    assert manifest.read_text() == text
    assert lock(manifest, cache=folder / "cache", max_size=str(FITS))[KEY].size == FITS


@pytest.mark.parametrize("piped", [True, False])
def test_a_bundle(folder, piped):
    store = LocalStateStore(folder / "store")
    store.save_state_dict(STATE, KEY)
    bundle(store, [KEY], folder / "b.tar")
    target = LocalStateStore(folder / "other")
    with (folder / "b.tar").open("rb") as file, pytest.raises(FormatError) as caught:
        unbundle(file if piped else folder / "b.tar", target, max_size=LESS)
    check_refused(caught)
    assert not (folder / "other" / layout.STATES).exists()
    if not piped:
        assert not (folder / "other").exists()
    assert unbundle(folder / "b.tar", target, max_size="1MB") == [KEY]


def test_what_unpacks_to_much_more_is_refused_without_being_told(
    folder, recording_server, monkeypatch
):
    monkeypatch.setattr(gzipped, "_SMALL", 1 << 20)
    torch.save({"w": torch.zeros(1 << 20)}, folder / "zeros.pth")
    packed = folder / "zeros.pth.gz"
    packed.write_bytes(gzip.compress((folder / "zeros.pth").read_bytes()))
    recording_server.files = folder
    store = LocalStateStore(folder / "store")
    with pytest.raises(FormatError, match="when decompressed"):
        file_digest(packed)
    with pytest.raises(FetchError, match="when decompressed"):
        adopt(f"{recording_server.url}/{packed.name}", KEY, store)
    assert file_digest(packed, max_size="5MB") == file_digest(folder / "zeros.pth")
    url = f"{recording_server.url}/{packed.name}"
    assert adopt(url, KEY, store, max_size="5MB").digest == file_digest(folder / "zeros.pth")


@pytest.mark.parametrize(
    "command",
    [
        "digest net.pth",
        "diff net.pth net.safetensors",
        "add pytorch.net.a net.pth --store store",
        "unbundle b.tar --store store",
        "lock m.toml",
    ],
)
def test_the_command_line_says_what_to_type(folder, recording_server, command):
    made = LocalStateStore(folder / "made")
    made.save_state_dict(STATE, KEY)
    bundle(made, [KEY], folder / "b.tar")
    recording_server.files = folder
    mirror = f'{{url = "{recording_server.url}/net.pth", format = "torch"}}'
    (folder / "m.toml").write_text(f'version = 1\n[states."{KEY}"]\nmirrors = [{mirror}]\n')

    def run(size: str) -> subprocess.CompletedProcess[str]:
        given = [sys.executable, "-m", "mlstate", *command.split(), "--max-size", size]
        return subprocess.run(given, capture_output=True, text=True, cwd=folder)

    done = run("20kB")
    assert done.returncode > 1, done
    assert "at most 20" in done.stderr
    assert "--max-size" in done.stderr
    assert run("much").returncode > 1
    assert run("1MB").returncode == 0


def test_sizes():
    assert parse_limit(None) is None
    assert parse_limit("1.5 MiB") == 1_572_864
    check_size(5, None)
    check_size(5, 5)
    with pytest.raises(FormatError, match="larger than what may be taken in"):
        check_size(6, 5)
    with pytest.raises(FormatError, match="not a size"):
        parse_limit("much")
