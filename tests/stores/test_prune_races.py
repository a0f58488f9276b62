"""Prunings beside saves, each stopped or killed between any two of its steps.

The model: a state that was reported saved, and was not deleted, loads with the right bytes, at all
times, whatever prunings are under way, finished or killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from mlstate import LocalStateStore, StateKey, bundle, unbundle
from mlstate.digests import Digest
from mlstate.errors import IntegrityError, ManifestError
from mlstate.format import layout
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import header
from mlstate.objects import FolderObjectStore
from mlstate.objects.folder import FolderObjectWriter
from mlstate.reading import read_state
from mlstate.stores.prune import Pruning
from mlstate.stores.prune_folder import _FolderPruning
from mlstate.tensors import tensor_sources
from mlstate.tensors.memory import as_bytes
from tests.support.encoding import encode_all
from tests.support.models import same
from tests.support.turns import Work, turns

HOUR = 3600.0
NEW = StateKey.parse("pytorch.net.new")
OLD = StateKey.parse("pytorch.net.old")
KEPT = StateKey.parse("pytorch.net.kept")
EARLIER = StateKey.parse("pytorch.net.earlier")


def tensor(value: float) -> torch.Tensor:
    return torch.full((5000,), value)


SHARED = {"a": tensor(1), "b": tensor(2)}
TENSORS = {
    NEW: {**SHARED, "new": tensor(3)},
    OLD: {**SHARED, "old": tensor(4)},
    KEPT: {"a": tensor(1), "kept": tensor(5)},
    EARLIER: {"b": tensor(2), "earlier": tensor(6)},
}


class Scene:
    """A store with a state that is kept, one that was deleted long ago, and what was in its trash.

    Every object in it is so many hours old.
    """

    def __init__(self, folder: Path, hours: float) -> None:
        self.folder = folder
        self.saved = {KEPT}
        store = LocalStateStore(folder)
        # What an earlier pruning has moved to trash/, since nothing named it.
        store.save_state_dict(TENSORS[EARLIER], EARLIER)
        store.delete(EARLIER)
        self.age(1000)
        store.prune(grace_seconds=HOUR)
        for key in (KEPT, OLD):
            store.save_state_dict(TENSORS[key], key)
        store.delete(OLD)
        self.age(hours)
        store.prune(dry_run=True)
        for path in (folder / layout.TRASH).iterdir():
            if path.name.startswith(str(OLD)):
                path.unlink()  # it protects nothing any more

    def age(self, hours: float) -> None:
        then = time.time() - hours * HOUR
        for path in self.folder.rglob("*"):
            if path.is_file():
                os.utime(path, (then, then))

    def save(self) -> None:
        LocalStateStore(self.folder).save_state_dict(TENSORS[NEW], NEW)
        self.saved.add(NEW)

    def prune(self, grace_hours: float):
        return lambda: LocalStateStore(self.folder).prune(grace_seconds=grace_hours * HOUR)

    def check(self) -> None:
        """All that is saved loads."""
        store = LocalStateStore(self.folder)
        for key in self.saved:
            assert same(store.load_state_dict(key), TENSORS[key])

    def check_in_place(self) -> None:
        """All objects of what is saved are where they belong."""
        store = LocalStateStore(self.folder)
        for key in self.saved:
            store.fetch(key)

    def sizes(self) -> dict[str, int]:
        """The size of each object."""
        objects = {
            p.parent.name + p.name: p.stat().st_size for p in self.folder.glob("objects/*/*")
        }
        return objects | {p.name[:64]: p.stat().st_size for p in self.folder.glob("trash/*")}

    def places(self) -> Counter[str]:
        """Where each object lies."""
        objects = [f"{p.parent.name}{p.name} object" for p in self.folder.glob("objects/*/*")]
        trash = [p.name.split(".")[0] for p in self.folder.glob("trash/*") if len(p.name) == 97]
        return Counter([*objects, *(f"{digest} trash" for digest in trash)])


class EncodedScene(Scene):
    """The same, each object in encoded form; what is kept is built on what is not."""

    def __init__(self, folder: Path, hours: float) -> None:
        super().__init__(folder, hours)
        names = [(OLD, "old"), (KEPT, "a"), (OLD, "b"), (KEPT, "kept")]
        sources = {key: tensor_sources(TENSORS[key]) for key in (OLD, KEPT)}
        refs = [
            TensorRef(source.spec, Digest.of(header(source.spec), as_bytes(TENSORS[key][name])))
            for key, name in names
            for source in sources[key]
            if source.name == name
        ]
        objects = FolderObjectStore(folder)
        encode_all(objects, refs)
        assert objects.plain_size(refs[1].digest) is None
        self.age(hours)


FORMS = pytest.mark.parametrize(
    "scenes", [Scene, EncodedScene], indirect=True, ids=["plain", "encoded"]
)

# Old objects, and a grace period that is shorter than their age. With none at all, only the order
# of looks keeps the saver safe.
CASES = pytest.mark.parametrize(("age", "grace"), [(13, 12), (13, 0), (0.5, 0)])


TORTURE = "MLSTATE_TORTURE" in os.environ
"""Whether to stop at every step; else at some, which takes seconds instead of minutes."""


def stops_of(work: Work) -> list[int]:
    """The steps to stop a piece of work before, which was not begun: it is run alone."""
    work.finish()
    assert work.steps > 40
    steps = range(work.steps)
    return [*steps] if TORTURE else sorted(random.Random(work.steps).sample(steps, 6))


@pytest.fixture
def scenes(request, tmp_path):
    """Makes one scene after the other."""
    made, kind = [], getattr(request, "param", Scene)

    def make(hours: float) -> Scene:
        made.append(kind(tmp_path / str(len(made)), hours))
        return made[-1]

    make(1.0).save()  # all that is needed is imported now
    with turns(make(1.0).prune(0)) as (work,):
        work.finish()
    return make


@pytest.mark.torture
@FORMS
@CASES
@pytest.mark.usefixtures("no_fsync")
def test_a_save_between_any_two_steps_of_a_pruning(scenes, age, grace):
    """The pruning goes on afterwards, to its end; the state loads after each of its steps."""
    with turns(scenes(age).prune(grace)) as (work,):
        stops = stops_of(work)
    for stop in stops:
        scene = scenes(age)
        with turns(scene.prune(grace)) as (pruning,):
            for _ in range(stop):
                pruning.step()
            scene.save()
            scene.check()
            while not pruning.done:
                pruning.step()
                if TORTURE or pruning.steps % 10 == 0:
                    scene.check()
            assert pruning.error is None
        scene.check()
        scene.check_in_place()


@pytest.mark.torture
@FORMS
@CASES
@pytest.mark.usefixtures("no_fsync")
def test_a_pruning_that_is_killed_between_any_two_steps(scenes, age, grace):
    """With a save before the kill, or after it; and the next pruning tidies up."""
    with turns(scenes(age).prune(grace)) as (work,):
        stops = stops_of(work)
    for stop in stops:
        scene = scenes(age)
        with turns(scene.prune(grace)) as (pruning,):
            for _ in range(stop):
                pruning.step()
            if stop % 2:
                scene.save()
            pruning.kill()
        scene.check()
        scene.save()
        scene.check()
        scene.prune(grace)()
        scene.check()
        scene.check_in_place()


@pytest.mark.torture
@FORMS
@CASES
@pytest.mark.usefixtures("no_fsync")
def test_prunings_between_any_two_steps_of_a_save(scenes, age, grace):
    """Two, for the second deletes what the first has moved; even without any grace."""
    with turns(scenes(age).save) as (work,):
        stops = stops_of(work)
    for stop in stops:
        scene = scenes(age)
        with turns(scene.save) as (saving,):
            for _ in range(stop):
                saving.step()
            for _ in range(2):
                scene.prune(grace)()
            scene.check()
            saving.finish()
            scene.check()
        scene.check_in_place()


@pytest.mark.torture
@pytest.mark.usefixtures("no_fsync")
def test_a_pruning_between_any_two_steps_of_another(scenes):
    """The loser's missing files are no error, and each object is in one report."""
    with turns(scenes(13).prune(12)) as (work,):
        stops = stops_of(work)
    for stop in stops:
        scene = scenes(13)
        before, sizes = scene.places(), scene.sizes()
        with turns(scene.prune(12)) as (first,):
            for _ in range(stop):
                first.step()
            reports = [scene.prune(12)(), first.finish()]
        check_reports(before, scene.places(), reports, sizes)
        scene.check()


