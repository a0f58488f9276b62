"""Pruning takes what nothing names, and never what a state needs, whoever saves beside it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
import torch

from mlstate import LocalStateStore, StateKey
from mlstate.digests import Digest
from mlstate.errors import (
    FormatError,
    IntegrityError,
    MlstateError,
    StateExistsError,
    StateNotFoundError,
)
from mlstate.objects import FolderObjectStore
from tests.support.models import LINEAR, net, same, values

DAY = 24 * 3600


def age(store: LocalStateStore, days: float) -> None:
    """Make everything in the store older."""
    for path in store.folder.rglob("*"):
        if path.is_file():
            found = path.stat().st_mtime - days * DAY
            os.utime(path, (found, found))


def objects_in(store: LocalStateStore) -> int:
    return len([*store.folder.glob("objects/*/*")])


def test_what_states_name_stays_however_old(store):
    key = store.save(net(1), "a", files={"f": b"1"})
    age(store, 1000)
    report = store.prune()
    assert (report.trashed, report.deleted, report.restored) == ({}, {}, [])
    store.load(net(2), key)
    assert store.files(key)["f"] == b"1"


def test_objects_of_a_deleted_state_live_for_the_grace_period_then_go_in_two_steps(store):
    key = store.save(net(1), "a")
    other = store.save(net(2), "b")
    age(store, 1000)
    before = objects_in(store)
    store.delete(key)
    assert store.prune().trashed == {}  # deleted just now
    age(store, 1000)
    report = store.prune()
    assert len(report.trashed) == 3
    assert sum(report.trashed.values()) > 40_000
    assert report.deleted == {}
    assert objects_in(store) == before - 3
    assert store.prune().deleted == report.trashed
    assert [*(store.folder / "trash").iterdir()] == []
    store.load(net(3), other)


def test_young_objects_that_nothing_names_stay(store):
    store.save(net(1), "a")
    store.save(net(2), "a", overwrite=True)
    assert store.prune().trashed == {}
    age(store, 15)
    assert len(store.prune().trashed) == 3


def test_a_shared_object_stays_while_one_state_names_it(store):
    key = store.save(net(1), "a")
    tensors = {"w": net(1)[0].weight.detach()}
    shared = store.save_state_dict(tensors, StateKey(LINEAR, "b"))
    store.delete(key)
    age(store, 15)
    store.prune()
    age(store, 15)
    store.prune()
    assert same(store.load_state_dict(shared), tensors)


def test_what_was_trashed_and_is_saved_again_is_back(store):
    key = store.save(net(1), "a")
    store.delete(key)
    age(store, 15)
    store.prune()
    store.save(net(1), "a")
    store.load(net(2), key)
    store.prune()
    store.load(net(2), key)


def test_an_object_in_the_trash_that_a_state_names_is_put_back(store):
    """As after a crash between the two looks of a pruning."""
    key = store.save(net(1), "a")
    digest = store.digest(key)
    trash = store.folder / "trash"
    trash.mkdir()
    os.rename(store.objects.path(digest), trash / f"{digest}.{'0' * 32}")
    assert store.prune().restored == [digest]
    store.load(net(2), key)


def test_a_tensor_object_in_the_trash_that_a_state_names_is_put_back(store):
    key = store.save(net(1), "a")
    path = max(store.folder.glob("objects/*/*"), key=lambda path: path.stat().st_size)
    digest = path.parent.name + path.name
    (store.folder / "trash").mkdir()
    os.rename(path, store.folder / "trash" / f"{digest}.{'0' * 32}")
    age(store, 1000)
    assert store.prune().restored == [digest]
    store.load(net(2), key)


def test_what_was_saved_anew_is_never_replaced_by_what_lies_in_the_trash(store):
    """The trashed one may be damaged: nobody looked."""
    key = store.save(net(1), "a")
    store.delete(key)
    path = max(store.folder.glob("objects/*/*"), key=lambda path: path.stat().st_size)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    age(store, 1000)
    store.prune()
    store.save(net(1), "b")
    store.prune()
    store.load(net(2), StateKey(LINEAR, "b"))


def test_what_was_overwritten_lives_on_for_the_grace_period(store, monkeypatch):
    """A load that has read the old state file finds its objects."""
    key = store.save(net(1), "a")
    age(store, 1000)
    find, other = store.find, LocalStateStore(store.folder)

    def overwritten_meanwhile(key):
        found = find(key)
        other.save(net(2), "a", overwrite=True)
        other.prune()
        return found

    monkeypatch.setattr(store, "find", overwritten_meanwhile)
    model = net(3)
    store.load(model, key)
    assert same(values(model), values(net(1)))


def test_new_meta_for_the_same_weights_is_as_safe_as_any_save(store, monkeypatch):
    key = store.save(net(1), "a")
    age(store, 1000)
    replace, other = store.saver.files.replace, LocalStateStore(store.folder)

    def overwritten_and_pruned_meanwhile(key, data):
        other.save(net(2), "a", overwrite=True)
        age(other, 1000)
        other.prune()
        replace(key, data)

    monkeypatch.setattr(store.saver.files, "replace", overwritten_and_pruned_meanwhile)
    store.save(net(1), "a", meta={"x": 1}, overwrite=True)
    model = net(3)
    store.load(model, key)
    assert same(values(model), values(net(1)))
    assert store.meta(key) == {"x": 1}


def test_reuse_freshens_an_old_object(store):
    key = store.save(net(1), "a")
    store.delete(key)
    age(store, 1000)
    store.save_state_dict({"w": net(1)[0].weight.detach()}, StateKey(LINEAR, "b"))
    fresh = [p for p in store.folder.glob("objects/*/*") if p.stat().st_mtime > time.time() - DAY]
    assert len(fresh) == 2  # the weight, and the new state object


def test_a_save_puts_again_what_pruning_took_before_the_state_file_named_it(store, monkeypatch):
    """The last moment: objects were reused, and are gone when the state file is there."""
    model = net(1)
    store.save(model, "a", files={"f": b"1"})
    create = store.saver.files.create

    def prune_then_create(key, data):
        for path in store.folder.glob("objects/*/*"):
            path.unlink()
        return create(key, data)

    monkeypatch.setattr(store.saver.files, "create", prune_then_create)
    key = store.save(model, "b", files={"f": b"1"})
    store.load(net(2), key)
    assert store.files(key)["f"] == b"1"


def test_a_key_whose_other_state_is_deleted_during_the_race_is_free(store, monkeypatch):
    create, calls = store.saver.files.create, []

    def taken_at_first(key, data):
        calls.append(key)
        return len(calls) > 1 and create(key, data)

    monkeypatch.setattr(store.saver.files, "create", taken_at_first)
    key = store.save(net(1), "a")
    assert len(calls) == 2
    store.load(net(2), key)


def test_the_loser_of_a_race_leaves_orphans_for_pruning_and_nothing_else(store, monkeypatch):
    other = LocalStateStore(store.folder)
    create = store.saver.files.create

    def late(key, data):
        other.save(net(2), "a")
        return create(key, data)

    monkeypatch.setattr(store.saver.files, "create", late)
    with pytest.raises(StateExistsError):
        store.save(net(1), "a")
    model = net(3)
    store.load(model, StateKey(LINEAR, "a"))
    assert same(values(model), values(net(2)))
    age(store, 15)
    assert len(store.prune().trashed) == 3


def test_a_dry_run_changes_nothing_and_says_what_would_be(store):
    key = store.save(net(1), "a")
    store.delete(key)
    (store.folder / "tmp" / ("f" * 32)).write_bytes(b"left by a crash")
    age(store, 15)
    before = sorted((str(p), p.stat().st_mtime_ns) for p in store.folder.rglob("*"))
    report = store.prune(dry_run=True)
    assert sorted((str(p), p.stat().st_mtime_ns) for p in store.folder.rglob("*")) == before
    done = store.prune()
    assert (report.trashed, report.swept) == (done.trashed, done.swept)
    assert len(report.swept) == 2  # the temporary and the deleted state file


def test_temporaries_of_a_running_save_stay(store):
    store.save(net(1), "a")
    temporary = store.folder / "tmp" / ("f" * 32)
    temporary.write_bytes(b"being written")
    store.prune()
    assert temporary.exists()


def test_foreign_files_are_left_alone(store):
    store.save(net(1), "a")
    foreign = [store.folder / name for name in ("objects/ab/notes", "objects/README", "x")]
    foreign += [store.folder / "objects" / "zz" / ("0" * 62), store.folder / "trash" / "mine"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"")
    age(store, 1000)
    store.prune()
    store.prune()
    assert all(path.exists() for path in foreign)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def link_of_another_member(path, target):
    if path.exists():
        path.rename(path.with_name(f"was-{path.name}"))
    path.symlink_to(target)
    os.lchown(path, 12345, 12345)


@pytest.fixture
def private(tmp_path):
    """Another store, with everything that a pruning takes, all of it old."""
    found = LocalStateStore(tmp_path / "private")
    found.save(net(5), "mine")
    for name in ("trash/" + "a" * 64 + "." + "b" * 32, "tmp/" + "c" * 32, "roots/" + "d" * 64):
        (found.folder / name).parent.mkdir(exist_ok=True)
        (found.folder / name).write_bytes(b"mine")
    age(found, 1000)
    return found


def everything(store):
    return {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}


@as_root
@pytest.mark.parametrize("name", ["states", "objects", "trash", "tmp", "roots"])
def test_no_other_store_is_pruned_through_a_link_of_another_member(store, private, name):
    key = store.save(net(1), "a")
    store.delete(key)
    before = everything(private)
    link_of_another_member(store.folder / name, private.folder / name)
    with pytest.raises(FormatError, match="no folder that a store may write into"):
        store.prune(grace_seconds=0)
    assert everything(private) == before


@as_root
def test_a_folder_of_objects_that_becomes_a_link_meanwhile_is_not_pruned(
    store, private, monkeypatch
):
    before = everything(private)
    store.save(net(1), "a")
    digests = FolderObjectStore.digests

    def and_swap(objects):
        if objects.root == store.folder:
            monkeypatch.undo()
            for path in (private.folder / "objects").iterdir():
                link_of_another_member(store.folder / "objects" / path.name, path)
                yield from (Digest(path.name + file.name) for file in path.iterdir())
        else:
            yield from digests(objects)

    monkeypatch.setattr(FolderObjectStore, "digests", and_swap)
    with contextlib.suppress(OSError, MlstateError):
        store.prune(grace_seconds=0)
    assert everything(private) == before


@as_root
def test_no_state_of_another_store_is_deleted_through_a_link(store, private):
    key = store.save(net(1), "mine")
    for name in ("states", "states/pytorch"):
        link_of_another_member(store.folder / name, private.folder / name)
        with pytest.raises(FormatError, match="no folder that a store may write into"):
            store.delete(key)
        (store.folder / name).unlink()
        (store.folder / name).with_name(f"was-{(store.folder / name).name}").rename(
            store.folder / name
        )
    assert private.exists(key)
    store.delete(key)


def test_a_deleted_state_file_without_an_end_is_not_read(store):
    """A member of the group may have put it into trash/: a hole of a terabyte, say."""
    store.save(net(1), "a")
    (store.folder / "trash").mkdir()
    with open(store.folder / "trash" / ("pytorch.x.y.toml." + "0" * 32), "wb") as file:
        file.truncate(1 << 40)
    store.prune()


def test_a_folder_that_is_no_store_yet_is_nobodys_to_prune(tmp_path):
    for name in ("tmp/" + "f" * 32, "tmp/run.log", "trash/x.y.z.toml." + "0" * 32):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"mine")
    store = LocalStateStore(tmp_path)
    age(store, 1000)
    before = sorted(tmp_path.rglob("*"))
    assert store.prune().swept == []
    assert sorted(tmp_path.rglob("*")) == before
    store.save(net(1), "a")
    store.prune()
    assert (tmp_path / "tmp" / "run.log").exists()  # no name of ours


def test_a_state_that_cannot_be_read_stops_pruning_before_anything_is_removed(store):
    key = store.save(net(1), "a")
    gone = store.save(net(2), "b")
    store.delete(gone)
    path = store.objects.path(store.digest(key))
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1])
    age(store, 1000)
    before = objects_in(store)
    with pytest.raises(IntegrityError) as caught:
        store.prune()
    assert caught.value.key == key
    assert objects_in(store) == before


def test_an_empty_and_an_absent_store(store):
    report = store.prune()
    assert report.trashed == {}
    assert not store.folder.exists()


def _save_and_delete(folder, worker, seconds, failures):
    torch.set_num_threads(1)
    store = LocalStateStore(folder)
    models = [net(seed) for seed in range(4)]
    own = [net(10 + 20 * worker + seed) for seed in range(20)]  # each is unnamed for a while
    end = time.monotonic() + seconds
    step = worker
    try:
        while time.monotonic() < end:
            step += 1
            seed, name = step % 4, f"s{step % 3}"
            key = StateKey(LINEAR, name)
            try:
                store.save(models[seed], name)
                # Nobody else has this key: what was saved must load, whatever is pruned.
                mine = StateKey(LINEAR, f"w{worker}")
                store.save(own[step % 20], mine.training_id, overwrite=True)
                model = net(9)
                store.load(model, mine)
                assert same(values(model), values(own[step % 20]))
            except StateExistsError:
                pass
            with contextlib.suppress(StateNotFoundError):
                store.delete(key)
    except BaseException as error:
        failures.put(f"worker {worker}: {error!r}\n{error}")
        raise


def test_savers_deleters_and_pruners_at_once_lose_nothing(tmp_path):
    """With no grace at all: only the order of looks keeps the savers safe."""
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    folder = str(tmp_path / "store")
    workers = [
        context.Process(target=_save_and_delete, args=(folder, worker, 4, failures))
        for worker in range(3)
    ]
    for worker in workers:
        worker.start()
    store = LocalStateStore(folder)
    pruned = 0
    while any(worker.is_alive() for worker in workers):
        try:
            report = store.prune(grace_seconds=0.5)
            pruned += len(report.deleted)
        except IntegrityError:
            pass  # a state was deleted and pruned while it was looked at: the next run will do
        time.sleep(0.05)
    for worker in workers:
        worker.join()
    assert failures.empty(), failures.get()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert pruned > 0
    for key in store.get_state_keys(LINEAR):
        store.load(net(9), key)


KILLED = """
import os, sys, torch
from mlstate import LocalStateStore, StateKey
from mlstate.objects.folder import FolderObjectWriter
FolderObjectWriter._publish = lambda *_: os._exit(9)
tensors = {f"w{i}": torch.full((5000,), float(i)) for i in range(5)}
LocalStateStore(sys.argv[1]).save_state_dict(tensors, StateKey.parse("pytorch.net.killed"))
"""


def test_what_a_killed_save_leaves_is_swept(tmp_path):
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path]).returncode == 9
    left = list((tmp_path / "tmp").iterdir())
    assert left
    for path in left:
        os.utime(path, (1, 1))
    assert sorted(LocalStateStore(tmp_path).prune().swept) == sorted(map(str, left))
    assert not list((tmp_path / "tmp").iterdir())
