"""`verify`: what is wrong with an object is found, said, and repaired where that is possible."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlstate
from mlstate import (
    LocalStateStore,
    Manifest,
    ManifestStore,
    MemoryStateStore,
    StateKey,
    adopt,
    copy,
    export,
    verify,
)
from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError, StateNotFoundError
from mlstate.format import layout, tensor_object
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.format.tensor_object import TensorSpec
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore
from mlstate.operations import Finding, VerifyReport
from mlstate.stores.statefiles import format_state_file
from tests.servers.recording import RecordingServer
from tests.support.buckets import bucket_store, put
from tests.support.commands import child
from tests.support.fetching import manifest_store
from tests.support.github_stores import github_store
from tests.support.models import same

KEY = StateKey.parse("pytorch.net.a")
OTHER = StateKey.parse("pytorch.net.b")
TENSORS = {
    "l1.w": torch.arange(10_000.0),
    "l2.w": torch.arange(20_000.0),
    "tied": torch.arange(10_000.0),
    "mask": torch.tensor([True, False]).repeat(10_000),
    "b": torch.ones(3),
}
FILES = {"labels.json": b"[1, 2]", "empty.txt": b""}
OBJECTS = 6  # the state, three tensors of which one has two names, two files
KINDS = ["state", "l1.w", "l2.w", "mask", "labels.json"]
WORDS = {
    "state": "the state object",
    "l1.w": "tensor 'l1.w' and 1 more",
    "l2.w": "tensor 'l2.w'",
    "mask": "tensor 'mask'",
    "labels.json": "the file 'labels.json'",
}


def digest_in(store: Any, what: str, key: StateKey = KEY) -> Digest:
    """The digest of one object of a state, while the state is whole."""
    entry = store.catalog.recorded(key)
    if what == "state":
        return entry.pinned_digest
    if what in entry.files:
        return entry.files[what].digest
    objects = getattr(store, "target", store.objects)
    with objects.open(entry.pinned_digest) as file:
        return StateObject.parse(file.read()).refs[what].digest


def change(path: Path, how: str) -> bytes | None:
    """Damage an object in one way; what is there then."""
    data = bytearray(path.read_bytes())
    os.chmod(path, 0o644)
    if how == "missing":
        path.unlink()
        return None
    if how == "flip":
        data[len(data) // 2] ^= 1
    elif how == "cut":
        del data[len(data) // 2 :]
    elif how == "longer":
        data += b"more"
    elif how == "header":
        data[20] ^= 1
    path.write_bytes(data)
    return bytes(data)


def contents(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything in a folder: times, modes and bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        now = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (now.st_mtime_ns, now.st_mode, data)
    return found


def the_finding(report: VerifyReport) -> Finding:
    (finding,) = report.findings
    return finding


@pytest.fixture
def store(store: LocalStateStore) -> LocalStateStore:
    store.save_state_dict(TENSORS, KEY, files=FILES)
    return store


# Nothing is wrong.


def test_what_is_right_has_no_findings_and_every_byte_was_read(store):
    report = verify(store)
    assert report == VerifyReport((KEY,), OBJECTS, report.nbytes)
    assert report.ok
    sizes = [path.stat().st_size for path in store.folder.glob("objects/*/*")]
    assert (len(sizes), sum(sizes)) == (report.objects, report.nbytes)
    assert verify(store, [KEY, KEY]) == report
    assert verify(LocalStateStore(store.folder / "nothing")) == VerifyReport((), 0, 0)


def test_it_is_public():
    assert mlstate.verify is verify
    assert mlstate.operations.Finding is Finding


def test_nothing_is_touched(store):
    change(store.objects.path(digest_in(store, "l1.w")), "flip")
    before = contents(store.folder)
    assert not verify(store).ok
    assert contents(store.folder) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_only_be_read_is_enough(store):
    for parent in store.folder.parents:
        if parent.stat().st_uid == os.geteuid() and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    code = (
        "import os, sys\n"
        "from mlstate import LocalStateStore, verify\n"
        "from mlstate import stores\n"
        "verify(stores.MemoryStateStore()), verify(LocalStateStore('/nothing'))\n"
        "os.setuid(65534)\n"
        "print(verify(LocalStateStore(sys.argv[1])).objects)\n"
    )
    before = contents(store.folder)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(store.folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Permission" in done.stderr and "tmp" not in done.stderr:
        pytest.skip("another user cannot read this Python")
    assert done.stderr == ""
    assert done.stdout == f"{OBJECTS}\n"
    assert contents(store.folder) == before


@pytest.mark.usefixtures("no_fsync")
def test_shared_objects_are_read_once_among_a_thousand_states(tmp_path):
    store = LocalStateStore(tmp_path)
    store.save_state_dict({"w": torch.arange(5000.0), "b": torch.zeros(1)}, KEY)
    refs = dict(StateObject.parse(read(store, store.digest(KEY))).refs)
    keys = [KEY, *(StateKey.parse(f"pytorch.net.k{n}") for n in range(999))]
    for number, key in enumerate(keys[1:]):
        # Every second one has a name of its own for the tensor, and so a state object.
        state = StateObject({}, {f"w{number // 2}": refs["w"]})
        plant_state(store, key, state)
    report = verify(store)
    assert report.ok
    assert report.states == tuple(sorted(keys))
    assert report.objects == 1 + 1 + 500
    change(store.objects.path(refs["w"].digest), "flip")
    finding = the_finding(verify(store))
    assert finding.keys == tuple(sorted(keys))
    assert finding.what == "tensor 'w' and 500 more"


def read(store: Any, digest: Digest) -> bytes:
    with store.objects.open(digest) as file:
        return file.read()


def put_object(store: Any, data: bytes) -> Digest:
    digest = Digest.of(data)
    store.own.writer().put(digest, [data])
    return digest


def plant_state(store: Any, key: StateKey, state: StateObject, **changes: Any) -> Digest:
    """Put a state file in place, with a state object that need not be right."""
    digest = put_object(store, state.encode())
    entry = replace(StateEntry(key, digest, state.nbytes), **changes)
    store.saver.files.replace(key, format_state_file(entry))
    return digest


# What is damaged.


@pytest.mark.parametrize("how", ["flip", "cut", "longer", "header", "missing"])
@pytest.mark.parametrize("what", KINDS)
def test_damage_of_every_kind_is_found_in_every_kind_of_object(store, what, how):
    digest = digest_in(store, what)
    path = store.objects.path(digest)
    if how == "header" and what == "labels.json":
        how = "flip"
    now = change(path, how)
    finding = the_finding(verify(store))
    assert finding.keys == (KEY,)
    assert finding.kind == ("missing" if now is None else "damaged")
    assert finding.what == WORDS[what]
    names = {"l1.w": ("l1.w", "tied"), "l2.w": ("l2.w",), "mask": ("mask",)}
    assert finding.tensors == names.get(what, ())
    assert finding.digest == digest
    assert finding.path == str(path)
    if now is not None and how not in ("cut", "longer"):
        assert (finding.expected, finding.found) == (digest, Digest.of(now))
    assert not finding.repaired
    assert "backup" in finding.remedy
    for said in (finding.kind, finding.what, str(KEY), str(path), finding.remedy):
        assert said in str(finding)


def test_a_wrong_length_is_said_in_bytes(store):
    change(store.objects.path(digest_in(store, "l1.w")), "longer")
    finding = the_finding(verify(store))
    assert (finding.expected, finding.found) == ("44096 bytes", "44100 bytes")


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(what=st.sampled_from(KINDS), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(store, what, where, bit):
    digest = digest_in(store, what)
    path = store.objects.path(digest)
    os.chmod(path, 0o644)
    right = path.read_bytes()
    data = bytearray(right)
    data[int(where * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        finding = the_finding(verify(store))
        assert (finding.kind, finding.digest) == ("damaged", digest)
    finally:
        path.write_bytes(right)
    assert verify(store).ok


def test_several_findings_in_one_report(store):
    for what in ("l1.w", "l2.w", "labels.json"):
        change(store.objects.path(digest_in(store, what)), "flip")
    change(store.objects.path(digest_in(store, "mask")), "missing")
    report = verify(store)
    assert [(f.kind, f.what) for f in report.findings] == [
        ("damaged", "tensor 'l1.w' and 1 more"),
        ("damaged", "tensor 'l2.w'"),
        ("missing", "tensor 'mask'"),
        ("damaged", "the file 'labels.json'"),
    ]
    assert report.objects == OBJECTS - 1


def test_an_object_that_states_share_is_one_finding(store):
    store.save_state_dict({"v": TENSORS["l1.w"], "x": torch.ones(9000)}, OTHER)
    change(store.objects.path(digest_in(store, "l1.w")), "flip")
    change(store.objects.path(digest_in(store, "x", OTHER)), "flip")
    first, second = verify(store).findings
    assert first.keys == (KEY, OTHER)
    assert first.what == "tensor 'l1.w' and 2 more"
    assert first.tensors == ("l1.w", "tied", "v")
    assert second.keys == (OTHER,)
    assert the_finding(verify(store, [KEY])).keys == (KEY,)
    assert len(verify(store, [OTHER]).findings) == 2


def test_a_disk_that_cannot_read_is_damage(store):
    digest = digest_in(store, "l1.w")
    path = store.objects.path(digest)
    path.unlink()
    path.symlink_to("/proc/self/mem")  # whose first bytes nobody can read: EIO
    finding = the_finding(verify(store))
    assert (finding.kind, finding.digest) == ("damaged", digest)
    assert finding.found == "Input/output error"


def test_something_else_in_the_place_of_an_object_is_missing(store):
    path = store.objects.path(digest_in(store, "l1.w"))
    path.unlink()
    path.mkdir()
    assert the_finding(verify(store)).kind == "missing"


# What has its digest, and is wrong all the same.


def test_a_tensor_object_that_is_another_tensor(store):
    """The bytes are those of the digest; what a state says of them is not so."""
    right = digest_in(store, "l1.w")
    wrong = {"w": TensorRef(TensorSpec("F32", (100, 100)), right)}
    plant_state(store, OTHER, StateObject({}, wrong))
    finding = the_finding(verify(store))
    assert finding.kind == "unreadable"
    assert finding.keys == (OTHER,)  # in the other state it is right
    assert finding.tensors == ("w",)
    assert "F32 [100, 100]" in finding.expected
    assert "[10000]" in finding.found
    with pytest.raises(FormatError):
        store.load_state_dict(OTHER)


def test_a_tensor_of_another_size_than_its_object(store):
    right = digest_in(store, "l1.w")
    plant_state(store, OTHER, StateObject({}, {"w": TensorRef(TensorSpec("F32", (9000,)), right)}))
    finding = the_finding(verify(store, repair=True))
    assert (finding.kind, finding.keys, finding.repaired) == ("unreadable", (OTHER,), False)
    assert same(store.load_state_dict(KEY), TENSORS)


@pytest.mark.parametrize("position", [0, 1 << 20, -1])
def test_bool_bytes_other_than_0_and_1(store, position):
    spec = TensorSpec("BOOL", (3 << 20,))
    data = bytearray(3 << 20)
    data[position] = 2
    digest = put_object(store, tensor_object.header(spec) + bytes(data))
    plant_state(store, OTHER, StateObject({}, {"mask": TensorRef(spec, digest)}))
    finding = the_finding(verify(store))
    assert (finding.kind, finding.what, finding.digest) == ("unreadable", "tensor 'mask'", digest)
    assert "BOOL" in finding.found
    with pytest.raises(FormatError):
        store.load_state_dict(OTHER)


@pytest.mark.parametrize("how", ["not canonical", "no state object", "a bool inside", "too large"])
def test_a_state_object_that_is_none(store, how):
    size = 1
    if how == "not canonical":
        data = StateObject({}, {}).encode()
        data = (len(data) + 56).to_bytes(8, "little") + data[8:] + b" " * 64
    elif how == "a bool inside":
        model = MemoryStateStore()
        model.save_state_dict({"m": torch.tensor([True])}, OTHER)
        data = read(model, model.digest(OTHER))
        data = data[:-1] + b"\x07"
    else:
        data = b"nothing of the kind" * 3
        size = -(100_000_008 - 10) if how == "too large" else 1
    digest = put_object(store, data)
    entry = StateEntry(OTHER, digest, size if size > 0 else None)
    store.saver.files.replace(OTHER, format_state_file(entry))
    finding = the_finding(verify(store, repair=True))
    assert (finding.kind, finding.what) == ("unreadable", "the state object")
    assert (finding.keys, finding.digest) == ((OTHER,), digest)
    assert finding.found
    with pytest.raises((FormatError, IntegrityError)):
        store.load_state_dict(OTHER)


def test_a_size_that_a_state_file_has_wrong(store):
    state = StateObject.parse(read(store, store.digest(KEY)))
    plant_state(store, OTHER, state, size=state.nbytes + 1)
    finding = the_finding(verify(store))
    assert finding.keys == (OTHER,)
    assert finding.expected == f"{state.nbytes + 1} bytes"
    assert finding.found == f"{state.nbytes} bytes"
    with pytest.raises(IntegrityError):
        store.load_state_dict(OTHER)


def test_a_state_file_that_cannot_be_read_does_not_hide_the_others(store):
    store.save_state_dict({"x": torch.ones(9000)}, OTHER)
    path = Path(store.saver.files.locate(OTHER))
    os.chmod(path, 0o644)
    path.write_text("version = 1\n[states.oops")
    change(store.objects.path(digest_in(store, "l1.w")), "flip")
    report = verify(store)
    assert report.states == (KEY,)
    tensor, state = report.findings
    assert tensor.keys == (KEY,)
    assert (state.kind, state.what, state.keys) == ("unreadable", "the state file", (OTHER,))
    assert str(path) in state.path
    assert "overwrite" in state.remedy
    assert state.digest is None


# What no state needs.


def test_what_no_state_needs_is_read_too_unless_keys_are_given(store):
    store.save_state_dict({"x": torch.ones(9000)}, OTHER)
    digest = digest_in(store, "x", OTHER)
    path = store.objects.path(digest)
    store.delete(OTHER)
    assert verify(store).objects == OBJECTS + 2
    change(path, "flip")
    finding = the_finding(verify(store))
    assert (finding.keys, finding.tensors, finding.digest) == ((), (), digest)
    assert finding.what == "an object that no state needs"
    assert verify(store, [KEY]).ok
    # This is why it matters: a save looks at name and size.
    store.save_state_dict({"x": torch.ones(9000)}, OTHER)
    with pytest.raises(IntegrityError):
        store.load_state_dict(OTHER)
    store.delete(OTHER)
    repaired = the_finding(verify(store, repair=True))
    assert repaired.repaired
    (kept,) = store.folder.glob("trash/*.damaged.*")
    assert str(kept) in repaired.remedy
    assert not path.exists()
    store.save_state_dict({"x": torch.ones(9000)}, OTHER)
    assert same(store.load_state_dict(OTHER), {"x": torch.ones(9000)})
    assert verify(store).ok


def test_other_things_in_the_folder_are_none_of_ours(store):
    (store.folder / "objects" / "ab").mkdir(exist_ok=True)
    for name in ("objects/README", "objects/ab/backup~", "objects/a", "tmp/x", "states/x"):
        (store.folder / name).write_text("other")
    (store.folder / "objects" / "ab" / ("c" * 62)).symlink_to("nowhere")
    assert verify(store) == VerifyReport((KEY,), OBJECTS, verify(store).nbytes)


# What is asked for.


def test_keys_that_are_none(store):
    with pytest.raises(StateNotFoundError):
        verify(store, [OTHER])
    for wrong in (KEY, "pytorch.net.a", [1], 5):
        with pytest.raises(FormatError):
            verify(store, wrong)
    with pytest.raises(FormatError):
        verify(object())
    assert verify(store, []) == VerifyReport((), 0, 0)


def test_checkpoints_of_the_predecessor_and_unpinned_states_are_listed(store):
    torch.save({"w": torch.ones(2)}, store.folder / f"{OTHER}.pt")
    unpinned = StateKey.parse("pytorch.net.c")
    store.saver.files.replace(unpinned, format_state_file(StateEntry(unpinned, None)))
    report = verify(store)
    assert report.ok
    assert report.states == (KEY,)
    assert report.unverifiable == (OTHER,)
    assert report.unpinned == (unpinned,)
    assert verify(store, [OTHER]).unverifiable == (OTHER,)


def test_a_store_in_memory(store):
    memory = MemoryStateStore()
    copy(store, memory)
    assert verify(memory).objects == OBJECTS
    digest = digest_in(memory, "l1.w")
    memory.own._objects[digest] = memory.own._objects[digest][:-1] + b"!"
    finding = the_finding(verify(memory, repair=True))
    assert (finding.kind, finding.repaired, finding.keys) == ("damaged", False, (KEY,))
    del memory.own._objects[digest]
    assert the_finding(verify(memory)).kind == "missing"


# What it costs, and how it ends.


def test_memory_is_bounded_and_progress_is_told(tmp_path):
    store = LocalStateStore(tmp_path)
    big = {f"t{n}": torch.full((16 << 20,), float(n)) for n in range(2)}  # 64 MiB each
    store.save_state_dict(big, KEY)
    verify(store)
    told = []
    tracemalloc.start()
    report = verify(store, progress=told.append)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.nbytes > 128 << 20
    assert peak < 24 << 20  # of which the reading of a state file takes 16 for a moment
    assert told[-1].ended
    assert told[-1].done == told[-1].total == report.nbytes
    assert all(a.done <= b.done for a, b in itertools.pairwise(told))


def test_what_is_remembered_of_an_object_is_little(tmp_path):
    """Bookkeeping grows with the objects, by a few hundred bytes for each."""
    store = MemoryStateStore()
    spec = TensorSpec("U8", (16_384,))
    refs = {f"t{n}": TensorRef(spec, Digest.of(n.to_bytes(4, "little"))) for n in range(20_000)}
    plant_state(store, KEY, StateObject({}, refs))
    # Its objects are not there, which is looked at; and then every name is said.
    from mlstate.fetch.progress import Meter
    from mlstate.operations.verify.inspect import Inspection

    look = Inspection([store.own], 2, Meter("x"))
    tracemalloc.start()
    look.read_states({store.digest(KEY): 1 << 30})
    look.read_wanted()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(look.missing) == 20_000
    assert kept < 600 * 20_000
    report = verify(store)
    assert len(report.findings) == 20_000


@pytest.mark.parametrize("repair", [False, True])
def test_an_interrupt_ends_it_and_leaves_nothing(store, repair):
    before = contents(store.folder)
    threads = threading.active_count()
    files = len(os.listdir("/proc/self/fd"))

    def interrupt(progress: Any) -> None:
        if not progress.ended:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(store, repair=repair, progress=interrupt)
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files
    assert contents(store.folder) == before


INTERRUPTED = """
import sys
from mlstate import LocalStateStore, verify
store = LocalStateStore(sys.argv[1])
print("ready", flush=True)
try:
    while True:
        verify(store)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c(store):
    before = contents(store.folder)
    command = [sys.executable, "-c", INTERRUPTED, store.folder]
    with child(*command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        threading.Event().wait(random.uniform(0.05, 0.3))
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "interrupted\n"
    assert contents(store.folder) == before


def test_no_torch_is_needed(store):
    code = (
        "import sys\n"
        "from mlstate import LocalStateStore, verify\n"
        "assert verify(LocalStateStore(sys.argv[1]), repair=True).ok\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(store.folder)], check=True)


def test_savers_and_pruners_beside_it_are_no_findings(tmp_path):
    store = LocalStateStore(tmp_path)
    store.save_state_dict(TENSORS, KEY)
    done = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        count = 0
        try:
            while not done.is_set():
                count += 1
                key = StateKey.parse(f"pytorch.net.s{count}")
                store.save_state_dict({"x": torch.full((5000,), float(count))}, key)
                if count > 3:
                    store.delete(StateKey.parse(f"pytorch.net.s{count - 3}"))
                    # What was deleted must not live on for the grace period of its state file.
                    shutil.rmtree(tmp_path / layout.TRASH)
                    store.prune(grace_seconds=0)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        reports = [verify(LocalStateStore(tmp_path), repair=True) for _ in range(20)]
    finally:
        done.set()
        thread.join()
    assert errors == []
    assert [report.findings for report in reports] == [()] * 20
    assert max(report.objects for report in reports) > 4
    assert list((tmp_path / layout.TRASH).glob("*.damaged.*")) == []


# Views over mirrors, and repair.


@dataclass
class Scene:
    """A published store behind a server, and a cache with what was fetched of it."""

    source: LocalStateStore
    server: RecordingServer
    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def manifest(self, **changes: Any) -> Path:
        changes = {"objects": (f"{self.server.url}/store",), **changes}
        path = self.folder / f"{len(list(self.folder.iterdir()))}.toml"
        entries = {}
        for key in self.source.get_state_keys():
            entries[key] = replace(self.source.catalog.recorded(key), **changes)
        Manifest(entries, objects=changes["objects"]).write(path)
        return path

    def view(self, **changes: Any) -> ManifestStore:
        return manifest_store(self.manifest(**changes), self.cache)

    def local(self, **changes: Any) -> LocalStateStore:
        """A copy of the store, whose state files say where the original is."""
        folder = self.folder / "local"
        shutil.copytree(self.source.folder, folder)
        store = LocalStateStore(folder)
        changes = {"objects": (f"{self.server.url}/store",), **changes}
        for key in store.get_state_keys():
            entry = replace(store.catalog.recorded(key), **changes)
            text = Manifest({key: entry}, objects=entry.objects).format()
            store.saver.files.replace(key, text.encode())
        return store

    def path(self, what: str, root: Path, key: StateKey = KEY) -> Path:
        return FolderObjectStore(root).path(digest_in(self.source, what, key))

    def size(self, *what: str) -> int:
        return sum(self.path(name, self.source.folder).stat().st_size for name in what)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    source = LocalStateStore(tmp_path / "web" / "store")
    source.save_state_dict(TENSORS, KEY, files=FILES)
    with RecordingServer(tmp_path / "web") as server:
        yield Scene(source, server, tmp_path)


PLACES: dict[str, Callable[[Scene], tuple[Any, Path]]] = {}


def _cached(scene: Scene) -> tuple[Any, Path]:
    view = scene.view()
    view.fetch(KEY)
    return view, scene.cache


def _local(scene: Scene) -> tuple[Any, Path]:
    store = scene.local()
    return store, store.folder


PLACES = {"cache": _cached, "local": _local}


@pytest.fixture(params=PLACES)
def place(request, scene) -> tuple[Any, Path]:
    store, root = PLACES[request.param](scene)
    assert verify(store).ok
    scene.server.reset()
    return store, root


@pytest.mark.parametrize("how", ["flip", "cut"])
@pytest.mark.parametrize("what", KINDS)
def test_what_is_damaged_is_kept_and_fetched_again_and_nothing_else(scene, place, what, how):
    store, root = place
    path = scene.path(what, root)
    wrong = change(path, how)
    assert the_finding(verify(store)).remedy.startswith("verify with repair=True")
    assert scene.server.requests == []
    report = verify(store, repair=True)
    finding = the_finding(report)
    assert report.ok
    assert finding.repaired
    assert (finding.kind, finding.what, finding.keys) == ("damaged", WORDS[what], (KEY,))
    assert scene.server.bytes_sent == scene.size(what)
    (kept,) = root.glob(f"trash/{finding.digest}.damaged.*")
    assert kept.read_bytes() == wrong
    assert str(kept) in finding.remedy
    assert "repaired" in str(finding)
    assert path.read_bytes() == scene.path(what, scene.source.folder).read_bytes()
    scene.server.reset()
    again = verify(store, repair=True)
    assert (again.findings, again.objects) == ((), OBJECTS)
    assert scene.server.requests == []
    assert list((root / "tmp").iterdir()) == []


def test_everything_at_once(scene, place):
    store, root = place
    for what in KINDS:
        change(scene.path(what, root), "flip")
    report = verify(store, repair=True)
    assert report.ok
    assert sorted(f.what for f in report.findings) == sorted(WORDS.values())
    assert report.objects == OBJECTS
    assert scene.server.bytes_sent == scene.size(*KINDS)
    assert verify(store).findings == ()


@pytest.mark.parametrize("what", KINDS)
def test_what_is_missing_in_a_store_of_ones_own_is_fetched(scene, what):
    store = scene.local()
    path = scene.path(what, store.folder)
    path.unlink()
    assert the_finding(verify(store)).kind == "missing"
    finding = the_finding(verify(store, repair=True))
    assert (finding.kind, finding.repaired, finding.what) == ("missing", True, WORDS[what])
    assert scene.server.bytes_sent == scene.size(what)
    assert verify(store).findings == ()
    # What is kept in a store is for its owner to say.
    assert list((store.folder / "roots").iterdir()) == []


def test_all_of_it_missing(scene):
    store = scene.local()
    shutil.rmtree(store.folder / "objects")
    report = verify(store, repair=True)
    assert report.ok
    assert len(report.findings) == OBJECTS
    assert verify(store).objects == OBJECTS


def test_a_plain_file_as_mirror(scene):
    from safetensors.torch import save_file

    tensors = {name: tensor.clone() for name, tensor in TENSORS.items()}
    save_file(tensors, scene.source.folder.parent / "model.safetensors")
    from mlstate.locations import parse_mirror

    mirror = parse_mirror(f"{scene.server.url}/model.safetensors")
    store = scene.local(objects=(), mirrors=(mirror,))
    change(scene.path("l2.w", store.folder), "flip")
    assert verify(store, repair=True).ok
    assert scene.server.bytes_sent < 80_000 + 2000
    change(scene.path("labels.json", store.folder), "flip")  # of which the mirror has nothing
    finding = the_finding(verify(store, repair=True))
    assert not finding.repaired
    assert "backup" in finding.remedy
    assert scene.path("labels.json", store.folder).exists()


@pytest.mark.parametrize("what", KINDS)
def test_without_mirrors_it_stays_where_it_is(scene, what):
    store = scene.local(objects=())
    path = scene.path(what, store.folder)
    wrong = change(path, "flip")
    before = contents(store.folder / "objects")
    report = verify(store, repair=True)
    assert not report.ok
    assert "bring the state again" in the_finding(report).remedy
    assert contents(store.folder / "objects") == before
    assert path.read_bytes() == wrong


@pytest.mark.parametrize("trouble", ["offline", "gone", "lies"])
def test_where_no_mirror_can_help_the_finding_stays_and_the_object_is_kept(
    scene, place, trouble, monkeypatch
):
    store, root = place
    path = scene.path("l1.w", root)
    wrong = change(path, "flip")
    if trouble == "offline":
        monkeypatch.setenv("MLSTATE_OFFLINE", "1")
        if isinstance(store, ManifestStore):
            store = ManifestStore(scene.manifest(), cache=scene.cache)
    elif trouble == "gone":
        scene.server.files = {}
    else:
        shutil.copy(path, scene.path("l1.w", scene.source.folder))
    report = verify(store, repair=True)
    assert not report.ok
    finding = the_finding(report)
    assert (finding.kind, finding.repaired) == ("damaged", False)
    assert "now: " in finding.remedy
    (kept,) = root.glob("trash/*.damaged.*")
    assert kept.read_bytes() == wrong
    assert str(kept) in finding.remedy
    if trouble == "offline":
        assert scene.server.requests == []


def test_offline_a_mirror_on_this_machine_does(scene, monkeypatch):
    monkeypatch.setenv("MLSTATE_OFFLINE", "1")
    store = scene.local(objects=(str(scene.source.folder),))
    change(scene.path("l1.w", store.folder), "flip")
    assert verify(store, repair=True).ok
    assert scene.server.requests == []
    assert verify(store).findings == ()


def test_shared_damage_is_repaired_once_and_by_whichever_state_has_a_mirror(scene):
    keys = [StateKey.parse(f"pytorch.net.k{n}") for n in range(20)]
    for key in keys:
        scene.source.save_state_dict({"w": TENSORS["l1.w"], "n": torch.ones(1)}, key)
    store = scene.local(objects=())
    entry = replace(store.catalog.recorded(keys[7]), objects=(f"{scene.server.url}/store",))
    text = Manifest({keys[7]: entry}, objects=entry.objects).format()
    store.saver.files.replace(keys[7], text.encode())
    change(scene.path("l1.w", store.folder), "flip")
    finding = the_finding(verify(store, repair=True))
    assert finding.repaired
    assert finding.keys == (KEY, *sorted(keys))
    assert scene.server.bytes_sent == scene.size("l1.w")


def test_a_dead_mirror_is_asked_once_for_what_many_states_share(scene):
    for number in range(20):
        key = StateKey.parse(f"pytorch.net.k{number}")
        scene.source.save_state_dict({"w": TENSORS["l1.w"]}, key)
    store = scene.local()
    change(scene.path("l1.w", store.folder), "flip")
    scene.path("l1.w", scene.source.folder).unlink()
    assert not verify(store, repair=True).ok
    paths = [request.path for request in scene.server.requests]
    # The object, and whether it is there in encoded form: once each, not once for each state.
    assert len(paths) == 2
    assert "/objects/" in paths[0]
    assert "/encoded/states/" in paths[1]


def test_repair_behind_nginx(scene, start_nginx):
    server = start_nginx(scene.source.folder.parent)
    store = scene.local(objects=(server.url("store"),))
    change(scene.path("l2.w", store.folder), "flip")
    change(scene.path("state", store.folder), "cut")
    assert verify(store, repair=True).ok
    assert sum(served.bytes_sent for served in server.log()) == scene.size("l2.w", "state")


def test_a_cache_is_verified_for_what_it_has(scene):
    view = scene.view()
    assert verify(view) == VerifyReport((), 0, 0, absent=(KEY,))
    view.load_state_dict(KEY, ["l1.w"])
    report = verify(view)
    assert (report.states, report.partial, report.ok) == ((KEY,), (KEY,), True)
    assert report.objects == 2
    scene.server.reset()
    change(scene.path("l1.w", scene.cache), "flip")
    finding = the_finding(verify(view))
    assert (finding.kind, finding.tensors) == ("damaged", ("l1.w", "tied"))
    assert verify(view, repair=True).ok
    assert scene.server.bytes_sent == scene.size("l1.w")
    assert verify(view).partial == (KEY,)
    view.fetch(KEY)
    assert verify(view) == VerifyReport((KEY,), OBJECTS, verify(view).nbytes)


def test_a_file_alone_that_was_fetched_is_verified(scene):
    view = scene.view()
    assert view.files(KEY)["labels.json"] == FILES["labels.json"]
    scene.server.reset()
    report = verify(view)
    assert (report.partial, report.objects, report.ok) == ((KEY,), 2, True)
    change(scene.path("labels.json", scene.cache), "flip")
    assert verify(view, repair=True).ok
    assert scene.server.bytes_sent == scene.size("labels.json")


def test_unpinned_states_of_a_manifest(scene):
    assert verify(scene.view(digest=None)).unpinned == (KEY,)


def test_a_folder_that_is_only_read_keeps_what_it_has(scene, monkeypatch):
    scene.view().fetch(KEY)
    monkeypatch.setenv("MLSTATE_READONLY_CACHES", str(scene.cache))
    monkeypatch.setenv("MLSTATE_CACHE", str(scene.folder / "own"))
    path = scene.path("l1.w", scene.cache)
    change(path, "flip")
    before = contents(scene.cache)
    store = ManifestStore(scene.manifest())
    finding = the_finding(verify(store, repair=True))
    assert (finding.path, finding.repaired) == (str(path), False)
    assert "only read" in finding.remedy
    assert contents(scene.cache) == before
    # The own folder has it right now, which a load finds.
    assert same(store.load_state_dict(KEY, ["l1.w"]), {"l1.w": TENSORS["l1.w"]})


def test_a_damaged_copy_behind_a_right_one_is_found_and_put_away(scene, monkeypatch):
    scene.view().fetch(KEY)
    own = scene.folder / "own"
    shutil.copytree(scene.cache, own)
    monkeypatch.setenv("MLSTATE_READONLY_CACHES", str(scene.cache))
    monkeypatch.setenv("MLSTATE_CACHE", str(own))
    store = ManifestStore(scene.manifest())
    assert verify(store).objects == 2 * OBJECTS
    path = scene.path("l1.w", own)
    change(path, "flip")
    scene.server.reset()
    finding = the_finding(verify(store, repair=True))
    assert (finding.path, finding.repaired) == (str(path), True)
    assert not path.exists()
    assert scene.server.requests == []
    assert verify(store).ok


REPAIR = """
import sys
from mlstate import LocalStateStore, verify
store = LocalStateStore(sys.argv[1])
sys.stdin.readline()
print(verify(store, repair=True).ok)
"""


def test_many_processes_repair_at_once(scene):
    store = scene.local()
    for what in KINDS:
        change(scene.path(what, store.folder), "flip")
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", REPAIR, str(store.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    told = [child.communicate("\n", timeout=60) for child in children]
    assert [error for _, error in told] == [""] * 4
    assert verify(store).findings == ()
    assert same(store.load_state_dict(KEY), TENSORS)


# Stores elsewhere.


def test_a_bucket_is_read_past_the_cache(moto):
    bucket = moto.new_bucket()
    store = bucket_store(moto, bucket)
    store.save_state_dict(TENSORS, KEY, files=FILES)
    store.load_state_dict(KEY)
    assert verify(store) == VerifyReport((KEY,), OBJECTS, verify(store).nbytes)
    digest = digest_in(store, "l1.w")
    path = store.own.path(digest)
    right = read_object(store, digest)
    put(moto, bucket, path, right[:-1] + b"!")
    finding = the_finding(verify(store, repair=True))
    assert (finding.kind, finding.keys, finding.digest) == ("damaged", (KEY,), digest)
    assert finding.path == f"s3://{bucket}/{path}"
    assert not finding.repaired
    assert "verify=True" in finding.remedy
    moto.boto.delete_object(Bucket=bucket, Key=path)
    assert the_finding(verify(store)).kind == "missing"
    store.save_state_dict(TENSORS, KEY, files=FILES, verify=True)
    assert verify(store).ok
    store.delete(KEY)
    put(moto, bucket, path, right[:-1] + b"!")
    assert the_finding(verify(store)).what == "an object that no state needs"


def read_object(store: Any, digest: Digest) -> bytes:
    with store.own.open(digest) as file:
        return file.read()


def test_checkpoints_of_the_predecessor_in_a_bucket_are_not_read(moto):
    bucket = moto.new_bucket()
    put(moto, bucket, "models/pytorch/net.a.pt", b"whatever")
    report = verify(bucket_store(moto, bucket))
    assert (report.unverifiable, report.objects, report.ok) == ((KEY,), 0, True)


def test_of_a_release_what_is_in_the_cache_is_read(github, tmp_path):
    saver = github_store(tmp_path / "saver")
    saver.save_state_dict(TENSORS, KEY, files=FILES)
    store = github_store(tmp_path / "cache")
    assert verify(store).absent == (KEY,)
    store.fetch(KEY)
    assert verify(store) == VerifyReport((KEY,), OBJECTS, verify(store).nbytes)
    change(FolderObjectStore(tmp_path / "cache").path(digest_in(store, "l1.w")), "flip")
    assert the_finding(verify(store)).kind == "damaged"
    assert verify(store, repair=True).ok
    assert verify(store).findings == ()


def test_bringing_a_state_again_mends_a_store_without_mirrors(tmp_path):
    good, bad = LocalStateStore(tmp_path / "good"), LocalStateStore(tmp_path / "bad")
    key = StateKey.parse("pytorch.net.one")
    for store in (good, bad):
        store.save_state_dict({"a": torch.arange(10_000.0)}, key)
    export(good, key, tmp_path / "a.safetensors")
    for bring in (
        lambda **options: copy(good, bad, [key], **options),
        lambda **options: adopt(tmp_path / "a.safetensors", key, bad, **options),
    ):
        path = max(bad.folder.glob("objects/*/*"), key=lambda path: path.stat().st_size)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
        bring()  # judges by name and size
        assert not verify(bad).ok
        bring(verify=True)
        assert verify(bad).ok