def check_reports(before, after, reports, sizes):
    """What all reports say together is what has changed."""
    expected = Counter(before)
    for report in reports:
        for digest in report.trashed:
            expected[f"{digest} object"] -= 1
            expected[f"{digest} trash"] += 1
        for digest, size in report.deleted.items():
            expected[f"{digest} trash"] -= size // sizes[digest]
    assert all(count >= 0 for count in expected.values())
    assert +expected == after
    assert not set(reports[0].swept) & set(reports[1].swept)


def explore(scene: Scene, rng: random.Random) -> None:
    """A save and two prunings in a random order, one of which may be killed."""
    grace = rng.choice([0, 12])
    with turns(scene.save, scene.prune(grace), scene.prune(grace)) as works:
        prunings = works[1:]
        killed_at = rng.choice([None, rng.randrange(300)])
        step = 0
        while any(not work.done for work in works):
            work = rng.choice([work for work in works if not work.done])
            for _ in range(rng.choice([1, 1, 2, 5, 20])):
                work.step()
                step += 1
                if rng.random() < 0.05:
                    scene.check()
            if killed_at is not None and step > killed_at:
                prunings[0].kill()
        assert [work.error for work in works] == [None] * 3
        scene.check()
    scene.prune(grace)()
    scene.check()
    scene.check_in_place()


