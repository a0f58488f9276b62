"""`copy` from any store to any other: what moves, what stays, what fails, and what others read."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mlstate import (
    LocalStateStore,
    Manifest,
    ManifestStore,
    MemoryStateStore,
    StateKey,
    copy,
    manifest_of,
    verify,
)
from mlstate.errors import (
    BucketError,
    CopyError,
    FetchError,
    FormatError,
    IntegrityError,
    ReadOnlyStoreError,
    StateExistsError,
    StateNotFoundError,
    UnpinnedStateError,
)
from mlstate.format import layout
from mlstate.locations import parse_mirror
from mlstate.operations import CopyReport
from tests.servers.forwarding import Forwarding
from tests.servers.replies import Reply
from tests.support.buckets import bucket_store, contents
from tests.support.fetching import check_cache
from tests.support.github_stores import TAG, github_store
from tests.support.models import LINEAR, BytesModel, net, same, values

KEY = StateKey(LINEAR, "a")
OTHER = StateKey(LINEAR, "b")
FILES = {"labels.json": b"[1]", "sub/empty": b""}
META = {"license": "MIT"}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Inside and outside the state object, tied, empty, and of an odd type."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(100, 100, generator=generator)
    return {
        "weight": weight,
        "tied": weight,
        "half": torch.rand(20_000, generator=generator).bfloat16(),
        "bias": torch.rand(3, generator=generator),
        "none": torch.zeros(0, 4),
    }


class Places:
    """Makes stores of every kind, each empty; and looks at them as somebody else would."""

    def __init__(self, folder: Path, request: pytest.FixtureRequest) -> None:
        self.folder, self.request, self.count = folder, request, 0

    def new(self, kind: str):
        self.count += 1
        cache = self.folder / f"cache{self.count}"
        if kind == "memory":
            return MemoryStateStore()
        if kind == "s3":
            moto = self.request.getfixturevalue("moto")
            self.bucket = moto.new_bucket()
            return bucket_store(moto, self.bucket, cache=cache)
        if kind == "github":
            self.request.getfixturevalue("github")
            return github_store(cache)
        return LocalStateStore(self.folder / f"store{self.count}")

    def filled(self, kind: str, key: StateKey = KEY, seed: int = 0):
        """A store with a state."""
        store = self.new(kind)
        if kind == "manifest":
            path = self.folder / f"manifest{self.count}.toml"
            store.save_state_dict(tensors(seed), key, files=FILES, meta=META)
            manifest_of(store, objects=[str(store.folder)]).write(path)
            return ManifestStore(path, cache=self.folder / f"cache{self.count}")
        store.save_state_dict(tensors(seed), key, files=FILES, meta=META)
        return store


@pytest.fixture
def places(tmp_path, request):
    return Places(tmp_path, request)


def check(store, key: StateKey = KEY, seed: int = 0) -> None:
    assert key in store.get_state_keys(key.state_type)
    assert same(store.load_state_dict(key), tensors(seed))
    assert dict(store.files(key)) == FILES
    assert store.meta(key) == META


# Any store to any store.


@pytest.mark.parametrize("target", ["memory", "local", "s3", "github"])
@pytest.mark.parametrize("source", ["memory", "local", "manifest", "s3", "github"])
def test_a_state_is_there_with_files_and_meta_and_the_same_digest(places, source, target):
    ours = places.filled(source)
    theirs = places.new(target)
    if source == target == "github":  # one repository: it is there
        assert copy(ours, theirs) == CopyReport((), (KEY,), 0)
        return
    outside = sum(tensors()[name].nbytes + 4096 for name in ("weight", "half"))
    assert copy(ours, theirs, [KEY]) == CopyReport((KEY,), (), outside)
    check(theirs)
    assert theirs.digest(KEY) == ours.digest(KEY)
    assert copy(ours, theirs) == CopyReport((), (KEY,), 0)


@pytest.mark.parametrize("target", ["memory", "local", "s3", "github"])
def test_another_state_under_a_key_stays_unless_it_is_to_be_overwritten(places, target):
    ours, theirs = places.filled("local"), places.filled(target, seed=1)
    with pytest.raises(StateExistsError, match="other weights") as caught:
        copy(ours, theirs)
    assert caught.value.key == KEY
    check(theirs, seed=1)
    assert copy(ours, theirs, overwrite=True).copied == (KEY,)
    check(theirs)


@pytest.mark.parametrize("target", ["memory", "s3", "github"])
def test_other_meta_stays_with_a_warning_that_names_who_copies(places, target):
    ours, theirs = places.new("local"), places.new(target)
    ours.save_state_dict(tensors(), KEY, meta={"accuracy": 0.6})
    theirs.save_state_dict(tensors(), KEY, meta={"accuracy": 0.5})
    with pytest.warns(UserWarning, match="stored meta stays") as caught:
        assert copy(ours, theirs).present == (KEY,)
    assert caught[0].filename == __file__
    assert theirs.meta(KEY) == {"accuracy": 0.5}
    assert copy(ours, theirs, overwrite=True).copied == (KEY,)
    assert theirs.meta(KEY) == {"accuracy": 0.6}


def test_states_of_the_older_layout_are_brought_over(tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    torch.save(net(1).state_dict(), folder / "pytorch.net.old.pt")
    (folder / "sklearn.forest.old.pt").write_bytes(b"any bytes at all" * 2000)
    ours, theirs = LocalStateStore(folder), LocalStateStore(tmp_path / "new")
    assert len(copy(ours, theirs).copied) == 2
    model, forest = net(2), BytesModel()
    theirs.load(model, StateKey(LINEAR, "old"))
    theirs.load(forest, StateKey(BytesModel.state_type, "old"))
    assert same(values(model), values(net(1)))
    assert forest.state == b"any bytes at all" * 2000
    assert copy(ours, theirs).copied == ()


def test_within_one_store_overwrite_brings_the_older_layout_over(tmp_path):
    torch.save(net(1).state_dict(), tmp_path / "pytorch.net.old.pt")
    store = LocalStateStore(tmp_path)
    assert copy(store, store).present == (StateKey(LINEAR, "old"),)
    assert not (tmp_path / "objects").exists()
    assert copy(store, store, overwrite=True).copied == (StateKey(LINEAR, "old"),)
    assert (tmp_path / "states/pytorch/net/old.toml").exists()


def test_a_checkpoint_that_is_cut_short_is_not_taken_for_anything_else(tmp_path):
    torch.save(net(1).state_dict(), tmp_path / "pytorch.net.old.pt")
    data = (tmp_path / "pytorch.net.old.pt").read_bytes()
    (tmp_path / "pytorch.net.old.pt").write_bytes(data[: len(data) // 2])
    theirs = MemoryStateStore()
    with pytest.raises(FormatError):
        copy(LocalStateStore(tmp_path), theirs)
    assert theirs.get_state_keys() == []


@pytest.mark.parametrize("old", ["pytorch/net.old.pt", "sklearn/forest.old.pt"])
def test_the_older_layout_of_buckets_is_brought_over(moto, tmp_path, old):
    bucket = moto.new_bucket()
    torch.save(net(1).state_dict(), tmp_path / "x")
    raw = (tmp_path / "x").read_bytes() if old.startswith("pytorch") else b"opaque"
    moto.boto.put_object(Bucket=bucket, Key=f"models/{old}", Body=raw)
    theirs = MemoryStateStore()
    [key] = copy(bucket_store(moto, bucket), theirs).copied
    if old.startswith("pytorch"):
        assert same(theirs.load_state_dict(key), values(net(1)))
    else:
        forest = BytesModel()
        theirs.load(forest, key)
        assert forest.state == b"opaque"


class Own:
    """A store that somebody wrote."""

    def __init__(self, given):
        self.given = given

    def load_state_dict(self, key):
        return self.given[key]


class Described(Own):
    lies = False

    def digest(self, key):
        store = MemoryStateStore()
        store.save_state_dict(tensors(9) if self.lies else self.given[key], key)
        return store.digest(key)

    def files(self, key):
        return FILES


def test_a_store_of_ones_own_gives_state_dicts():
    theirs = MemoryStateStore()
    assert copy(Own({KEY: tensors()}), theirs, [KEY]).copied == (KEY,)
    assert same(theirs.load_state_dict(KEY), tensors())
    assert copy(Described({OTHER: tensors()}), theirs, [OTHER]).copied == (OTHER,)
    assert dict(theirs.files(OTHER)) == FILES
    assert copy(Own({KEY: tensors()}), theirs, [KEY]).present == (KEY,)


def test_a_store_that_gives_other_weights_than_it_says_is_refused():
    source, theirs = Described({KEY: tensors()}), MemoryStateStore()
    source.lies = True
    with pytest.raises(IntegrityError, match="other weights than it says"):
        copy(source, theirs, [KEY])
    assert theirs.get_state_keys() == []


def test_what_is_no_source_or_target_is_refused(places):
    ours, theirs = places.filled("local"), places.new("memory")
    with pytest.raises(ReadOnlyStoreError, match="ManifestStore"):
        copy(ours, places.filled("manifest"))
    with pytest.raises(FormatError, match="load_state_dict"):
        copy(object(), theirs, [KEY])
    with pytest.raises(FormatError, match="keys="):
        copy(Own({}), theirs)
    for keys in (KEY, str(KEY), [str(KEY)]):
        with pytest.raises(FormatError):
            copy(ours, theirs, keys)
    assert copy(ours, theirs, []) == CopyReport((), (), 0)
    assert theirs.get_state_keys() == []


# Only what is missing.


def tuned() -> dict[str, torch.Tensor]:
    return {**tensors(), "half": torch.zeros(20_000).bfloat16()}


def test_a_fine_tune_writes_only_what_differs_into_a_folder(tmp_path):
    ours, theirs = LocalStateStore(tmp_path / "a"), LocalStateStore(tmp_path / "b")
    ours.save_state_dict(tensors(), KEY)
    copy(ours, theirs)
    before = {path: path.stat().st_ino for path in (tmp_path / "b").rglob("*")}
    ours.save_state_dict(tuned(), OTHER)
    assert copy(ours, theirs) == CopyReport((OTHER,), (KEY,), 4096 + 40_000)
    after = {path: path.stat().st_ino for path in (tmp_path / "b").rglob("*") if path.is_file()}
    assert len([path for path in after if path not in before]) == 3  # tensor, state, state file
    assert all(after.get(path, inode) == inode for path, inode in before.items())


def test_a_fine_tune_uploads_only_what_differs_into_a_bucket(moto, tmp_path):
    ours = LocalStateStore(tmp_path / "a")
    ours.save_state_dict(tensors(), KEY, files=FILES)
    with Forwarding(moto.url) as proxy:
        theirs = bucket_store(moto, moto.new_bucket(), url=proxy.url)
        copy(ours, theirs)
        ours.save_state_dict(tuned(), OTHER, files=FILES)
        proxy.reset()
        copy(ours, theirs, [OTHER])
        puts = proxy.asked("PUT")
        assert len([path for path in puts if "/objects/" in path]) == 2
        assert puts[-1].endswith("/b.toml")
        assert sum(len(record.body) for record in proxy.requests) < 50_000
        proxy.reset()
        copy(ours, theirs)
        assert {path.split()[0] for path in proxy.asked()} <= {"GET", "HEAD"}


def test_of_a_mirror_only_what_the_target_lacks_is_fetched(places, recording_server, tmp_path):
    ours, theirs = places.filled("local"), places.filled("memory")
    ours.save_state_dict(tuned(), OTHER, files=FILES)
    recording_server.files = ours.folder
    manifest_of(ours, objects=[recording_server.url]).write(tmp_path / "m.toml")
    mirrored = ManifestStore(tmp_path / "m.toml", cache=tmp_path / "cache")
    assert copy(mirrored, theirs, [OTHER]).nbytes == 4096 + 40_000
    asked = {record.path for record in recording_server.requests}
    assert len(asked) == 2
    assert recording_server.bytes_sent < 50_000
    assert same(theirs.load_state_dict(OTHER), tuned())
    assert dict(theirs.files(OTHER)) == FILES


def test_what_is_missing_of_a_state_that_is_there_is_brought_back(moto, places):
    ours, bucket = places.filled("local"), moto.new_bucket()
    theirs = bucket_store(moto, bucket)
    copy(ours, theirs)
    before = contents(moto, bucket)
    for name in before:
        if "/objects/" in name:
            moto.boto.delete_object(Bucket=bucket, Key=name)
    assert copy(ours, theirs).present == (KEY,)
    assert contents(moto, bucket) == before


# What goes wrong.


def damage(store: LocalStateStore, how, key: StateKey = KEY, largest: bool = True) -> Path:
    """Damage a tensor object, or the state object, of a folder."""
    objects = sorted(
        (path for path in (store.folder / "objects").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    digest = store.digest(key)
    path = objects[-1] if largest else store.folder / layout.object_path(digest)
    path.chmod(0o644)
    data = path.read_bytes()
    path.unlink()
    if (changed := how(data)) is not None:
        path.write_bytes(changed)
    return path


HOWS = {
    "flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "cut": lambda data: data[:-1],
    "missing": lambda data: None,
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("target", ["memory", "local", "s3", "github"])
def test_nothing_of_a_damaged_state_is_in_the_target_and_the_source_is_named(
    places, target, how, largest
):
    ours, theirs = places.new("local"), places.new(target)
    ours.save_state_dict(tensors(), KEY)
    path = damage(ours, HOWS[how], largest=largest)
    ours.save_state_dict(net(1).state_dict(), OTHER)
    with pytest.raises(CopyError) as caught:
        copy(ours, theirs)
    ((key, error),) = caught.value.failures
    assert isinstance(error, IntegrityError)
    assert error.path == str(path)
    assert error.key == key == KEY
    assert error.tensor in (["weight", "tied"] if largest else [None])
    assert theirs.get_state_keys(LINEAR) == [OTHER]  # which is well
    assert verify(theirs).findings == ()


@pytest.mark.parametrize("target", ["memory", "github"])
def test_a_damaged_file_of_a_state_is_refused(places, target):
    ours, theirs = places.filled("local"), places.new(target)
    digest = ours.get(KEY).entry.files["labels.json"].digest
    path = ours.folder / layout.object_path(digest)
    path.chmod(0o644)
    path.write_bytes(b"[2]")
    with pytest.raises(IntegrityError, match=r"labels\.json") as caught:
        copy(ours, theirs)
    assert caught.value.path == str(path)
    assert theirs.get_state_keys(LINEAR) == []


def test_what_is_damaged_in_a_cache_is_fetched_again(places):
    mirrored, theirs = places.filled("manifest"), places.new("memory")
    mirrored.fetch(KEY)
    cache = LocalStateStore(mirrored.fetcher.cache.own.root)
    path = max((cache.folder / "objects").rglob("*"), key=lambda path: path.stat().st_size)
    path.chmod(0o644)
    path.write_bytes(HOWS["flipped"](path.read_bytes()))
    with pytest.warns(UserWarning, match="damaged in the cache"):
        assert copy(mirrored, theirs).copied == (KEY,)
    check(theirs)


def test_large_tensors_are_verified_too(tmp_path):
    ours, theirs = LocalStateStore(tmp_path / "a"), LocalStateStore(tmp_path / "b")
    ours.save_state_dict({"large": torch.arange(6_000_000)}, KEY)  # mapped, and in many pieces
    copy(ours, theirs)
    assert check_cache(tmp_path / "b") == 2
    damage(ours, HOWS["flipped"])
    with pytest.raises(IntegrityError, match="damaged"):
        copy(ours, MemoryStateStore())


def test_several_failures_are_listed_and_all_else_is_copied(places, tmp_path):
    ours, theirs = places.filled("local"), places.filled("memory", OTHER, seed=1)
    ours.save_state_dict(tensors(), OTHER, files=FILES)
    lost = StateKey(LINEAR, "lost")
    with pytest.raises(CopyError) as caught:
        copy(ours, theirs, [lost, OTHER, KEY])
    assert caught.value.copied == (KEY,)
    failures = dict(caught.value.failures)
    assert isinstance(failures[lost], StateNotFoundError)
    assert isinstance(failures[OTHER], StateExistsError)
    assert "pytorch.net.lost: there is no such state" in str(caught.value)
    check(theirs)
    check(theirs, OTHER, seed=1)


def test_a_state_without_a_digest_is_refused(tmp_path):
    path = tmp_path / "m.toml"
    path.write_text(f'version = 1\n[states."{KEY}"]\nmirrors = ["x.safetensors"]\n')
    with pytest.raises(UnpinnedStateError):
        copy(ManifestStore(path), MemoryStateStore())


def test_a_store_that_cannot_be_had_ends_the_copy_at_once(places, moto):
    ours = places.filled("local")
    ours.save_state_dict(tensors(), OTHER)
    with Forwarding(moto.url) as proxy:
        theirs = bucket_store(moto, "no-such-bucket", url=proxy.url)
        with pytest.raises(BucketError) as caught:
            copy(ours, theirs)
        assert caught.value.code == "NoSuchBucket"
        assert not any("b.toml" in path for path in proxy.asked())


def test_a_dead_mirror_of_one_state_does_not_keep_the_others(places, tmp_path):
    ours, theirs = places.filled("local"), places.new("memory")
    good = ours.get(KEY).entry
    bad = replace(good, key=OTHER, mirrors=(parse_mirror("nowhere.safetensors"),))
    ours.save_state_dict(tuned(), OTHER)
    bad = replace(bad, digest=ours.digest(OTHER), size=None, files={})
    good = replace(good, mirrors=(parse_mirror("nowhere.safetensors"),))
    Manifest({KEY: good, OTHER: bad}).write(tmp_path / "m.toml")
    cache = LocalStateStore(tmp_path / "cache")
    copy(ours, cache, [KEY])
    with pytest.raises(CopyError) as caught:
        copy(ManifestStore(tmp_path / "m.toml", cache=cache.folder), theirs, [OTHER, KEY])
    assert [type(error) for _, error in caught.value.failures] == [FetchError]
    check(theirs)


# Stopped, and several at once.

DENIED = b"<Error><Code>AccessDenied</Code></Error>"

COPY = """
import sys, time
from mlstate import LocalStateStore, copy
from mlstate.objects.folder import FolderObjectWriter
publish = FolderObjectWriter._publish
def slowly(self, file, digest):
    publish(self, file, digest)
    print(digest, flush=True)
    time.sleep(0.1)
