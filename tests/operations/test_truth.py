"""All reports of a store agree with each other and with the disk, after any operations."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlstate import (
    LocalStateStore,
    ManifestStore,
    StateKey,
    bundle,
    compact,
    describe,
    manifest_of,
    unbundle,
    usage,
    verify,
)
from mlstate.errors import FetchError
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import read_roots
from mlstate.operations.usage_report import DiskUsage

KEYS = [StateKey.parse(f"pytorch.net.{name}") for name in "abc"]
SIZE = 5000  # of a tensor with an object of its own
OLD = 1_000_000_000.0

STATES: Mapping[StateKey, Mapping[str, torch.Tensor]] = {
    KEYS[0]: {"x": torch.ones(SIZE), "y": torch.zeros(SIZE)},
    KEYS[1]: {"x": torch.ones(SIZE), "y": torch.full((SIZE,), 2.0)},
    KEYS[2]: {"z": torch.full((SIZE,), 3.0), "small": torch.ones(2)},
}
FILES = {KEYS[0]: {"f": b"0" * 30}, KEYS[1]: {"f": b"0" * 30}, KEYS[2]: {}}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A folder with a store of all states, a manifest of it, and a bundle of each."""
    folder = tmp_path_factory.mktemp("source")
    store = LocalStateStore(folder / "store")
    for key, tensors in STATES.items():
        store.save_state_dict(tensors, key, files=FILES[key])
        bundle(store, [key], folder / f"{key}.tar")
    manifest_of(store, objects=[str(folder / "store")]).write(folder / "m.toml")
    manifest_of(store).write(folder / "alone.toml")
    return folder


@contextmanager
def without(folder: Path) -> Iterator[None]:
    """While the mirror is away."""
    folder.rename(folder.with_name("away"))
    try:
        yield
    finally:
        folder.with_name("away").rename(folder)


@dataclass(frozen=True)
class Scene:
    """A cache, and the folder that its states come from."""

    source: Path
    cache: Path

    def view(self, name: str = "m.toml") -> ManifestStore:
        return ManifestStore(self.source / name, cache=self.cache)

    @property
    def saved(self) -> list[StateKey]:
        return LocalStateStore(self.cache).get_state_keys() if self.cache.is_dir() else []


def fail(scene: Scene, key: StateKey) -> None:
    with without(scene.source / "store"), suppress(FetchError):
        scene.view().fetch(key)


def remove(scene: Scene, key: StateKey) -> None:
    if key in scene.saved:
        LocalStateStore(scene.cache).delete(key)


def lose(scene: Scene, key: StateKey) -> None:
    """Remove an object, of states that can be fetched again."""
    for path in sorted(scene.cache.glob("objects/*/*"))[: not scene.saved]:
        path.unlink()


def age(scene: Scene, key: StateKey) -> None:
    for path in (*scene.cache.glob("objects/*/*"), *scene.cache.glob("roots/*")):
        os.utime(path, (OLD, OLD))


def stray(scene: Scene, key: StateKey) -> None:
    if scene.cache.is_dir():
        (scene.cache / "tmp").mkdir(exist_ok=True)
        (scene.cache / "tmp" / ("e" * 32)).write_bytes(b"12345")
        (scene.cache / "objects").mkdir(exist_ok=True)
        (scene.cache / "objects" / "note").write_bytes(b"1234")


OPERATIONS: Mapping[str, Callable[[Scene, StateKey], object]] = {
    "fetch": lambda scene, key: scene.view().fetch(key),
    "fetch a part": lambda scene, key: scene.view().fetch(key, names=[min(STATES[key])]),
    "fetch files": lambda scene, key: dict(scene.view().files(key)),
    "fail": fail,
    "unbundle": lambda scene, key: unbundle(scene.source / f"{key}.tar", scene.cache),
    "rm": remove,
    "prune": lambda scene, key: check_prune(scene, max_size=2 * SIZE),
    "lose": lose,
    "age": age,
    "stray": stray,
}


def on_disk(folder: Path) -> dict[str, int]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.lstat().st_size for path in paths}


def check_prune(scene: Scene, **limits: float) -> None:
    """A dry run says the same as the pruning does, and both what becomes of the disk."""
    if not scene.cache.is_dir():
        return
    view, before = scene.view(), on_disk(scene.cache)
    said = view.prune(dry_run=True, **limits)
    assert on_disk(scene.cache) == before
    assert view.prune(**limits) == said
    after = on_disk(scene.cache)
    gone = {name for name in before.keys() - after.keys() if name.startswith("objects/")}
    assert gone <= {f"objects/{digest[:2]}/{digest[2:]}" for digest in said.objects}
    assert not after.keys() & {f"objects/{digest[:2]}/{digest[2:]}" for digest in said.objects}
    assert {f"objects/{d[:2]}/{d[2:]}" for d in said.spared} <= after.keys()
    listed = {str(state.key): state for state in usage(view).states}
    assert {listed[text].cached for text in said.states.values()} <= {"no"}
    assert "no" not in {listed[text].cached for text in said.recent.values()}
    assert list(said.saved) == scene.saved
    if not (said.recent or said.in_use or said.saved or said.future):
        assert said.nbytes <= limits["max_size"]


