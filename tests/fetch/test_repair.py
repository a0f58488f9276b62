"""Damage in a cache is set aside, named and fetched again once; and what pruning leaves."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlstate import LocalStateStore, ManifestStore
from mlstate.digests import Digest
from mlstate.errors import IntegrityError, MlstateError, ObjectNotFoundError
from mlstate.format import layout
from tests.servers.recording import RecordingServer
from tests.support.fetching import (
    FILES,
    KEY,
    TENSORS,
    Published,
    check_cache,
    manifest_store,
    publish,
    start_child,
)
from tests.support.fetching import write_manifest as write
from tests.support.models import same

FILES = {**FILES, "vocab.txt": b"a\nb"}
TENSOR_BYTES = 44_096


@dataclass
class Scene:
    """A state in a cache, the server that it came from, and manifests of it."""

    published: Published
    server: RecordingServer
    folder: Path

    def manifest(self, **options: Any) -> Path:
        options = options or {"objects": [f"{self.server.url}/store"]}
        return write(
            self.folder / f"{len([*self.folder.iterdir()])}.toml", self.published, **options
        )

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def store(self) -> ManifestStore:
        return manifest_store(self.manifest(), self.cache)

    def digest(self, what: str) -> Digest:
        entry = self.published.entry
        if what == "state":
            return entry.pinned_digest
        if what in entry.files:
            return entry.files[what].digest
        states = LocalStateStore(self.published.folder / "store")
        with states.objects.open(entry.pinned_digest) as file:
            from mlstate.format.state_object import StateObject

            return StateObject.parse(file.read()).refs[what].digest

    def damage(self, what: str, folder: Path | None = None, how: str = "flip") -> Path:
        path = (folder or self.cache) / layout.object_path(self.digest(what))
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data if how == "flip" else data[: len(data) // 2])
        return path

    def trash(self) -> list[str]:
        trash = self.cache / layout.TRASH
        return sorted(path.name for path in trash.iterdir()) if trash.exists() else []


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish(tmp_path_factory.mktemp("web"), KEY, TENSORS, FILES)


@pytest.fixture
def scene(published: Published, tmp_path: Path) -> Iterator[Scene]:
    with RecordingServer(published.folder) as server:
        scene = Scene(published, server, tmp_path)
        scene.store.fetch(KEY)
        server.reset()
        yield scene


def load_all(store: Any) -> None:
    assert same(store.load_state_dict(KEY), TENSORS)


def read_files(store: Any) -> None:
    assert dict(store.files(KEY)) == FILES


LOADS: dict[str, Callable[[Any], None]] = {"load": load_all, "files": read_files}


def quiet(scene: Scene) -> None:
    """Everything is there and right, and asking for it needs nobody."""
    scene.server.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for load in LOADS.values():
            load(scene.store)
    assert scene.server.requests == []
    assert check_cache(scene.cache) == 5


@pytest.mark.parametrize(
    ("what", "load"),
    [("l1.w", "load"), ("state", "load"), ("labels.json", "files"), ("vocab.txt", "files")],
)
def test_a_damaged_object_is_kept_named_and_fetched_again_once(scene: Scene, what: str, load: str):
    damaged = scene.damage(what).read_bytes()
    with pytest.warns(UserWarning, match="damaged") as caught:
        LOADS[load](scene.store)
    (name,) = scene.trash()
    assert name.startswith(f"{scene.digest(what)}{layout.DAMAGED_SUFFIX}")
    assert (scene.cache / layout.TRASH / name).read_bytes() == damaged
    (warning,) = caught
    assert str(scene.cache / layout.TRASH / name) in str(warning.message)
    assert str(KEY) in str(warning.message)
    assert warning.filename == __file__
    assert len(scene.server.requests) == 1
    quiet(scene)


@pytest.mark.parametrize("what", ["l1.w", "state"])
def test_a_truncated_object_is_as_good_as_damaged(scene: Scene, what: str):
    scene.damage(what, how="cut")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tensor of another size is simply missing
        load_all(scene.store)
    quiet(scene)


def test_all_that_is_damaged_is_mended_at_once(scene: Scene):
    for what in ("l1.w", "l2.w", "state", "labels.json"):
        scene.damage(what)
    with pytest.warns(UserWarning, match="damaged"):
        load_all(scene.store)
    assert len(scene.trash()) == 4
    quiet(scene)


def test_fetching_again_does_not_bring_more_than_was_asked_for(scene: Scene):
    """Of a large state somebody may want one tensor."""
    shutil.rmtree(scene.cache)
    store = scene.store
    store.load_state_dict(KEY, ["l1.w"])
    assert [*store.files(KEY)] == [*FILES]
    scene.damage("l1.w")
    scene.server.reset()
    with pytest.warns(UserWarning, match="damaged"):
        assert same(store.load_state_dict(KEY, ["l1.w"]), {"l1.w": TENSORS["l1.w"]})
    assert scene.server.bytes_sent == TENSOR_BYTES


def test_a_damaged_file_is_mended_where_nothing_else_of_the_state_is_there(scene: Scene):
    shutil.rmtree(scene.cache)
    store = scene.store
    read_files(store)
    scene.damage("labels.json")
    scene.server.reset()
    with pytest.warns(UserWarning, match="damaged"):
        read_files(store)
    assert scene.server.bytes_sent == len(FILES["labels.json"])


@pytest.mark.parametrize("mirror", ["file", "state"])
def test_a_file_mirror_mends_a_tensor(scene: Scene, mirror: str):
    url = f"{scene.server.url}/model.safetensors"
    state = f"{scene.server.url}/{scene.published.state_object}"
    mirrors = [{"url": url, "state": state} if mirror == "state" else url]
    scene.damage("l1.w")
    store = manifest_store(scene.manifest(mirrors=mirrors), scene.cache)
    with pytest.warns(UserWarning, match="damaged"):
        load_all(store)
    # A header, and the tensor's data; the one beside it is not asked for.
    assert scene.server.bytes_sent < TENSOR_BYTES + 2000
    quiet(scene)


@pytest.mark.parametrize(
    ("what", "load"), [("l1.w", "load"), ("state", "load"), ("labels.json", "files")]
)
def test_without_a_mirror_it_is_an_error_and_nothing_is_moved(scene: Scene, what: str, load: str):
    path = scene.damage(what)
    data = path.read_bytes()
    store = manifest_store(
        scene.manifest(mirrors=[], objects=[], files=scene.published.entry.files), scene.cache
    )
    with pytest.raises(IntegrityError) as caught:
        LOADS[load](store)
    assert caught.value.path == str(path)
    assert caught.value.expected == scene.digest(what)
    assert caught.value.key == KEY
    assert path.read_bytes() == data
    assert scene.trash() == []


@pytest.mark.parametrize("trouble", ["gone", "lies", "offline"])
def test_where_no_mirror_can_help_the_error_says_what_is_damaged(scene: Scene, trouble: str):
    path = scene.damage("l1.w")
    store = scene.store
    if trouble == "gone":
        scene.server.files = {}
    elif trouble == "lies":
        name = scene.published.path_of(scene.digest("l1.w"))
        scene.server.files = {
            str(file.relative_to(scene.published.folder)): file
            for file in scene.published.folder.rglob("*")
            if file.is_file()
        } | {name: path.read_bytes()}
    else:
        store = ManifestStore(scene.manifest(), cache=scene.cache, offline=True)
    with pytest.raises(MlstateError) as caught:
        load_all(store)
    assert isinstance(caught.value, IntegrityError)
    assert caught.value.tensor == "l1.w"
    # Nothing is lost: it is where it was, or in the trash.
    assert path.exists() or scene.trash()
    scene.server.files = scene.published.folder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_all(scene.store)
    quiet(scene)


def test_a_store_that_is_used_directly_reports_and_mends_nothing(scene: Scene):
    copy = scene.folder / "copy"
    shutil.copytree(scene.published.folder / "store", copy)
    path = scene.damage("l1.w", copy)
    data = path.read_bytes()
    with pytest.raises(IntegrityError) as caught:
        load_all(LocalStateStore(copy))
    assert caught.value.path == str(path)
    assert path.read_bytes() == data
    assert not (copy / layout.TRASH).exists()


@pytest.fixture
def chained(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the scene is a read-only one; the own folder is empty."""
    monkeypatch.setenv("MLSTATE_READONLY_CACHES", str(scene.cache))
    monkeypatch.setenv("MLSTATE_CACHE", str(scene.folder / "own"))
    return scene.folder / "own"


