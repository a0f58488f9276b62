"""Without a network what is cached loads, what is not is named, and no socket is opened."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mlstate import ManifestStore
from mlstate.errors import FetchError, OfflineError, ReadOnlyStoreError
from mlstate.locations import parse_mirror
from mlstate.manifests import FileEntry
from tests.servers.recording import RecordingServer
from tests.support.fetching import (
    FILES,
    KEY,
    TENSORS,
    Published,
    check_cache,
    folder_for_all,
    manifest_store,
    start_child,
)
from tests.support.fetching import write_manifest as write
from tests.support.models import same

NO_SOCKETS = """
opened = []
def note(event, arguments):
    if event.startswith("socket."):
        opened.append(event)
        raise RuntimeError(f"{event}{arguments}")
sys.addaudithook(note)
"""
READ = """
import os
key = StateKey.parse(sys.argv[3])
for offline in sys.argv[4:]:
    os.environ["MLSTATE_OFFLINE"] = offline
    store = ManifestStore(sys.argv[1], cache=sys.argv[2])
    report = store.fetch(key)
    assert store.files(key)["labels.json"] == b"[1, 2]"
    print(report.fetched)
assert not opened, opened
"""
LOAD = """
    assert store.load_state_dict(key)["b"].tolist() == [1, 1, 1]
    print(report.fetched)
"""
MISS = """
from mlstate.errors import OfflineError
options = {"offline": True} if sys.argv[4:] else {}
try:
    ManifestStore(sys.argv[1], cache=sys.argv[2], **options).fetch(StateKey.parse(sys.argv[3]))
except OfflineError as error:
    print(error)
