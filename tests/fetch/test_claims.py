"""Related states through one cache at once: each object comes once, whichever process brings it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlstate import LocalStateStore, Manifest, StateKey
from mlstate.claims import Claims
from mlstate.fetch.progress import Progress
from mlstate.format import layout
from mlstate.locations import parse_mirror
from mlstate.manifests import StateEntry
from mlstate.reading import read_state
from tests.servers.recording import Record, RecordingServer, Reply
from tests.support.fetching import check_cache, leftovers, manifest_store, start_child
from tests.support.models import same

ONE, TWO = StateKey.parse("pytorch.net.one"), StateKey.parse("pytorch.net.two")
MB = 1 << 20
FETCH = """
store = open_store(sys.argv[1], sys.argv[2])
print('ready', flush=True)
sys.stdin.readline()
print(store.fetch(StateKey.parse(sys.argv[3])).fetched)
"""


@dataclass
class Scene:
    """Two states that have most objects in common, one of them large, and a server of both."""

    folder: Path
    server: RecordingServer
    tensors: dict[StateKey, dict[str, torch.Tensor]]
    entries: dict[StateKey, StateEntry]
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def union(self) -> int:
        """The bytes of all objects of both states."""
        return sum(path.stat().st_size for path in (self.folder / "web/objects").glob("*/*"))

    def manifest(self, way: str) -> Path:
        path = self.folder / f"{way}.toml"
        entries = {}
        for key, entry in self.entries.items():
            fields = {"objects": (self.server.url,)}
            if way == "files":
                mirror = {
                    "url": f"{self.server.url}/{key.training_id}.safetensors",
                    "state": f"{self.server.url}/{layout.object_path(entry.pinned_digest)}",
                }
                fields = {"mirrors": (parse_mirror(mirror),)}
            entries[key] = StateEntry(key, entry.digest, entry.size, **fields)
        Manifest(entries).write(path)
        return path

    def start(self, key: StateKey, way: str = "objects", code: str = FETCH):
        child = start_child(code, self.manifest(way), self.cache, key)
        self.children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    def check(self, *left: str) -> None:
        """Both states are there, and nothing else but these files."""
        store = manifest_store(self.manifest("objects"), self.cache)
        self.server.reset()
        for key, tensors in self.tensors.items():
            same(store.load_state_dict(key), tensors)
        assert self.server.requests == []
        check_cache(self.cache)
        assert leftovers(self.cache).keys() <= set(left)


def go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def done(child: subprocess.Popen[str]) -> int:
    out, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (0, "")
    return int(out)


@pytest.fixture
def scene(tmp_path: Path, start_recording: Callable[..., RecordingServer]):
    generator = torch.Generator().manual_seed(0)
    shared = {f"l{i}.w": torch.randn(MB // 2, generator=generator) for i in range(30)}
    shared["big"] = torch.randn(17 * MB, generator=generator)
    tensors = {
        key: {**shared, "own": torch.randn(MB, generator=generator), "b": torch.ones(10)}
        for key in (ONE, TWO)
    }
    store = LocalStateStore(tmp_path / "web")
    for key, state in tensors.items():
        store.save_state_dict(state, key)
        save_file(state, tmp_path / "web" / f"{key.training_id}.safetensors")
    entries = {key: store.get(key).entry for key in tensors}
    scene = Scene(tmp_path, start_recording(tmp_path / "web"), tensors, entries)
    yield scene
    for child in scene.children:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("way", ["objects", "files"])
def test_two_related_states_at_once_cost_their_union(scene: Scene, way: str):
    children = [scene.start(key, way) for key in (ONE, TWO)]
    for child in children:
        go(child)
    fetched = sum(map(done, children))
    assert scene.union <= fetched + 200_000
    assert scene.server.bytes_sent < 1.01 * scene.union
    scene.check()


def test_the_second_one_brings_what_the_first_has_not_begun(scene: Scene):
    opened = threading.Event()
    names = {ref.digest for ref in read_refs(scene, ONE)}
    held: list[str] = []

    def hold(record: Record) -> Reply | None:
        """Hold the first requests for objects: those of the first process."""
        digest = "".join(record.name.split("/")[-2:])
        if digest in names and len(held) < 4:
            held.append(digest)
            opened.wait(60)
        return None

    scene.server.before = hold
    first = scene.start(ONE)
    go(first)
    wait_until(lambda: len(held) == 4)
    second = scene.start(TWO)
    go(second)
    store = LocalStateStore(scene.cache)
    others = {ref.digest for ref in read_refs(scene, TWO)} - set(held)
    wait_until(lambda: all(store.own.size(digest) for digest in others))
    assert second.poll() is None  # it waits for what the first has begun
    opened.set()
    done(first)
    done(second)
    assert scene.server.bytes_sent < 1.01 * scene.union
    scene.check()


def test_a_process_that_is_killed_leaves_its_part_to_the_other(scene: Scene):
    opened = threading.Event()
    asked: list[str] = []

    def hold(record: Record) -> Reply | None:
        if record.range is not None and not opened.is_set():
            asked.append(record.range)
            opened.wait(60)
        return None

    scene.server.before = hold
    first = scene.start(ONE)
    go(first)
    wait_until(lambda: bool(asked))
    second = scene.start(TWO)
    go(second)
    store = LocalStateStore(scene.cache)
    others = {ref.digest for ref in read_refs(scene, TWO) if ref.spec.nbytes < 64 * MB}
    wait_until(lambda: all(store.own.size(digest) for digest in others))
    assert second.poll() is None
    first.kill()
    opened.set()
    done(second)
    manifest_store(scene.manifest("objects"), scene.cache).fetch(ONE)
    scene.check(f"{scene.entries[ONE].digest}{layout.LOCK_SUFFIX}")  # of the one that was killed


def test_a_process_that_is_stopped_is_not_waited_for_for_ever(scene: Scene):
    opened = threading.Event()
    asked: list[str] = []

    def hold(record: Record) -> Reply | None:
        if record.range is not None and not opened.is_set():
            asked.append(record.range)
            opened.wait(60)
        return None

    scene.server.before = hold
    impatient = "import mlstate.claims as c; c.Claims.__init__.__defaults__ = (1.0,)\n" + FETCH
    first = scene.start(ONE, code=impatient)
    go(first)
    wait_until(lambda: bool(asked))
    first.send_signal(signal.SIGSTOP)
    try:
        opened.set()
        second = scene.start(TWO, code=impatient)
        go(second)
        done(second)
    finally:
        first.send_signal(signal.SIGCONT)
    done(first)
    scene.check()


def test_a_wait_says_why(scene: Scene):
    refs = read_refs(scene, TWO)
    (scene.cache / "tmp").mkdir(parents=True)
    (scene.cache / "mlstate.toml").write_bytes(layout.NEW_SETTINGS)
    told: list[Progress] = []
    store = manifest_store(scene.manifest("objects"), scene.cache)
    with Claims(scene.cache / layout.TEMPORARIES / layout.CLAIMS) as other:
        mine = [ref for ref in refs if ref.spec.nbytes < 64 * MB][:2]
        for ref in mine:
            assert other.take(ref.digest)

        def listen(progress: Progress) -> None:
            told.append(progress)
            if progress.waiting:
                other.give_all()

        store.fetcher.on_progress = listen
        store.fetch(TWO)
    size = sum(4096 + ref.spec.nbytes for ref in mine)
    waits = {progress.waiting for progress in told}
    assert waits == {"", f"another process brings 2 objects ({size / 1e6:.1f} MB) of it"}
    assert told[-1].waiting == ""
    assert told[-1].done == told[-1].total


def read_refs(scene: Scene, key: StateKey):
    store = LocalStateStore(scene.folder / "web")
    return list(read_state(*store.get(key)).refs.values())


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_one_process_has_few_files_open_for_it(scene: Scene):
    """Claims take one file, however many objects there are."""
    before = len(os.listdir("/proc/self/fd"))
    with Claims(scene.folder / "claims") as claims:
        assert all(claims.take(f"{n:064x}") for n in range(0, 2**60, 2**48))
        assert len(os.listdir("/proc/self/fd")) == before + 1