def check_reports(scene: Scene, *, is_whole: bool) -> None:
    """`ls`, `show`, `du` and `verify` say the same as the disk."""
    view = scene.view("alone.toml")  # without a mirror, so that nothing is fetched
    files = on_disk(scene.cache)
    used = usage(view)
    disk = used.disk
    assert disk is not None
    assert sum(getattr(disk, part) for part in DiskUsage.parts()) == disk.total
    assert disk.total == sum(files.values())
    assert disk.own + disk.shared == used.total
    assert sum(state.own or 0 for state in used.states) == disk.own
    assert disk.trash == sum(n for name, n in files.items() if name.startswith("trash/"))
    report = verify(view)
    cached = {"yes": report.checked, "partly": report.partial, "no": report.absent}
    for state in used.states:
        assert state.key in cached[str(state.cached)], (state, report)
        assert state.modified is None or state.cached != "no"
        assert state.nbytes == describe(view, state.key).nbytes
        assert verify(view, [state.key]).ok is (state.cached == "yes")
    assert verify(view, strict=True).ok is (set(report.checked) == set(KEYS))
    assert on_disk(scene.cache) == files
    for root in read_roots(scene.cache) if is_whole else ():  # each of something that is here
        having = FolderObjectStore(scene.cache)
        assert any(having.size(digest) is not None for digest in (root.digest, *root.files))


@settings(max_examples=10, deadline=None)
@example([("fail", KEYS[0])])
@example([("fetch files", KEYS[0]), ("fetch", KEYS[2]), ("prune", KEYS[0])])
@example([("unbundle", KEYS[2]), ("fetch", KEYS[0]), ("age", KEYS[0]), ("prune", KEYS[0])])
@given(st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.sampled_from(KEYS)), max_size=6))
def test_all_reports_of_a_cache_agree_with_each_other_and_with_the_disk(source, operations):
    folder = Path(tempfile.mkdtemp(dir=source))
    scene = Scene(source, folder / "cache")
    try:
        for number, (what, key) in enumerate(operations):
            OPERATIONS[what](scene, key)
            so_far = {name for name, _ in operations[: number + 1]}
            check_reports(scene, is_whole="lose" not in so_far)
        check_prune(scene, max_size=0, grace_seconds=0)
    finally:
        shutil.rmtree(folder)


def save(store: LocalStateStore, key: StateKey) -> None:
    store.save_state_dict(STATES[key], key, files=FILES[key])


def delete(store: LocalStateStore, key: StateKey) -> None:
    if store.exists(key):
        store.delete(key)


def make_old(store: LocalStateStore, key: StateKey) -> None:
    for path in (*store.folder.glob("objects/*/*"), *store.folder.glob("trash/*")):
        os.utime(path, (OLD, OLD))


def prune(store: LocalStateStore, key: StateKey, **grace: float) -> None:
    """What is said before is what is done, and what the disk has then."""
    before = on_disk(store.folder)
    said = store.prune(dry_run=True, **grace)
    assert on_disk(store.folder) == before
    assert store.prune(**grace) == said
    after = on_disk(store.folder)
    moved = {f"objects/{digest[:2]}/{digest[2:]}" for digest in said.trashed}
    assert {name for name in before.keys() - after.keys() if name.startswith("objects/")} == moved
    assert {f"objects/{d[:2]}/{d[2:]}" for d in said.spared} <= after.keys()
    assert not {str(store.folder / name) for name in after} & set(said.swept)
    kept = {path: after[str(Path(path).relative_to(store.folder))] for path in said.waiting}
    assert kept == said.waiting
    assert sum(said.spared.values()) == usage(store).unnamed


STORE_OPERATIONS: Mapping[str, Callable[[LocalStateStore, StateKey], object]] = {
    "save": save,
    "delete": delete,
    "age": make_old,
    "prune": prune,
    "prune without grace": lambda store, key: prune(store, key, grace_seconds=0),
    "compact": lambda store, key: compact(store, alone=True),
    "undo": lambda store, key: compact(store, [key] if store.exists(key) else None, undo=True),
}


@settings(max_examples=15, deadline=None)
@example([("save", KEYS[0]), ("save", KEYS[1]), ("delete", KEYS[0]), ("prune", KEYS[0])])
@example([("save", KEYS[1]), ("compact", KEYS[0]), ("age", KEYS[0]), ("prune", KEYS[0])])
@example([("compact", KEYS[0]), ("delete", KEYS[2]), ("age", KEYS[0]), ("undo", KEYS[0])])
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(STORE_OPERATIONS)), st.sampled_from(KEYS)), max_size=8
    )
)
def test_all_reports_of_a_store_agree_with_each_other_and_with_the_disk(operations):
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStateStore(folder)
        for what, key in (("save", KEYS[2]), *operations):
            STORE_OPERATIONS[what](store, key)
            used, files = usage(store), on_disk(store.folder)
            assert used.disk is not None
            assert used.disk.total == sum(files.values())
            assert sum(getattr(used.disk, part) for part in DiskUsage.parts()) == used.disk.total
            assert used.disk.own + used.disk.shared == used.total
            assert [state.key for state in used.states] == store.get_state_keys()
            assert sum(state.own or 0 for state in used.states) == used.disk.own
            forms = sum(n for name, n in files.items() if re.match("encoded/[0-9a-f]{2}/", name))
            if what == "compact":  # of which nothing is left over
                assert (0 if used.encoded is None else used.encoded.nbytes) == forms
            for state in used.states:
                assert state.nbytes == describe(store, state.key).nbytes
            report = verify(store)
            assert (report.ok, list(report.checked)) == (True, store.get_state_keys())
