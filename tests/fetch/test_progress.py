"""Progress is told truly and to the end, and shown on a terminal alone."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mlstate import ManifestStore, StateKey
from mlstate.errors import FetchError
from mlstate.fetch import OnProgress, Progress
from mlstate.fetch import progress as module
from mlstate.objects import partial as partials
from tests.servers.recording import RecordingServer, Reply
from tests.support.fetching import CHILD, Published, check_cache, manifest_store, publish
from tests.support.fetching import write_manifest as write

KEY = StateKey.parse("pytorch.net.a")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    tensors = {f"l{i}.w": torch.randn(64, 1024) for i in range(20)} | {"b": torch.ones(3)}
    tensors["big"] = torch.randn(17 << 20)  # comes in segments
    tensors["l5.a"] = torch.randn(100, 100)  # so small a gap that a request reads over it
    result = publish(tmp_path_factory.mktemp("web"), KEY, tensors, {"f": b"file"})
    torch.save(tensors, result.folder / "model.pt")
    return result


@pytest.fixture
def server(published: Published) -> Iterator[RecordingServer]:
    with RecordingServer(published.folder) as server:
        yield server


@pytest.fixture(autouse=True)
def told_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every piece that comes, not ten times a second."""
    monkeypatch.setattr(module, "_INTERVAL", 0)


def options_of(way: str, server: RecordingServer, published: Published) -> dict[str, Any]:
    file = f"{server.url}/model.safetensors"
    state = f"{server.url}/{published.state_object}"
    return {
        "objects": {"objects": [f"{server.url}/store"]},
        "ranges": {"mirrors": [{"url": file, "state": state}], "files": {}},
        "alone": {"mirrors": [file], "files": {}},
        "torch": {"mirrors": [{"url": f"{server.url}/model.pt", "format": "torch"}], "files": {}},
    }[way]


def store_of(
    published: Published, server: RecordingServer, folder: Path, way: str, told: OnProgress
) -> ManifestStore:
    manifest = write(folder / f"{way}.toml", published, **options_of(way, server, published))
    store = manifest_store(manifest, folder / "cache")
    store.fetcher.on_progress = told
    return store


def check_told(told: list[Progress]) -> None:
    """Bytes only grow, are never more than all, and there is one end."""
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    assert all(p.total is None or 0 <= p.done <= p.total for p in told)
    assert [progress.ended for progress in told] == [False] * (len(told) - 1) + [True]
    assert {progress.what for progress in told} == {str(KEY)}
    assert all(progress.rate >= 0 for progress in told)


@pytest.mark.parametrize("way", ["objects", "ranges", "alone", "torch"])
@pytest.mark.parametrize("ranges", [True, False])
def test_bytes_grow_to_their_total(published: Published, tmp_path: Path, way: str, ranges: bool):
    told: list[Progress] = []
    with RecordingServer(published.folder, ranges=ranges) as server:
        report = store_of(published, server, tmp_path, way, told.append).fetch(KEY)
    check_told(told)
    assert report.fetched == told[-1].done >= published.nbytes - 100
    assert told[-1].total in (None, told[-1].done)
    assert len(told) > 10


def test_gaps_that_are_read_for_nothing_do_not_count(
    published: Published, server: RecordingServer, tmp_path: Path
):
    told: list[Progress] = []
    store = store_of(published, server, tmp_path, "ranges", told.append)
    store.fetch(KEY, names=[name for name in published.tensors if name != "l5.a"])
    gap, small = published.tensors["l5.a"].nbytes, 20 * 64 * 1024 * 4
    assert small + gap in [record.bytes_sent for record in server.requests]
    check_told(told)
    assert told[-1].done == told[-1].total


def test_what_a_killed_run_has_left_counts_as_done_or_not_at_all(
    published: Published, server: RecordingServer, tmp_path: Path
):
    told: list[Progress] = []

    def broken(record: Any) -> Any:
        return None if record.range is None or "-16777215" in record.range else gone

    gone = Reply(403)
    server.before = broken
    store = store_of(published, server, tmp_path, "objects", told.append)
    with pytest.raises(FetchError):
        store.fetch(KEY)
    check_told(told)
    assert list((tmp_path / "cache" / "tmp").glob("*.partial"))
    server.before = None
    told.clear()
    store.fetch(KEY)
    check_told(told)
    assert told[-1].total == told[-1].done


def test_it_ends_after_an_error_too(published: Published, tmp_path: Path):
    told: list[Progress] = []
    with RecordingServer({}) as nothing:
        store = store_of(published, nothing, tmp_path, "objects", told.append)
        with pytest.raises(FetchError):
            store.fetch(KEY)
    check_told(told)
    assert told[-1].ended