@pytest.mark.parametrize(
    ("what", "load"), [("l1.w", "load"), ("state", "load"), ("labels.json", "files")]
)
def test_a_damaged_object_of_a_read_only_cache_is_passed_over(
    scene: Scene, chained: Path, what: str, load: str
):
    path = scene.damage(what)
    data = path.read_bytes()
    store = ManifestStore(scene.manifest())
    with pytest.warns(UserWarning, match="damaged") as caught:
        LOADS[load](store)
    assert str(path) in str(caught[0].message)
    assert path.read_bytes() == data
    assert scene.trash() == []
    assert check_cache(chained) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LOADS[load](store)
    assert len(scene.server.requests) == 1
    with pytest.warns(UserWarning, match="damaged"):  # another process begins with it again
        LOADS[load](ManifestStore(scene.manifest()))
    assert len(scene.server.requests) == 1


def test_a_sound_copy_in_a_later_cache_needs_no_mirror(scene: Scene, chained: Path):
    shutil.copytree(scene.cache, chained)
    scene.damage("l1.w")
    store = ManifestStore(scene.manifest(mirrors=[], objects=[]))
    with pytest.warns(UserWarning, match="damaged"):
        load_all(store)


READ_ALL = """
import warnings
warnings.simplefilter("ignore", UserWarning)
store = open_store(sys.argv[1], sys.argv[2])
sys.stdin.readline()
assert dict(store.files(StateKey.parse(sys.argv[3])))["labels.json"] == b"[1, 2]"
"""