@pytest.mark.torture
@pytest.mark.usefixtures("no_fsync")
@FORMS
@pytest.mark.parametrize("seed", range(200 if TORTURE else 2))
def test_a_save_and_two_prunings_in_any_order(scenes, seed):
    rng = random.Random(seed)
    for _ in range(5):
        explore(scenes(rng.choice([0.5, 13])), rng)


# The single moments, by name.


def objects_of(key: StateKey, folder: Path) -> set[str]:
    """The tensor objects that a state of the scene has."""
    store = LocalStateStore(folder)
    entry = store.get(key).entry
    return {ref.digest for ref in read_state(entry, store.objects).refs.values()}


def test_an_object_of_13_hours_that_a_save_reuses_is_not_taken_by_a_pruning_of_12(
    scenes, monkeypatch
):
    """It is young before the save relies on it, so that the pruning does not even touch it."""
    scene = scenes(13)
    store = LocalStateStore(scene.folder)
    create, reports = store.saver.files.create, []

    def pruned_before(key, data):
        reports.append(scene.prune(12)())
        return create(key, data)

    monkeypatch.setattr(store.saver.files, "create", pruned_before)
    store.save_state_dict(TENSORS[NEW], NEW)
    (report,) = reports
    assert report.trashed  # the state object of the old one, and what only that had
    assert not objects_of(NEW, scene.folder) & report.trashed.keys()
    assert not report.restored


def test_a_pruning_that_has_looked_before_a_save_spares_what_the_save_reused(scenes, monkeypatch):
    scene = scenes(13)
    move_unnamed = Pruning._move_unnamed

    def after_a_save(self, live):
        scene.save()
        return move_unnamed(self, live)

    monkeypatch.setattr(Pruning, "_move_unnamed", after_a_save)
    report = scene.prune(12)()
    assert report.trashed
    assert not objects_of(NEW, scene.folder) & report.trashed.keys()
    scene.check()


def test_a_second_look_that_fails_puts_everything_back(scenes, monkeypatch):
    scene = scenes(13)
    before = scene.places()
    broken = scene.folder / layout.state_path(StateKey.parse("pytorch.net.broken"))
    move = _FolderPruning.move

    def broken_meanwhile(self, place, digest):
        broken.write_text("?")
        return move(self, place, digest)

    monkeypatch.setattr(_FolderPruning, "move", broken_meanwhile)
    with pytest.raises(ManifestError):
        scene.prune(12)()
    assert scene.places() == before
    monkeypatch.undo()
    broken.unlink()
    assert len(scene.prune(12)().trashed) == 3


def test_a_pruning_that_is_killed_after_its_moves_leaves_all_loadable(scenes, monkeypatch):
    """The whole state, saved after the first look, is in the trash when the second would come."""
    scene = scenes(13)
    looks, live = [], Pruning._live

    def look(self):
        looks.append(len(looks))
        return live(self)

    with turns(scene.prune(-1)) as (pruning,):  # nothing is young
        monkeypatch.setattr(Pruning, "_live", look)
        move = _FolderPruning.move

        def after_a_save(self, place, digest):
            if NEW not in scene.saved:
                scene.save()
            return move(self, place, digest)

        monkeypatch.setattr(_FolderPruning, "move", after_a_save)
        while len(looks) < 2:
            pruning.step()
        pruning.kill()
    monkeypatch.undo()
    store = LocalStateStore(scene.folder)
    assert objects_of(NEW, scene.folder) - in_place(store)
    scene.check()
    scene.prune(12)()
    scene.check_in_place()


def test_a_save_writes_anew_what_it_has_written_and_prunings_have_deleted(scenes, monkeypatch):
    scene = scenes(13)
    store = LocalStateStore(scene.folder)
    create = store.saver.files.create

    def pruned_before(key, data):
        for _ in range(2):
            scene.prune(-1)()  # nothing is young: what is new goes, too
        return create(key, data)

    monkeypatch.setattr(store.saver.files, "create", pruned_before)
    store.save_state_dict({"x": tensor(11)}, NEW)  # which reuses nothing
    assert same(store.load_state_dict(NEW), {"x": tensor(11)})
    store.fetch(NEW)
    scene.check()