FolderObjectWriter._publish = slowly
copy(LocalStateStore(sys.argv[1]), LocalStateStore(sys.argv[2]))
assert "torch" not in sys.modules
"""


def start_copy(ours: LocalStateStore, theirs: LocalStateStore) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(COPY)]
    return subprocess.Popen(
        [*command, ours.folder, theirs.folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_copy_that_was_killed_goes_on_where_it_was(tmp_path):
    ours, theirs = LocalStateStore(tmp_path / "a"), LocalStateStore(tmp_path / "b")
    many = {f"w{n:02}": torch.full((5000,), n) for n in range(30)}
    ours.save_state_dict(many, KEY)
    process = start_copy(ours, theirs)
    for _ in range(10):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert theirs.get_state_keys() == []  # nothing or all
    there = check_cache(theirs.folder)
    assert 10 <= there < 30
    report = copy(ours, theirs)
    assert report.copied == (KEY,)
    assert report.nbytes == (30 - there) * (4096 + 40_000)
    assert same(theirs.load_state_dict(KEY), many)


def test_needs_no_torch_and_several_processes_may_copy_the_same(tmp_path):
    ours, theirs = LocalStateStore(tmp_path / "a"), LocalStateStore(tmp_path / "b")
    ours.save_state_dict(tensors(), KEY, files=FILES, meta=META)
    ours.save_state_dict(tuned(), OTHER)
    processes = [start_copy(ours, theirs) for _ in range(3)]
    for process in processes:
        _, told = process.communicate(timeout=60)
        assert process.returncode == 0, told
    check(theirs)
    check_cache(theirs.folder)


def test_an_upload_that_was_broken_off_goes_on_where_it_was(moto, tmp_path):
    ours, bucket = LocalStateStore(tmp_path / "a"), moto.new_bucket()
    ours.save_state_dict({f"w{n}": torch.full((5000,), n) for n in range(6)}, KEY)
    with Forwarding(moto.url) as proxy:
        theirs = bucket_store(moto, bucket, url=proxy.url)
        left = iter(range(3))

        def refuse(record):
            if record.method == "PUT" and "/objects/" in record.path and next(left, None) is None:
                return Reply(403, {"Content-Type": "application/xml"}, DENIED)
            return None

        proxy.answer = refuse
        with pytest.raises(BucketError):
            copy(ours, theirs)
        assert theirs.get_state_keys() == []
        report = verify(theirs)
        assert (report.states, report.objects, report.findings) == ((), 3, ())
        proxy.answer = lambda record: None
        proxy.reset()
        assert copy(ours, theirs).nbytes == 3 * (4096 + 40_000)
        assert len([path for path in proxy.asked("PUT") if "/objects/" in path]) == 4
        assert theirs.digest(KEY) == ours.digest(KEY)


@pytest.mark.parametrize("target", ["local", "s3"])
def test_of_different_states_under_one_key_one_wins(places, moto, target):
    bucket, folder = moto.new_bucket(), places.folder / "target"

    def other():
        return LocalStateStore(folder) if target == "local" else bucket_store(moto, bucket)

    sources = [places.filled("memory", seed=seed) for seed in range(4)]

    def run(source):
        try:
            return copy(source, other()).copied
        except StateExistsError:
            return None

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(run, sources))
    assert done.count((KEY,)) == 1
    check(other(), seed=done.index((KEY,)))


@pytest.mark.parametrize("source", ["local", "manifest"])
def test_what_is_pruned_while_it_is_reused_is_put_again(places, source):
    ours, theirs = places.filled(source), places.filled("local", OTHER)
    create = theirs.saver.files.create

    def late(key, data):
        made = create(key, data)
        for path in (theirs.folder / "objects").rglob("*"):
            if path.is_file():
                path.unlink()
        return made

    theirs.saver.files.create = late
    assert copy(ours, theirs).copied == (KEY,)
    check(theirs)


MEMORY = """
import resource, sys
from mlstate import LocalStateStore, copy
import mlstate.fetch, mlstate.operations.copy
from pathlib import Path
used = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmData" in line)
limit = used * 1024 + 90_000_000
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
copy(LocalStateStore(sys.argv[1]), LocalStateStore(sys.argv[2]))
"""


def test_memory_is_bounded_however_large_a_tensor_is(tmp_path):
    ours = LocalStateStore(tmp_path / "a")
    ours.save_state_dict({n: torch.full((12_000_000,), n == "x") for n in "xy"}, KEY)
    ours.save_state_dict({"z": torch.arange(20_000_000)}, OTHER)  # 160 MB
    command = [sys.executable, "-c", MEMORY, ours.folder, tmp_path / "b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert check_cache(tmp_path / "b") == 5


def test_progress_is_told_of_each_state(places):
    told = []
    ours = places.filled("local")
    ours.save_state_dict(tuned(), OTHER)
    copy(ours, places.new("memory"), progress=told.append)
    ends = [progress for progress in told if progress.ended]
    assert [progress.what for progress in ends] == [str(KEY), str(OTHER)]
    assert all(progress.done == progress.total == 88_192 for progress in ends)


# Published: what somebody else reads, with a cache of their own.


def read_elsewhere(path: Path, places: Places, key: StateKey, seed: int = 0) -> None:
    store = ManifestStore(path, cache=places.folder / "elsewhere")
    check(store, key, seed)
    assert str(places.folder) not in path.read_text()


def test_copy_to_a_bucket_and_a_manifest_publish(places, moto, monkeypatch):
    ours, bucket = places.filled("local"), moto.new_bucket()
    theirs, path = bucket_store(moto, bucket), places.folder / "m.toml"
    copy(ours, theirs, [KEY])
    manifest_of(theirs, [KEY]).write(path)
    assert Manifest.read(path).states[KEY].objects == (f"s3://{bucket}/models",)
    for name, value in {
        "AWS_ENDPOINT_URL": moto.url,
        "AWS_ACCESS_KEY_ID": moto.access_key,
        "AWS_SECRET_ACCESS_KEY": moto.secret,
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    read_elsewhere(path, places, KEY)
    assert Manifest.read(path).states[KEY].digest == ours.digest(KEY)


def test_a_bucket_with_a_web_address_is_published_by_that(places, moto, start_recording):
    ours, bucket = places.filled("local"), moto.new_bucket()
    theirs, path = bucket_store(moto, bucket), places.folder / "m.toml"
    copy(ours, theirs)
    url = start_recording(contents(moto, bucket)).url
    manifest_of(theirs, objects=[f"{url}/models"]).write(path)
    assert "s3://" not in path.read_text()
    read_elsewhere(path, places, KEY)


def test_copy_to_a_release_and_a_manifest_publish(places, github):
    ours, path = places.filled("local"), places.folder / "m.toml"
    copy(ours, github_store(places.folder / "c"), [KEY])
    manifest_of(github_store(places.folder / "d"), [KEY]).write(path)
    github.reset()
    read_elsewhere(path, places, KEY)
    assert github.calls == []  # no API, no token
    mirror = Manifest.read(path).states[KEY].mirrors[0]
    assert mirror.urls[0].startswith(f"{github.web.url}/org/models/releases/download/{TAG}/a.")
    assert mirror.state.endswith(".mlstate")


@pytest.mark.parametrize("target", ["local", "s3", "github"])
def test_no_place_of_this_machine_gets_into_what_is_published(places, target):
    plain, theirs = places.filled("manifest"), places.new(target)
    copy(plain, theirs)
    path = places.folder / "m.toml"
    manifest_of(theirs).write(path)
    assert str(places.folder) not in path.read_text()
    assert "store" not in path.read_text()