def test_many_processes_mend_the_same_at_once(scene: Scene):
    scene.damage("labels.json")
    manifest = scene.manifest()
    children = [start_child(READ_ALL, manifest, scene.cache, KEY) for _ in range(6)]
    time.sleep(1)
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    errors = [child.communicate(timeout=60)[1] for child in children]
    assert errors == [""] * 6
    assert scene.trash()
    quiet(scene)


# What a cache keeps when it is pruned.


def prune_twice(cache: Path) -> list[str]:
    store = LocalStateStore(cache)
    reports = [store.prune(grace_seconds=0) for _ in range(2)]
    assert all(not report.trashed and not report.deleted for report in reports)
    return [Path(path).name for report in reports for path in report.swept]


def test_pruning_takes_nothing_of_what_was_fetched(scene: Scene):
    time.sleep(0.02)
    assert prune_twice(scene.cache) == []
    quiet(scene)


@pytest.mark.parametrize("way", ["object", "file", "local"])
def test_pruning_takes_nothing_whichever_way_it_came(scene: Scene, way: str):
    shutil.rmtree(scene.cache)
    file = f"{scene.server.url}/model.safetensors"
    options: dict[str, Any] = {
        "object": {"objects": [f"{scene.server.url}/store"]},
        "file": {"mirrors": [file], "files": {}},
        "local": {"mirrors": [str(scene.published.folder / "model.safetensors")], "files": {}},
    }
    store = manifest_store(scene.manifest(**options[way]), scene.cache)
    store.fetch(KEY)
    time.sleep(0.02)
    assert prune_twice(scene.cache) == []
    scene.server.reset()
    load_all(store)
    assert scene.server.requests == []


def test_pruning_takes_nothing_of_what_was_fetched_in_part(scene: Scene):
    shutil.rmtree(scene.cache)
    store = scene.store
    store.load_state_dict(KEY, ["l1.w"])
    read_files(store)
    time.sleep(0.02)
    assert prune_twice(scene.cache) == []
    scene.server.reset()
    store.load_state_dict(KEY, ["l1.w"])
    read_files(store)
    assert scene.server.requests == []


def test_pruning_takes_nothing_of_a_fetch_that_failed_half_way(scene: Scene):
    """The next one goes on; what a kill leaves is the same."""
    shutil.rmtree(scene.cache)
    one = scene.published.path_of(scene.digest("l2.w"))
    scene.server.before = lambda record: None
    scene.server.files = {
        str(file.relative_to(scene.published.folder)): file
        for file in scene.published.folder.rglob("*")
        if file.is_file() and str(file.relative_to(scene.published.folder)) != one
    }
    with pytest.raises(MlstateError):
        scene.store.fetch(KEY)
    time.sleep(0.02)
    assert prune_twice(scene.cache) == []
    scene.server.files = scene.published.folder
    scene.server.reset()
    scene.store.fetch(KEY)
    assert scene.server.bytes_sent == TENSOR_BYTES  # the files came from the mirror that lacks it
    quiet(scene)


def test_what_fetches_and_repairs_leave_is_swept_when_it_is_old(scene: Scene):
    name = "ab" * 32
    tmp = scene.cache / layout.TEMPORARIES
    leftovers = [
        tmp / f"{name}{layout.PARTIAL_SUFFIX}",
        tmp / f"{name}{layout.PARTIAL_SUFFIX}{layout.DONE_SUFFIX}",
        tmp / f"{name}{layout.STAGED_SUFFIX}",
        tmp / f"{name}{layout.LOCK_SUFFIX}",
        tmp / ("0" * 32),
        tmp / f"{'0' * 32}{layout.DONE_SUFFIX}",
    ]
    for path in leftovers:
        path.write_bytes(b"x")
    (tmp / "mine").write_bytes(b"x")
    scene.damage("l1.w")
    with pytest.warns(UserWarning, match="damaged"):
        load_all(scene.store)
    (damaged,) = scene.trash()
    store = LocalStateStore(scene.cache)
    assert store.prune().swept == []
    old = time.time() - 30 * 24 * 3600
    for path in [*leftovers, tmp / "mine", scene.cache / layout.TRASH / damaged]:
        os.utime(path, (old, old))
    assert {Path(path).name for path in store.prune().swept} == {
        damaged,
        *(path.name for path in leftovers),
    }
    assert [path.name for path in tmp.iterdir()] == ["mine"]
    quiet(scene)


def test_an_object_that_is_gone_is_no_damage(scene: Scene):
    (scene.cache / layout.object_path(scene.digest("l1.w"))).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_all(scene.store)
    store = manifest_store(scene.manifest(mirrors=[], objects=[]), scene.cache)
    (scene.cache / layout.object_path(scene.digest("l1.w"))).unlink()
    with pytest.raises(ObjectNotFoundError, match="no mirrors"):
        load_all(store)
