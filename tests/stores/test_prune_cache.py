"""Making room in a cache removes whole states, least recently used first, and no saved ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from mlstate import LocalStateStore, Manifest, ManifestStore, StateKey, manifest_of
from mlstate.digests import Digest
from mlstate.errors import FetchError, IntegrityError, ObjectNotFoundError, ReadOnlyStoreError
from mlstate.fetch.run import Run
from mlstate.objects import FolderObjectStore, MemoryObjectStore
from mlstate.objects.cache import forget_root, read_roots, write_root
from mlstate.objects.plain_folders import (
    note_folder_use,
    plain_folder,
    read_folders,
    remove_folder,
)
from mlstate.operations.doctor.folders import folder_checks
from mlstate.operations.usage import usage
from mlstate.stores.access import Access
from mlstate.stores.prune_folder import _FolderPruning

KEYS = [StateKey.parse(f"pytorch.net.{name}") for name in "abc"]
SIZE = 40_000
HOUR = 3600


@pytest.fixture
def store(tmp_path):
    """A manifest of three states that share a tensor; all are fetched, a first, c last."""
    source = LocalStateStore(tmp_path / "source")
    for number, key in enumerate(KEYS):
        own = torch.full((SIZE // 4,), number + 2.0)
        tensors = {"shared": torch.ones(SIZE // 4), "own": own}
        source.save_state_dict(tensors, key, files={"name": str(key).encode()})
    entries = {key: replace(source.get(key).entry, objects=("source",)) for key in KEYS}
    Manifest(entries, objects=("source",)).write(tmp_path / "weights.toml")
    store = ManifestStore(tmp_path / "weights.toml", cache=tmp_path / "cache")
    for number, key in enumerate(KEYS):
        store.fetch(key)
        used(tmp_path, store, key, hours=10 - number)
    age_objects(tmp_path / "cache", hours=10)
    return store


def used(tmp_path, store, key, hours):
    path = tmp_path / "cache" / "roots" / store.digest(key)
    os.utime(path, (time.time() - hours * HOUR,) * 2)


def age_objects(cache, hours):
    for path in cache.glob("objects/*/*"):
        os.utime(path, (time.time() - hours * HOUR,) * 2)


def folder_in(cache, number, hours, size=1000):
    """A folder as integrations leave it, last used so many hours ago."""
    folder = plain_folder(cache, f"{number:032x}")
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.safetensors").write_bytes(bytes(size))
    os.utime(folder, (time.time() - hours * HOUR,) * 2)
    return folder


def test_folders_of_frameworks_go_as_states_do(store, tmp_path):
    cache = tmp_path / "cache"
    old, new, now = (folder_in(cache, n, hours) for n, hours in enumerate((20, 2, 0)))
    (cache / "folders" / "mine").mkdir()
    (cache / "folders" / ("f" * 32)).symlink_to(tmp_path)
    planned = store.prune(older_than=5 * HOUR, dry_run=True)
    assert planned.folders == {str(old): 1000}
    assert old.exists()
    made = store.prune(older_than=9.5 * HOUR)
    assert made.folders == {str(old): 1000}
    assert list(made.states.values()) == [str(KEYS[0])]
    assert not old.exists()
    # By size, that of the last hour stays, whatever it takes.
    by_size = store.prune(max_size=0)
    assert by_size.folders == {str(new): 1000}
    assert (by_size.recent_folders, by_size.nbytes >= 1000) == ({str(now): 1000}, True)
    assert sorted(os.listdir(cache / "folders")) == sorted([now.name, "mine", "f" * 32])
    last = store.prune()
    assert (last.folders, last.recent_folders) == ({}, {})
    assert store.prune(max_size=0, grace_seconds=0).folders == {str(now): 1000}


def test_a_folder_counts_among_states_by_its_last_use(store, tmp_path):
    folder = folder_in(tmp_path / "cache", 1, hours=9.5, size=5 * SIZE)  # used after a, before b
    assert store.prune(max_size=4 * SIZE).folders == {str(folder): 5 * SIZE}
    folder = folder_in(tmp_path / "cache", 1, hours=7, size=5 * SIZE)  # the last that was used
    made = store.prune(max_size=6 * SIZE)
    assert (made.folders, folder.exists()) == ({}, True)
    assert str(KEYS[2]) in made.states.values()


def test_a_folder_that_is_used_while_it_is_to_go_stays(store, tmp_path):
    folder = folder_in(tmp_path / "cache", 1, hours=9)
    (looked,) = read_folders(tmp_path / "cache")
    note_folder_use(folder)
    assert not remove_folder(looked)
    assert (folder / "unet" / "model.safetensors").exists()


def test_what_a_killed_pruning_left_of_a_folder_is_removed(store, tmp_path):
    folder = folder_in(tmp_path / "cache", 1, hours=0)
    folder.rename(folder.with_name(f".{folder.name}.{'0' * 16}.gone"))
    store.prune()
    assert os.listdir(tmp_path / "cache" / "folders") == []


def test_du_and_doctor_tell_of_folders(store, tmp_path):
    assert usage(store).disk.folders == 0
    folder_in(tmp_path / "cache", 1, hours=0)
    assert usage(store).disk.folders == 1000
    checks = {check.name: check.found for check in folder_checks("cache", tmp_path / "cache")}
    assert checks["cache: folders for frameworks"].startswith("1, 1.0 kB ")


def cached(store):
    return [key for key in KEYS if store.objects.size(store.digest(key)) is not None]


def test_what_was_not_used_for_long_goes_and_is_fetched_again_when_needed(store, tmp_path):
    report = store.prune(older_than=9.5 * HOUR)
    assert list(report.states.values()) == [str(KEYS[0])]
    assert cached(store) == KEYS[1:]
    assert sum(report.objects.values()) == pytest.approx(SIZE + 4096, abs=1000)
    assert not any((tmp_path / "cache" / "trash").iterdir())
    for key in KEYS:
        assert store.load_state_dict(key)["shared"].sum() == SIZE / 4
        assert store.files(key)["name"] == str(key).encode()


def test_a_size_keeps_those_that_were_used_last(store):
    report = store.prune(max_size=2 * SIZE + 20_000)
    assert sorted(report.states.values()) == [str(key) for key in KEYS[:2]]
    assert cached(store) == KEYS[2:]
    store.prune(max_size=0)
    assert cached(store) == []


def test_loading_counts_as_use(store):
    store.load_state_dict(KEYS[0])
    store.prune(older_than=HOUR)
    assert cached(store) == KEYS[:1]


def test_a_dry_run_says_the_same_and_changes_nothing(store):
    said = store.prune(max_size=2 * SIZE + 20_000, dry_run=True)
    assert cached(store) == KEYS
    assert store.prune(max_size=2 * SIZE + 20_000) == said


def test_without_a_limit_nothing_goes(store):
    assert not store.prune().states
    assert cached(store) == KEYS


def test_what_is_used_again_before_it_is_gone_is_kept_again(store, tmp_path):
    age_objects(tmp_path / "cache", hours=0)
    report = store.prune(max_size=0)  # the objects are too young to go
    assert (report.states, sorted(report.recent.values())) == ({}, [str(key) for key in KEYS])
    store.load_state_dict(KEYS[1])
    age_objects(tmp_path / "cache", hours=10)
    store.prune(max_size=0)
    assert cached(store) == [KEYS[1]]


def test_a_store_that_serves_as_a_cache_is_not_told_what_to_keep(store, tmp_path):
    ManifestStore(tmp_path / "weights.toml", cache=tmp_path / "source").load_state_dict(KEYS[0])
    assert not (tmp_path / "source" / "roots").exists()


def test_what_has_just_been_fetched_is_not_taken_from_under_a_fetch(store, tmp_path):
    age_objects(tmp_path / "cache", hours=0)
    report = store.prune(max_size=0)
    assert len(report.recent) == 3
    assert not report.states
    assert not report.objects  # young objects wait for a later pruning
    assert cached(store) == KEYS
    age_objects(tmp_path / "cache", hours=2)
    again = store.prune(max_size=0)
    assert len(again.objects) == 4 + 3 + 3  # tensors, state objects, files
    assert (len(again.states), again.nbytes) == (3, 0)


def test_without_grace_what_was_used_a_moment_ago_goes_too(store, tmp_path):
    store.load_state_dict(KEYS[0])
    age_objects(tmp_path / "cache", hours=0)
    said = store.prune(max_size=0, grace_seconds=0, dry_run=True)
    assert cached(store) == KEYS
    assert store.prune(max_size=0, grace_seconds=0) == said
    assert sorted(said.states.values()) == [str(key) for key in KEYS]
    assert cached(store) == []
    assert store.load_state_dict(KEYS[0])["shared"].sum() == SIZE / 4


def test_what_no_state_needs_and_is_young_is_named(store, tmp_path):
    digest = Digest.of(b"orphan")
    FolderObjectStore(tmp_path / "cache").writer().put(digest, [b"orphan"])
    left = tmp_path / "cache" / "tmp" / ("f" * 32)
    left.write_bytes(b"by a fetch that is under way")
    for dry_run in (True, False):
        report = store.prune(dry_run=dry_run)
        assert report.spared == {digest: 6}
        assert report.waiting == {str(left): 28}
        assert report.objects == {}


def test_a_note_of_a_fetch_that_brought_nothing_goes_unsaid(store, tmp_path):
    digest = Digest.of(b"no such state")
    write_root(tmp_path / "cache", digest, "pytorch.net.none", [])
    assert digest not in store.prune(older_than=0).states
    assert (tmp_path / "cache" / "roots" / digest).exists()  # it may be under way
    os.utime(tmp_path / "cache" / "roots" / digest, (1, 1))
    assert digest not in store.prune().states
    assert not (tmp_path / "cache" / "roots" / digest).exists()


def test_states_that_were_saved_in_the_folder_stay(store, tmp_path):
    own = LocalStateStore(tmp_path / "cache")
    key = StateKey.parse("pytorch.net.mine")
    own.save_state_dict({"shared": torch.ones(SIZE // 4)}, key)
    age_objects(tmp_path / "cache", hours=20 * 24)
    for _ in range(2):
        store.prune(max_size=0)
        age_objects(tmp_path / "cache", hours=20 * 24)
    assert own.load_state_dict(key)["shared"].sum() == SIZE / 4
    assert cached(store) == []


def test_what_was_saved_counts_towards_the_limit_and_is_named(store, tmp_path):
    own = LocalStateStore(tmp_path / "cache")
    key = StateKey.parse("pytorch.net.mine")
    own.save_state_dict({"mine": torch.arange(10 * SIZE // 4)}, key)
    age_objects(tmp_path / "cache", hours=20 * 24)
    report = store.prune(max_size=5 * SIZE)  # enough for what was fetched alone
    assert (sorted(report.states.values()), cached(store)) == ([str(key) for key in KEYS], [])
    assert report.saved == (key,)
    saved = sum(map(own.own.size, own.own.digests()))
    assert report.saved_nbytes == report.nbytes == saved > 10 * SIZE


def test_pruning_a_store_spares_what_a_cache_in_its_folder_keeps(store, tmp_path):
    own = LocalStateStore(tmp_path / "cache")
    for _ in range(2):
        own.prune(grace_seconds=0)
    (tmp_path / "source").rename(tmp_path / "gone")
    for key in KEYS:
        store.load_state_dict(key)
        assert store.files(key)["name"]


def test_a_root_that_cannot_be_read_keeps_nothing_and_breaks_nothing(store, tmp_path):
    (tmp_path / "cache" / "roots" / store.digest(KEYS[0])).write_bytes(b"\xff")
    (tmp_path / "cache" / "roots" / "note.txt").write_text("mine")
    store.prune()
    assert cached(store) == KEYS[1:]
    assert (tmp_path / "cache" / "roots" / "note.txt").exists()


def test_a_cache_that_is_no_folder_is_not_pruned(tmp_path):
    path = tmp_path / "weights.toml"
    path.write_text("version = 1\n")
    with pytest.raises(ReadOnlyStoreError):
        ManifestStore(path, cache=MemoryObjectStore()).prune()


def test_what_no_mirror_has_any_more_is_named(store, tmp_path):
    store.prune(max_size=0)
    (tmp_path / "weights.toml").write_text(
        (tmp_path / "weights.toml").read_text().replace('objects = [\n    "source",\n]\n', "")
    )
    again = ManifestStore(tmp_path / "weights.toml", cache=tmp_path / "cache")
    with pytest.raises(ObjectNotFoundError, match="lists no mirrors"):
        again.load_state_dict(KEYS[0])


# Beside fetches and loads, and of what is in use.


def test_what_was_used_within_the_hour_stays_until_it_was_not(store, tmp_path):
    """Its objects are as old as ever; only the note of its use is young."""
    store.load_state_dict(KEYS[0])
    report = store.prune(max_size=0)
    assert sorted(report.states.values()) == [str(key) for key in KEYS[1:]]
    assert list(report.recent.values()) == [str(KEYS[0])]
    assert len(report.objects) == 2 + 2 + 2  # what the others alone need
    assert cached(store) == KEYS[:1]
    store.prune(max_size=0)  # nor by the next one
    shutil.rmtree(tmp_path / "source")
    assert store.load_state_dict(KEYS[0])["shared"].sum() == SIZE / 4
    age_objects(tmp_path / "cache", hours=2)
    used(tmp_path, store, KEYS[0], hours=2)
    store.prune(max_size=0)
    assert cached(store) == []


def test_a_use_after_the_choice_keeps_a_state(store, tmp_path, monkeypatch):
    """A load notes its use, and finds all there, while the pruning is moving."""
    moved, other = [], ManifestStore(tmp_path / "weights.toml", cache=tmp_path / "cache")
    move = _FolderPruning.move

    def used_meanwhile(self, place, digest):
        target = move(self, place, digest)
        if not moved:
            moved.append(digest)
            shutil.rmtree(tmp_path / "source")  # nothing can be fetched again
            assert other.load_state_dict(KEYS[2])["shared"].sum() == SIZE / 4
        return target

    monkeypatch.setattr(_FolderPruning, "move", used_meanwhile)
    report = store.prune(max_size=0)
    assert list(report.in_use.values()) == [str(KEYS[2])]
    assert sorted(report.states.values()) == [str(key) for key in KEYS[:2]]
    assert cached(store) == KEYS[2:]
    assert store.load_state_dict(KEYS[2])["own"].sum() == 4 * SIZE / 4


def test_a_use_at_the_very_end_of_a_pruning_is_not_lost(tmp_path, monkeypatch):
    """Between the look at the note and its removal."""
    digest = Digest.of(b"state")
    write_root(tmp_path, digest, str(KEYS[0]), [])
    path = tmp_path / "roots" / digest
    os.utime(path, (1, 1))
    rename = os.rename

    def used_meanwhile(source, target):
        os.utime(source)
        rename(source, target)

    monkeypatch.setattr(os, "rename", used_meanwhile)
    assert not forget_root(tmp_path, digest, used=1.0)
    assert [root.digest for root in read_roots(tmp_path)] == [digest]
    monkeypatch.undo()
    assert forget_root(tmp_path, digest, used=time.time())
    assert not path.exists()
    assert [*(tmp_path / "tmp").iterdir()] == []


def test_a_fetch_brings_again_what_an_eviction_takes_meanwhile(store, tmp_path, monkeypatch):
    """The shared tensor is there when the fetch begins, and gone when the rest has come."""
    store.prune(older_than=9.5 * HOUR)
    again = ManifestStore(tmp_path / "weights.toml", cache=tmp_path / "cache")
    taken, bring = [], Run._bring_tensors

    def evicted_meanwhile(self, names, needs):
        bring(self, names, needs)
        if len(taken) < 3:
            taken.append(evict(tmp_path / "cache"))

    monkeypatch.setattr(Run, "_bring_tensors", evicted_meanwhile)
    again.fetch(KEYS[0])
    assert len(taken) == 3
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "source")
    assert again.load_state_dict(KEYS[0])["shared"].sum() == SIZE / 4
    assert again.files(KEYS[0])["name"] == str(KEYS[0]).encode()


def test_a_fetch_beside_evictions_without_end_gives_up(store, tmp_path, monkeypatch):
    store.prune(max_size=0)
    bring = Run._bring_tensors

    def evicted_meanwhile(self, names, needs):
        bring(self, names, needs)
        evict(tmp_path / "cache")

    monkeypatch.setattr(Run, "_bring_tensors", evicted_meanwhile)
    with pytest.raises(FetchError, match="could not be fetched"):
        store.fetch(KEYS[0])


def evict(cache):
    """Take everything, as a pruning without any grace would."""
    for path in cache.glob("objects/*/*"):
        path.unlink()


def test_a_load_fetches_again_what_an_eviction_takes_before_it_reads(store, tmp_path, monkeypatch):
    taken, bring = [], Access.bring

    def evicted_after(self, *arguments, **named):
        bring(self, *arguments, **named)
        if len(taken) < 3:
            taken.append(evict(tmp_path / "cache"))

    monkeypatch.setattr(Access, "bring", evicted_after)
    assert store.load_state_dict(KEYS[0])["shared"].sum() == SIZE / 4
    assert len(taken) == 3


def test_what_a_killed_pruning_left_in_the_trash_needs_no_network(store, tmp_path):
    cache = FolderObjectStore(tmp_path / "cache")
    damaged = store.digest(KEYS[1])
    (tmp_path / "cache" / "trash").mkdir(exist_ok=True)
    for digest in list(cache.digests()):
        os.rename(cache.path(digest), tmp_path / "cache" / "trash" / f"{digest}.{'0' * 32}")
    offline = ManifestStore(tmp_path / "weights.toml", cache=tmp_path / "cache", offline=True)
    shutil.move(tmp_path / "source", tmp_path / "gone")
    path = tmp_path / "cache" / "trash" / f"{damaged}.{'0' * 32}"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert offline.load_state_dict(KEYS[0])["shared"].sum() == SIZE / 4
    assert cache.path(store.digest(KEYS[0])).exists()
    with pytest.raises(IntegrityError):  # what is damaged there is no state
        offline.load_state_dict(KEYS[1])
    shutil.move(tmp_path / "gone", tmp_path / "source")
    assert store.load_state_dict(KEYS[1])["shared"].sum() == SIZE / 4


HOLDER = """
import sys
from mlstate import ManifestStore, StateKey
store = ManifestStore(sys.argv[1], cache=sys.argv[2])
tensors = store.load_state_dict(StateKey.parse(sys.argv[3]))
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does not tell who maps what")
def test_a_state_that_another_process_has_mapped_stays(tmp_path):
    source = LocalStateStore(tmp_path / "source")
    for number, key in enumerate(KEYS[:2]):
        tensors = {"shared": torch.ones(300_000), "own": torch.full((300_000,), number + 2.0)}
        source.save_state_dict(tensors, key)
    manifest_of(source, objects=[str(tmp_path / "source")]).write(tmp_path / "weights.toml")
    store = ManifestStore(tmp_path / "weights.toml", cache=tmp_path / "cache")
    store.fetch(KEYS[1])
    command = [sys.executable, "-c", HOLDER, tmp_path / "weights.toml", tmp_path / "cache", KEYS[0]]
    with subprocess.Popen(
        [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "ready\n"
        for key in KEYS[:2]:
            used(tmp_path, store, key, hours=10)
        age_objects(tmp_path / "cache", hours=10)
        said = store.prune(max_size=0, dry_run=True)
        report = store.prune(max_size=0)
        assert report == said
        assert list(report.in_use.values()) == [str(KEYS[0])]
        assert list(report.states.values()) == [str(KEYS[1])]  # of which it shares a tensor
        holder.communicate("\n")
    assert list(store.prune(max_size=0).states.values()) == [str(KEYS[0])]


def test_a_note_of_the_future_is_named_and_its_state_stays(store, tmp_path):
    used(tmp_path, store, KEYS[0], hours=-30)
    for dry_run in (True, False):
        report = store.prune(max_size=0, dry_run=dry_run)
        assert report.future == (str(tmp_path / "cache" / "roots" / store.digest(KEYS[0])),)
        assert sorted(report.states.values()) == [str(key) for key in KEYS[1:]]
    assert cached(store) == KEYS[:1]
    used(tmp_path, store, KEYS[0], hours=2)
    assert list(store.prune(max_size=0).states.values()) == [str(KEYS[0])]