def test_it_goes_on_over_mirrors(published: Published, server: RecordingServer, tmp_path: Path):
    """The first breaks in the middle; the second brings the rest."""
    told: list[Progress] = []
    paths = [path.relative_to(published.folder) for path in published.folder.rglob("*")]
    some = {str(path): published.folder / path for path in paths if str(path)[-1] in "0123456789"}
    with RecordingServer(some) as partly:
        objects = [f"{partly.url}/store", f"{server.url}/store"]
        manifest = write(tmp_path / "m.toml", published, objects=objects)
        store = manifest_store(manifest, tmp_path / "cache")
        store.fetcher.on_progress = told.append
        store.fetch(KEY)
    check_told(told)
    assert told[-1].done == told[-1].total


def test_nothing_is_told_where_nothing_is_missing(
    published: Published, server: RecordingServer, tmp_path: Path
):
    told: list[Progress] = []
    store = store_of(published, server, tmp_path, "objects", told.append)
    store.fetch(KEY)
    told.clear()
    store.fetch(KEY)
    assert told == []


def test_it_is_told_by_one_thread_at_a_time(
    published: Published, server: RecordingServer, tmp_path: Path
):
    lock = threading.Lock()

    def tell(progress: Progress) -> None:
        assert lock.acquire(blocking=False)
        lock.release()

    store_of(published, server, tmp_path, "objects", tell).fetch(KEY)


@pytest.mark.parametrize("way", ["objects", "ranges", "alone", "torch"])
def test_an_error_of_the_callback_ends_the_fetch_and_leaves_nothing_half(
    published: Published, server: RecordingServer, tmp_path: Path, way: str
):
    class StopError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.done > 10_000_000:
            raise StopError

    store = store_of(published, server, tmp_path, way, stop)
    with pytest.raises(StopError):
        store.fetch(KEY)
    check_cache(tmp_path / "cache")
    ours = ("(run)", "(do_all)")
    assert not [t.name for t in threading.enumerate() if t.name.endswith(ours)]
    store.fetcher.on_progress = None
    store.fetch(KEY)
    check_cache(tmp_path / "cache")


def test_progress_true_is_silent_without_a_terminal(
    published: Published, server: RecordingServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    manifest = write(tmp_path / "m.toml", published, objects=[f"{server.url}/store"])
    for progress in (True, False, None):
        cache = tmp_path / f"cache-{progress}"
        ManifestStore(manifest, cache=cache, progress=progress).fetch(KEY)
    assert capfd.readouterr() == ("", "")


TWICE = """
key = StateKey.parse(sys.argv[3])
import shutil
store = ManifestStore(sys.argv[1], cache=sys.argv[2], progress=True)
for _ in range(2):
    store.fetch(key)
    shutil.rmtree(sys.argv[2])
print("torch" in sys.modules, "rich" in sys.modules)
"""


def on_terminal(code: str, *arguments: object) -> tuple[str, str]:
    """Run code whose standard error is a terminal; standard output, and what the terminal got."""
    ours, theirs = pty.openpty()
    shown = bytearray()
    command = [sys.executable, "-c", CHILD + code, *map(str, arguments)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT, env=environment, text=True
    ) as child:
        os.close(theirs)

        def read() -> None:
            try:
                while data := os.read(ours, 1 << 16):
                    shown.extend(data)
            except OSError:
                pass  # the other end is closed

        reader = threading.Thread(target=read)
        reader.start()
        out, _ = child.communicate(timeout=60)
        reader.join(10)
    os.close(ours)
    assert child.returncode == 0, shown.decode()
    return out, shown.decode()


def test_a_bar_on_a_terminal(published: Published, server: RecordingServer, tmp_path: Path):
    manifest = write(tmp_path / "m.toml", published, objects=[f"{server.url}/store"])
    out, shown = on_terminal(TWICE, manifest, tmp_path / "cache", KEY)
    assert out == "False True\n"
    assert str(KEY) in shown
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"\d+\.\d/\d+\.\d MB", text)
    assert len(re.findall(r"76\.\d/76\.\d MB", text)) >= 2  # both went to the end
    assert "\x1b[?25h" in shown[-200:]  # the cursor is back


def test_nothing_is_shown_on_a_terminal_unless_asked_for(
    published: Published, server: RecordingServer, tmp_path: Path
):
    manifest = write(tmp_path / "m.toml", published, objects=[f"{server.url}/store"])
    silent = TWICE.replace(", progress=True", "")
    assert on_terminal(silent, manifest, tmp_path / "cache", KEY) == ("False False\n", "")


def test_segments_are_as_large_as_these_tests_assume():
    assert partials.SEGMENT == 16 << 20
