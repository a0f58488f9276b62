"""A fetch that is killed, interrupted or shared goes on: what is complete is not fetched again."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from mlstate import StateKey
from mlstate.format import layout
from mlstate.objects.partial import BLOCK, SEGMENT
from tests.servers.recording import Record, RecordingServer, Reply
from tests.support.fetching import Published, check_cache, manifest_store, publish, start_child
from tests.support.fetching import write_manifest as write
from tests.support.models import same

KEY = StateKey.parse("pytorch.net.a")
MB = 1 << 20
WAYS = ["objects", "ranges", "alone", "torch"]
FETCH = """
report = open_store(sys.argv[1], sys.argv[2]).fetch(StateKey.parse(sys.argv[3]))
print(report.fetched)
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """One tensor that comes in segments, some that come whole, one inside the state object."""
    generator = torch.Generator().manual_seed(0)
    tensors = {f"l{i}.w": torch.randn(MB // 2, generator=generator) for i in range(8)}
    tensors |= {"big": torch.randn(17 * MB, generator=generator), "b": torch.ones(10)}
    folder = tmp_path_factory.mktemp("web")
    result = publish(folder, KEY, tensors)
    torch.save(tensors, folder / "model.pt")
    return result


class Gate:
    """Lets so many requests pass, but for some, and holds the others until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.left = 1_000_000
        self.holds: Callable[[Record], bool] = lambda record: False
        self._lock = threading.Lock()

    def __call__(self, record: Record) -> Reply | None:
        with self._lock:
            self.left -= 1
            passes = self.left >= 0 and not self.holds(record)
        if not passes:
            self.opened.wait(30)
        return None


@dataclass
class Scene:
    """A server, a cache, and what is known of both."""

    published: Published
    server: RecordingServer
    gate: Gate
    folder: Path
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, code: str, *arguments: object) -> subprocess.Popen[str]:
        self.children.append(start_child(code, *arguments))
        return self.children[-1]

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def manifest(self, way: str, url: str | None = None) -> Path:
        path, url = self.folder / f"{way}.toml", url or self.server.url
        file = f"{url}/model.safetensors"
        options: dict[str, Any] = {
            "objects": {"objects": [f"{url}/store"]},
            "ranges": {"mirrors": [{"url": file, "state": f"{url}/{self.published.state_object}"}]},
            "alone": {"mirrors": [file]},
            "torch": {"mirrors": [{"url": f"{url}/model.pt", "format": "torch"}]},
        }
        return write(path, self.published, **options[way])

    def complete(self) -> int:
        """The bytes in the cache that no later run needs to fetch."""
        count = 0
        for path in self.cache.rglob("*"):
            with suppress(FileNotFoundError):  # it may have another name by now
                if path.suffix == layout.DONE_SUFFIX:
                    size = path.with_suffix("").stat().st_size
                    marks = enumerate(path.read_bytes())
                    count += sum(min(BLOCK, size - i * BLOCK) for i, done in marks if done)
                elif path.suffix == layout.STAGED_SUFFIX or "objects" in path.parts:
                    count += path.stat().st_size if path.is_file() else 0
        return count

    def start_and_wait(self, way: str, code: str = FETCH) -> subprocess.Popen[str]:
        """Fetch in a process until all is complete but one segment, which is never answered.

        Args:
            way: By which mirror.
            code: What the process runs.
        """

        def holds(record: Record) -> bool:
            # The first of a tensor, which the object's header is a part of; else the second: until
            # the first is answered, nobody knows whether it is redirected.
            second = (record.range or "").startswith(f"bytes={SEGMENT}-")
            return asked(record) == SEGMENT - 4096 or (second and asked(record) == SEGMENT)

        self.gate.holds = holds
        child = self.start(code, self.manifest(way), self.cache, KEY)
        wait_until(lambda: self.complete() >= self.published.nbytes - SEGMENT - 4096)
        return child

    def killed(self, way: str) -> int:
        """The same; it is killed then. Returns the bytes that are complete."""
        child = self.start_and_wait(way)
        child.kill()
        out, errors = child.communicate()
        assert (child.returncode, out, errors) == (-signal.SIGKILL, "", "")
        self.gate.opened.set()
        return self.complete()

    def again(self, way: str) -> int:
        """Fetch in this process; the bytes that the server sent for it."""
        self.server.reset()
        store = manifest_store(self.manifest(way), self.cache)
        store.fetch(KEY)
        sent = self.server.bytes_sent
        assert same(store.load_state_dict(KEY), dict(self.published.tensors))
        assert self.server.bytes_sent == sent
        check_cache(self.cache)
        return sent


@pytest.fixture
def scene(published: Published, tmp_path: Path) -> Iterator[Scene]:
    gate = Gate()
    with RecordingServer(published.folder, before=gate) as server:
        scene = Scene(published, server, gate, tmp_path)
        yield scene
        gate.opened.set()
        for child in scene.children:
            with child:
                child.kill()


@pytest.mark.parametrize("way", WAYS)
def test_after_kill_9_what_was_complete_is_not_fetched_again(scene: Scene, way: str):
    complete = scene.killed(way)
    # A header, the state object, and what a zip file has beside the tensors.
    assert scene.again(way) <= scene.published.nbytes - complete + 100_000
    assert [path.name for path in (scene.cache / "tmp").iterdir()] == []


def test_what_every_stream_had_brought_when_it_was_killed_is_not_fetched_again(
    scene: Scene, start_nginx
):
    """As of one large tensor from a slow server: all of its streams are half way through."""
    slow = start_nginx(scene.published.folder, limit_rate=2 << 20).url("", "slow").rstrip("/")
    child = scene.start(FETCH, scene.manifest("ranges", slow), scene.cache, KEY)
    wait_until(lambda: scene.complete() >= scene.published.nbytes // 3)
    child.kill()
    child.communicate()
    scene.gate.opened.set()
    complete = scene.complete()
    assert complete < scene.published.nbytes - BLOCK
    assert scene.again("ranges") <= scene.published.nbytes - complete + 100_000


@pytest.mark.parametrize("way", WAYS)
def test_a_partial_that_was_damaged_meanwhile_is_noticed(scene: Scene, way: str):
    scene.killed(way)
    (partial,) = (scene.cache / "tmp").glob(f"*{layout.PARTIAL_SUFFIX}")
    marks = partial.with_name(partial.name + layout.DONE_SUFFIX).read_bytes()
    flip(partial, marks.index(1) * BLOCK + BLOCK // 2)
    assert scene.again(way) > scene.published.tensors["big"].nbytes
    assert [path.name for path in (scene.cache / "tmp").iterdir()] == []


def test_staged_tensors_that_were_damaged_meanwhile_are_noticed(scene: Scene):
    scene.killed("alone")
    staged = sorted((scene.cache / "tmp").glob(f"*{layout.STAGED_SUFFIX}"))
    assert staged
    flip(staged[0], 5000)
    scene.again("alone")
    assert [path.name for path in (scene.cache / "tmp").iterdir()] == []


def asked(record: Record) -> int:
    """How many bytes a request asks for."""
    first, _, last = (record.range or "bytes=0-0").removeprefix("bytes=").partition("-")
    return int(last) - int(first) + 1


def flip(path: Path, position: int) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


def test_a_damaged_file_that_cannot_even_be_read_is_fetched_again(scene: Scene):
    """What torch or zipfile cannot read says nothing of which bytes are wrong."""
    scene.killed("torch")
    (partial,) = (scene.cache / "tmp").glob(f"*{layout.PARTIAL_SUFFIX}")
    for position in (0, 1, 2, 3):
        flip(partial, position)
    scene.again("torch")


@pytest.mark.parametrize("way", ["objects", "alone"])
def test_kill_9_at_any_moment_costs_what_was_under_way_alone(
    scene: Scene, start_chaos: Callable[..., Any], way: str
):
    scene.gate.opened.set()
    rng = random.Random(way)
    with_rate = start_chaos(scene.server.url, rate=12 * MB)
    manifest = scene.manifest(way, with_rate.url)
    for _ in range(2):
        child = scene.start(FETCH, manifest, scene.cache, KEY)
        scene.server.reset()
        wait_until(
            lambda child=child: child.poll() is not None or scene.server.bytes_sent > 10 * MB
        )
        time.sleep(rng.uniform(0, 1.2))
        child.kill()
        child.communicate()
    complete = scene.complete()
    assert scene.again(way) <= scene.published.nbytes - complete + 100_000


INTERRUPTED = """
try:
    open_store(sys.argv[1], sys.argv[2], read_timeout=60).fetch(StateKey.parse(sys.argv[3]))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    ("way", "server"),
    [*((way, "stalls") for way in WAYS), ("objects", "flows"), ("alone", "is silent")],
)
def test_ctrl_c_ends_it_soon_and_a_later_run_goes_on(
    scene: Scene, start_chaos: Callable[..., Any], way: str, server: str
):
    if server == "is silent":
        scene.gate.left = 4
        manifest = scene.manifest(way)
    else:
        scene.gate.opened.set()
        faults = {"stall_after": 2 * MB} if server == "stalls" else {"rate": 2 * MB}
        manifest = scene.manifest(way, start_chaos(scene.server.url, **faults).url)
    child = scene.start(INTERRUPTED, manifest, scene.cache, KEY)
    wait_until(lambda: scene.server.bytes_sent > 3 * MB)
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, errors = child.communicate(timeout=30)
    seconds = time.monotonic() - began
    assert (child.returncode, out, errors) == (0, "interrupted\n", "")
    assert seconds < 2.5
    check_cache(scene.cache)
    scene.gate.opened.set()
    scene.again(way)


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


TOGETHER = """
print("ready", flush=True)
sys.stdin.readline()
report = open_store(sys.argv[1], sys.argv[2]).fetch(StateKey.parse(sys.argv[3]))
assert "torch" not in sys.modules
print(report.fetched)
"""
WITHOUT_LOCKS = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOLCK, "no locks here")
fcntl.flock = flock
"""


def together(scene: Scene, way: str, count: int, code: str) -> list[int]:
    """Fetch in several processes at once; the bytes that each says it has fetched."""
    manifest = scene.manifest(way)
    children = [scene.start(code, manifest, scene.cache, KEY) for _ in range(count)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    fetched = []
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        out, errors = child.communicate(timeout=60)
        assert (child.returncode, errors) == (0, "")
        fetched.append(int(out))
    return fetched


@pytest.mark.parametrize(
    ("way", "count"), [("objects", 8), ("objects", 2), ("ranges", 2), ("alone", 2)]
)
def test_processes_at_once_fetch_it_once_together(scene: Scene, way: str, count: int):
    scene.gate.opened.set()
    fetched = together(scene, way, count, TOGETHER)
    assert scene.server.bytes_sent < 1.01 * scene.published.nbytes
    assert sorted(fetched)[:-1] == [0] * (count - 1)
    assert scene.again(way) == 0
    assert [path.name for path in (scene.cache / "tmp").iterdir()] == []


@pytest.mark.parametrize("way", ["objects", "alone"])
def test_without_locks_processes_at_once_are_right_all_the_same(scene: Scene, way: str):
    scene.gate.opened.set()
    began = time.monotonic()
    together(scene, way, 3, WITHOUT_LOCKS + TOGETHER)
    assert time.monotonic() - began < 20  # nobody waits for a lock that cannot be had
    assert scene.again(way) == 0
    assert [path.name for path in (scene.cache / "tmp").iterdir()] == []


IMPATIENT = """
import mlstate.fetch.fetcher as module
module.one_at_a_time = partial(module.one_at_a_time, patience=1)
import mlstate.claims
mlstate.claims.Claims.__init__.__defaults__ = (1.0,)
"""


def test_a_process_that_is_stopped_keeps_no_other_waiting_for_ever(scene: Scene):
    stopped = scene.start_and_wait("objects", code=IMPATIENT + FETCH)
    manifest = scene.manifest("objects")
    stopped.send_signal(signal.SIGSTOP)
    try:
        scene.gate.opened.set()
        began = time.monotonic()
        other = scene.start(IMPATIENT + FETCH, manifest, scene.cache, KEY)
        out, errors = other.communicate(timeout=30)
        assert (other.returncode, errors) == (0, "")
        assert int(out) > 0
        assert 0.5 < time.monotonic() - began < 10
    finally:
        stopped.send_signal(signal.SIGCONT)
    out, errors = stopped.communicate(timeout=30)
    assert (stopped.returncode, errors) == (0, "")  # it finds the work done, or does its own part
    assert scene.again("objects") == 0


@pytest.mark.usefixtures("ctrl_c")
def test_who_waits_for_another_can_be_interrupted(scene: Scene):
    working = scene.start_and_wait("objects")
    manifest = scene.manifest("objects")
    waiting = scene.start("print('ready', flush=True)" + INTERRUPTED, manifest, scene.cache, KEY)
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "ready\n"
    time.sleep(0.5)
    assert waiting.poll() is None
    waiting.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, errors = waiting.communicate(timeout=30)
    assert (waiting.returncode, out, errors) == (0, "interrupted\n", "")
    assert time.monotonic() - began < 2.5
    scene.gate.opened.set()
    out, errors = working.communicate(timeout=30)
    assert (working.returncode, errors) == (0, "")
    assert scene.again("objects") == 0