def test_an_error_amid_the_moves_puts_back_what_was_moved(scenes, monkeypatch):
    scene = scenes(13)
    before = scene.places()
    rename, moved = os.rename, []

    def failing(source, target, **folders):
        if len(moved) == 2:
            raise OSError(5, "Input/output error")
        moved.append(source)
        rename(source, target, **folders)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        scene.prune(12)()
    assert len(moved) == 2
    assert scene.places() == before


def test_a_state_whose_object_is_away_for_a_moment_does_not_end_a_pruning(scenes, monkeypatch):
    """Its save is about to write it again; a pruning looks again instead of giving up."""
    scene = scenes(13)
    scene.save()
    store = LocalStateStore(scene.folder)
    path = store.objects.path(store.digest(NEW))
    away = path.with_name("away")
    path.rename(away)
    monkeypatch.setattr("mlstate.stores.prune.time.sleep", lambda seconds: away.rename(path))
    scene.prune(12)()
    monkeypatch.undo()
    scene.check()
    path.rename(away)
    with pytest.raises(IntegrityError):
        scene.prune(12)()  # it stays away: nobody knows what the state needs


def test_temporaries_of_a_running_save_stay_however_short_the_grace_period_is(store):
    store.save_state_dict(TENSORS[NEW], NEW)
    temporary = store.folder / layout.TEMPORARIES / ("f" * 32)
    temporary.write_bytes(b"being written")
    time.sleep(0.02)
    assert store.prune(grace_seconds=0).swept == []
    then = time.time() - 2 * HOUR
    os.utime(temporary, (then, then))
    assert store.prune(grace_seconds=0).swept == [str(temporary)]


def test_reuse_of_another_owners_object_is_bounded(store, monkeypatch):
    """Whoever cannot make an object young uses it while it is young, and then writes it anew."""
    store.save_state_dict(TENSORS[NEW], NEW)
    utime = os.utime

    def refused(path, *arguments, **named):
        raise PermissionError(1, "Operation not permitted")

    for minutes, written in ((30, False), (90, True)):
        path = max(store.folder.glob("objects/*/*"), key=lambda path: path.stat().st_size)
        then = time.time() - minutes * 60
        utime(path, (then, then))
        which = path.stat().st_ino
        monkeypatch.setattr(os, "utime", refused)
        store.save_state_dict(TENSORS[NEW], StateKey.parse(f"pytorch.net.m{minutes}"))
        monkeypatch.undo()
        assert (path.stat().st_ino != which) == written
        assert not written or path.stat().st_mtime > time.time() - 60


# Clocks.


def test_what_is_of_the_future_stays_and_is_named(scenes):
    scene = scenes(1000)
    store = LocalStateStore(scene.folder)
    then = time.time() + 3 * HOUR
    unnamed = sorted(objects - in_use(store))[0] if (objects := in_place(store)) else None
    temporary = scene.folder / layout.TEMPORARIES / ("f" * 32)
    temporary.write_bytes(b"left")
    damaged = scene.folder / layout.TRASH / f"{'a' * 64}{layout.DAMAGED_SUFFIX}.{'f' * 32}"
    damaged.write_bytes(b"set aside")
    ahead = [store.objects.path(unnamed), temporary, damaged]
    for path in ahead:
        os.utime(path, (then, then))
    for dry_run in (True, False, False):
        report = store.prune(grace_seconds=0, dry_run=dry_run)
        assert sorted(report.future) == sorted(map(str, ahead))
        assert unnamed not in report.trashed
        assert all(path.exists() for path in ahead)
    scene.check()
    # A save that reuses it sets its clock right.
    store.save_state_dict(TENSORS[OLD], OLD)
    assert store.prune(grace_seconds=0).future == sorted(map(str, ahead[1:]))


def in_place(store: LocalStateStore) -> set[str]:
    return set(store.objects.digests())


def in_use(store: LocalStateStore) -> set[str]:
    used = {store.digest(key) for key in store.get_state_keys()}
    return used.union(*(objects_of(key, store.folder) for key in store.get_state_keys()))


@pytest.mark.parametrize("hours", [-30, 30])
def test_a_pruning_goes_by_the_clock_of_the_files(scenes, hours, monkeypatch):
    """That of this machine may be wrong; it is of no matter."""
    scene = scenes(13)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + hours * HOUR)
    assert scene.prune(14)().trashed == {}
    report = scene.prune(12)()
    assert len(report.trashed) == 5  # two came back from the trash, for they were young
    assert report.future == []