assert not opened, opened
"""


@pytest.fixture(scope="module")
def server(published: Published) -> Iterator[RecordingServer]:
    with RecordingServer(published.folder) as server:
        yield server


def ran(code: str, *arguments: object, **settings: str) -> str:
    """Run code in which no socket can be opened; what it prints."""
    child = start_child(NO_SOCKETS + code, *arguments, settings=settings)
    out, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (0, "")
    return out


@pytest.fixture
def cached(published: Published, server: RecordingServer, tmp_path: Path) -> tuple[Path, Path]:
    """A manifest, and a cache that has its state."""
    manifest = write(tmp_path / "m.toml", published, objects=[f"{server.url}/store"])
    manifest_store(manifest, tmp_path / "cache").fetch(KEY)
    return manifest, tmp_path / "cache"


def test_the_check_notices_a_socket(published: Published, server: RecordingServer, tmp_path: Path):
    manifest = write(tmp_path / "m.toml", published, objects=[f"{server.url}/store"])
    child = start_child(NO_SOCKETS + READ, manifest, tmp_path / "cache", KEY, "")
    assert "socket." in child.communicate(timeout=60)[1]


def test_what_is_cached_loads_without_a_socket(cached: tuple[Path, Path]):
    """Online, too: what is there is never asked for again."""
    load = READ.replace("    print(report.fetched)\n", LOAD.lstrip("\n"))
    assert ran(load, *cached, KEY, "1", "") == "0\n0\n"


@pytest.mark.parametrize("how", ["MLSTATE_OFFLINE", "offline=True"])
@pytest.mark.parametrize("way", ["objects", "file", "state", "hub"])
def test_what_is_missing_is_named_and_no_socket_is_opened(
    published: Published, tmp_path: Path, way: str, how: str
):
    url = "https://example.org/m"
    options: dict[str, Any] = {
        "objects": {"objects": [url]},
        "file": {"mirrors": [url]},
        "state": {"mirrors": [{"url": url, "state": url}]},
        "hub": {"mirrors": ["hf://org/repo@main"]},
    }
    manifest = write(tmp_path / "m.toml", published, **options[way])
    if how == "MLSTATE_OFFLINE":
        said = ran(MISS, manifest, tmp_path / "cache", KEY, MLSTATE_OFFLINE="1")
    else:
        said = ran(MISS, manifest, tmp_path / "cache", KEY, "offline")
    assert "missing: its state object" in said
    assert "MLSTATE_OFFLINE" in said
    assert str(KEY) in said


def test_offline_may_be_allowed_where_the_settings_forbid_it(
    published: Published, server: RecordingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLSTATE_OFFLINE", "1")
    manifest = write(tmp_path / "m.toml", published, objects=[f"{server.url}/store"])
    ManifestStore(manifest, cache=tmp_path / "cache", offline=False).fetch(KEY)


@pytest.mark.parametrize("value", [None, "", " ", "0", "false", "False", "no", "NO "])
def test_these_values_mean_online(
    published: Published,
    server: RecordingServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: str | None,
):
    monkeypatch.delenv("MLSTATE_OFFLINE", raising=False)
    if value is not None:
        monkeypatch.setenv("MLSTATE_OFFLINE", value)
    manifest = write(tmp_path / "m.toml", published, objects=[f"{server.url}/store"])
    assert ManifestStore(manifest, cache=tmp_path / "cache").fetch(KEY).fetched > 0


@pytest.mark.parametrize("value", ["1", "true", "yes", "on", "x"])
def test_all_others_mean_offline(
    published: Published,
    server: RecordingServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: str,
):
    monkeypatch.setenv("MLSTATE_OFFLINE", value)
    manifest = write(tmp_path / "m.toml", published, objects=[f"{server.url}/store"])
    before = len(server.requests)
    with pytest.raises(OfflineError):
        ManifestStore(manifest, cache=tmp_path / "cache").fetch(KEY)
    assert len(server.requests) == before


def test_what_is_missing_of_a_cached_state_is_named(
    cached: tuple[Path, Path], published: Published
):
    manifest, cache = cached
    store = ManifestStore(manifest, cache=cache, offline=True)
    state = store.load_state_dict(KEY)
    (gone, *_) = [path for path in cache.glob("objects/*/*") if path.stat().st_size > 40_000]
    gone.unlink()
    with pytest.raises(OfflineError) as caught:
        store.load_state_dict(KEY)
    assert caught.value.found is not None
    assert "1 tensor of 44096 bytes (l" in caught.value.found
    assert caught.value.key == KEY
    names = [name for name in ("l1.w", "l2.w") if f"({name})" not in caught.value.found]
    assert same(store.load_state_dict(KEY, names), {names[0]: state[names[0]]})
    for path in cache.glob("objects/*/*"):
        if path.read_bytes() == FILES["labels.json"]:
            path.unlink()
    with pytest.raises(OfflineError, match=r"the files labels\.json"):
        store.files(KEY)["labels.json"]


@pytest.mark.parametrize("way", ["objects", "file", "state", "file://", "torch"])
def test_local_mirrors_work_offline(published: Published, tmp_path: Path, way: str):
    folder = os.path.relpath(published.folder, tmp_path)
    torch.save(TENSORS, published.folder / "model.pt")
    file, state = f"{folder}/model.safetensors", f"{folder}/{published.state_object}"
    options: dict[str, Any] = {
        "objects": {"objects": [f"{folder}/store"]},
        "file": {"mirrors": [file]},
        "state": {"mirrors": [{"url": file, "state": state}]},
        "file://": {"mirrors": [(published.folder / "model.safetensors").as_uri()]},
        "torch": {"mirrors": [{"url": f"{folder}/model.pt", "format": "torch"}]},
    }
    if way != "objects":
        entry = FileEntry(
            published.entry.files["labels.json"].digest, (parse_mirror(f"{folder}/labels.json"),)
        )
        (published.folder / "labels.json").write_bytes(FILES["labels.json"])
        options[way]["files"] = {"labels.json": entry}
    manifest = write(tmp_path / "m.toml", published, **options[way])
    assert int(ran(READ, manifest, tmp_path / "cache", KEY, "1")) > 80_000
    check_cache(tmp_path / "cache")


def test_a_local_mirror_serves_where_one_on_the_network_cannot(
    published: Published, tmp_path: Path
):
    folder = published.folder
    mirrors = ["https://example.org/m", str(folder / "model.safetensors")]
    manifest = write(tmp_path / "m.toml", published, mirrors=mirrors, files={})
    ManifestStore(manifest, cache=tmp_path / "cache", offline=True).fetch(KEY)


# Caches that cannot be written.


@pytest.fixture
def read_only(cached: tuple[Path, Path], tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The same, through a mount that nobody can write to."""
    manifest, cache = cached
    mount = tmp_path / "mount"
    mount.mkdir()
    done = subprocess.run(["mount", "--bind", cache, mount], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("this user cannot mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", mount], check=True)
        yield manifest, mount
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