# A load that lost its race, and bundles.


def test_a_load_of_what_is_overwritten_and_pruned_reads_the_new_state(store, monkeypatch):
    store.save_state_dict(TENSORS[OLD], NEW)
    find, other = store.find, LocalStateStore(store.folder)

    def overwritten_meanwhile(key):
        found = find(key)
        monkeypatch.undo()
        other.save_state_dict({"x": tensor(9)}, key, overwrite=True)
        time.sleep(0.02)
        for _ in range(2):
            other.prune(grace_seconds=-1)
        return found

    monkeypatch.setattr(store, "find", overwritten_meanwhile)
    assert same(store.load_state_dict(NEW), {"x": tensor(9)})


def test_a_bundle_that_is_read_beside_prunings_puts_back_what_they_took(tmp_path, monkeypatch):
    source = LocalStateStore(tmp_path / "source")
    source.save_state_dict(TENSORS[NEW], NEW)
    bundle(source, [NEW], tmp_path / "new.tar")
    scene = Scene(tmp_path / "store", 13)
    flush = FolderObjectWriter.flush

    def pruned_meanwhile(self):
        flush(self)
        time.sleep(0.02)
        assert len(scene.prune(0)().trashed) > 2  # with no grace what is young goes, too

    monkeypatch.setattr(FolderObjectWriter, "flush", pruned_meanwhile)
    unbundle(tmp_path / "new.tar", scene.folder)
    monkeypatch.undo()
    scene.saved.add(NEW)
    scene.check()
    scene.check_in_place()


# Many processes, with a history.

SPAWN = multiprocessing.get_context("spawn")


def _work(folder: str, worker: int, seconds: float, log: Any) -> None:
    """Save, overwrite, delete and load states of one's own, whose tensors others have, too."""
    torch.set_num_threads(1)
    rng = random.Random(worker)
    store = LocalStateStore(folder)
    model: dict[StateKey, dict[str, torch.Tensor]] = {}  # what was reported saved, not deleted
    end = time.monotonic() + seconds
    count = 0
    try:
        while time.monotonic() < end:
            count += 1
            key = StateKey.parse(f"pytorch.net.w{worker}n{rng.randrange(3)}")
            if key in model and rng.random() < 0.3:
                store.delete(key)
                del model[key]
            else:
                numbers = rng.sample(range(8), 3)
                model.pop(key, None)  # while it is overwritten it is either
                tensors = {f"t{number}": tensor(number) for number in numbers}
                store.save_state_dict(tensors, key, overwrite=True)
                model[key] = tensors
            for saved, tensors in model.items():
                found = LocalStateStore(folder).load_state_dict(saved)
                assert same(found, tensors), f"{saved} has other bytes"
            if rng.random() < 0.2:  # as if nobody had used them for long
                for path in rng.sample(sorted(Path(folder).glob("objects/*/*")), 2):
                    with contextlib.suppress(FileNotFoundError):
                        os.utime(path, (time.time() - 13 * HOUR,) * 2)
    except BaseException as error:
        log.put((worker, count, f"{error!r}: {error}"))
        raise
    log.put((worker, count, None))


def _prune(folder: str, grace: float, seconds: float, log: Any) -> None:
    end = time.monotonic() + seconds
    count = deleted = 0
    try:
        while time.monotonic() < end:
            count += 1
            deleted += len(LocalStateStore(folder).prune(grace_seconds=grace).deleted)
    except BaseException as error:
        log.put(("prune", count, f"{error!r}: {error}"))
        raise
    log.put(("prune", deleted, None))


@pytest.mark.torture
def test_processes_that_save_delete_load_and_prune_at_once(tmp_path):
    """With a grace of twelve hours and with none; objects become old at random."""
    seconds, folder, log = 600.0 if TORTURE else 5.0, str(tmp_path / "store"), SPAWN.Queue()
    processes = [SPAWN.Process(target=_work, args=(folder, n, seconds, log)) for n in range(3)]
    processes += [
        SPAWN.Process(target=_prune, args=(folder, grace, seconds, log)) for grace in (0, 12 * HOUR)
    ]
    for process in processes:
        process.start()
    told = [log.get(timeout=seconds + 120) for _ in processes]
    for process in processes:
        process.join()
    assert [error for *_, error in told if error is not None] == []
    assert all(count > 0 for who, count, _ in told if who != "prune")
    store = LocalStateStore(folder)
    for key in store.get_state_keys():
        store.load_state_dict(key)