def test_a_cache_that_cannot_be_written_serves_what_it_has(read_only: tuple[Path, Path]):
    assert ran(READ, *read_only, KEY, "1", "") == "0\n0\n"
    store = ManifestStore(read_only[0], cache=read_only[1], offline=True)
    assert same(store.load_state_dict(KEY), TENSORS)


def test_what_a_cache_that_cannot_be_written_lacks_is_named(
    read_only: tuple[Path, Path], cached: tuple[Path, Path], published: Published, tmp_path: Path
):
    for path in cached[1].glob("objects/*/*"):
        if path.stat().st_size > 40_000:
            path.unlink()
    for offline in (True, False):
        with pytest.raises(ReadOnlyStoreError, match="2 tensors of 88192 bytes"):
            ManifestStore(read_only[0], cache=read_only[1], offline=offline).fetch(KEY)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_cache_of_another_user_serves_what_it_has(cached: tuple[Path, Path]):
    user = "import os, fcntl, mlstate.stores.manifest\n"
    user += "os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
    with folder_for_all() as folder:
        shutil.copytree(cached[1], folder / "cache")
        shutil.copy(cached[0], folder)
        here = (folder / cached[0].name, folder / "cache")
        assert ran(user + READ, *here, KEY, "1", "") == "0\n0\n"


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")}


def test_what_a_read_only_cache_has_is_not_fetched_and_nothing_is_written(
    cached: tuple[Path, Path],
    server: RecordingServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    manifest, cache = cached
    monkeypatch.setenv(
        "MLSTATE_READONLY_CACHES", os.pathsep.join([str(tmp_path / "no"), str(cache)])
    )
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "own"))
    before, requests = contents(cache), len(server.requests)
    store = ManifestStore(manifest)
    assert store.fetch(KEY).fetched == 0
    assert same(store.load_state_dict(KEY), TENSORS)
    assert store.files(KEY)["labels.json"] == FILES["labels.json"]
    assert len(server.requests) == requests
    assert contents(cache) == before
    assert not (tmp_path / "own").exists()
    assert not (tmp_path / "no").exists()


def test_only_what_a_read_only_cache_lacks_goes_into_the_own(
    cached: tuple[Path, Path],
    server: RecordingServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    manifest, cache = cached
    (gone, *_) = [path for path in cache.glob("objects/*/*") if path.stat().st_size > 40_000]
    gone.unlink()
    monkeypatch.setenv("MLSTATE_READONLY_CACHES", str(cache))
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "own"))
    before = contents(cache)
    assert ManifestStore(manifest).fetch(KEY).fetched == 44_096
    assert contents(cache) == before
    assert [path.parent.name + path.name for path in (tmp_path / "own").glob("objects/*/*")] == [
        gone.parent.name + gone.name
    ]


def test_online_the_error_is_another_one(published: Published, tmp_path: Path):
    manifest = write(tmp_path / "m.toml", published, mirrors=["nowhere"], files={})
    with pytest.raises(FetchError, match="nowhere"):
        ManifestStore(manifest, cache=tmp_path / "cache", offline=True).fetch(KEY)
