"""Compactions beside each other, saves, prunings and undoings; stopped or killed at any step.

The law: what was reported saved loads with the right bytes, at all times, whatever is under way,
finished or killed. No lock helps here: it saves work only, and is taken away.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from mlstate import LocalStateStore, compact, state_digest, verify
from mlstate.format import layout
from mlstate.operations.compact import compact as module
from mlstate.reading import read_state
from tests.operations.compact.states import KEYS, digests, files, near, noise, weights
from tests.support.turns import Work, turns

TORTURE = "MLSTATE_TORTURE" in os.environ
"""Whether to stop at every step; else at some, which takes seconds instead of minutes."""
HOUR = 3600.0
NEW, GONE = KEYS[7], KEYS[8]
SAVED = {
    "layers.0.weight": near(noise(0), 99),
    "layers.1.weight": weights(1, layers=1)["layers.0.weight"],
    "layers.2.weight": noise(77),
}


@pytest.fixture(autouse=True)
def no_lock(monkeypatch):
    monkeypatch.setattr(module, "_alone_here", lambda objects: nullcontext())


class Scene:
    """A store with states that are related, and one that was deleted, all of them old."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = LocalStateStore(folder)
        for step, key in enumerate(KEYS[:3]):
            self.store.save_state_dict(weights(step, layers=1), key)
        self.store.save_state_dict({"layers.0.weight": near(noise(0), 99)}, GONE)
        self.expected = digests(self.store)
        del self.expected[GONE]
        self.store.delete(GONE)
        self.age()

    def age(self) -> None:
        """Make all old, but for what somebody is just writing: an hour old, that is given up."""
        then = time.time() - 1000 * HOUR
        for path in self.folder.rglob("*"):
            if path.is_file() and path.parent.name != layout.TEMPORARIES:
                os.utime(path, (then, then))

    def compact(self, **options):
        return lambda: compact(LocalStateStore(self.folder), **options)

    def save(self) -> None:
        """A state that has an object of the deleted one, one of a state that is there, and more."""
        LocalStateStore(self.folder).save_state_dict(SAVED, NEW)
        self.expected[NEW] = state_digest(SAVED)

    def prune(self) -> None:
        LocalStateStore(self.folder).prune(grace_seconds=0)

    def check(self) -> None:
        """All that was saved loads, and what is just being saved."""
        found = digests(LocalStateStore(self.folder))
        assert found in (self.expected, self.expected | {NEW: state_digest(SAVED)})

    def save_encoded(self) -> None:
        """The same state, encoded at once."""
        LocalStateStore(self.folder).save_state_dict(SAVED, NEW, compact=True)
        self.expected[NEW] = state_digest(SAVED)

    def check_requirement(self) -> None:
        """Older readers refuse the store if something that a state needs is encoded only."""
        store = LocalStateStore(self.folder)
        needed = [
            ref.digest
            for key in store.get_state_keys()
            for ref in read_state(store.get(key).entry, store.own).refs.values()
        ]
        if any(store.own.plain_size(digest) is None for digest in needed):
            assert store.own._says_encoded()

    def check_at_rest(self) -> None:
        """All loads, and goes on to after two more prunings; what is compacted again is whole."""
        self.check()
        self.check_requirement()
        for _ in range(2):
            self.age()
            self.prune()
            self.check()
        self.compact()()
        self.check()
        for _ in range(2):
            self.age()
            self.prune()
        self.check()
        assert verify(LocalStateStore(self.folder)).ok


@pytest.fixture
def scenes(tmp_path):
    made = []

    def make() -> Scene:
        made.append(Scene(tmp_path / str(len(made))))
        return made[-1]

    scene = make()
    scene.compact()()  # all that is needed is imported now
    scene.compact(undo=True)()
    with turns(make().compact()) as (work,):
        work.finish()
    return make


def stops_of(work: Work, most: int = 5) -> list[int]:
    """The steps to stop a piece of work before, which was not begun: it is run alone."""
    work.finish()
    assert work.steps > 40
    steps = range(work.steps)
    return [*steps] if TORTURE else sorted(random.Random(work.steps).sample(steps, most))


OTHERS = {
    "save": lambda scene: scene.save(),
    "save encoded": lambda scene: scene.save_encoded(),
    "prune": lambda scene: scene.prune(),
    "prune twice": lambda scene: [scene.prune(), scene.age(), scene.prune()],
    "compact": lambda scene: scene.compact()(),
    "compact the other way round": lambda scene: scene.compact(chain=True)(),
    "undo": lambda scene: scene.compact(undo=True)(),
}


@pytest.mark.torture
@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("kind", ["stopped", "killed"])
def test_another_between_any_two_steps_of_a_compaction(scenes, other, kind):
    with turns(scenes().compact()) as (work,):
        stops = stops_of(work)
    for stop in stops:
        scene = scenes()
        with turns(scene.compact()) as (compaction,):
            for _ in range(stop):
                compaction.step()
            if kind == "killed":
                compaction.kill()
            OTHERS[other](scene)
            scene.check()
            if kind == "stopped":
                compaction.finish()
                scene.check()
        scene.check_at_rest()


@pytest.mark.torture
@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("other", ["save", "save encoded", "prune twice", "compact", "undo"])
@pytest.mark.parametrize("kind", ["stopped", "killed"])
def test_another_between_any_two_steps_of_an_undoing(scenes, other, kind):
    def begun() -> Scene:
        scene = scenes()
        scene.compact()()
        scene.age()
        return scene

    with turns(begun().compact(undo=True)) as (work,):
        stops = stops_of(work)
    for stop in stops:
        scene = begun()
        with turns(scene.compact(undo=True)) as (undoing,):
            for _ in range(stop):
                undoing.step()
            if kind == "killed":
                undoing.kill()
            OTHERS[other](scene)
            scene.check()
            if kind == "stopped":
                undoing.finish()
                scene.check()
        scene.check_at_rest()


@pytest.mark.torture
@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("seed", range(100 if TORTURE else 3))
def test_all_at_once_in_any_order(scenes, seed):
    """Two compactions that choose other bases, an undoing, a save and a pruning."""
    rng = random.Random(seed)
    scene = scenes()
    if rng.random() < 0.5:
        scene.compact(chain=rng.random() < 0.5)()
        scene.age()
    jobs = [scene.compact(), scene.compact(chain=True), scene.save, scene.prune]
    jobs.append(scene.compact(undo=True))
    with turns(*rng.sample(jobs, 4)) as works:
        killed_at, step = rng.choice([None, rng.randrange(400)]), 0
        while any(not work.done for work in works):
            work = rng.choice([work for work in works if not work.done])
            for _ in range(rng.choice([1, 1, 2, 5, 20, 60])):
                work.step()
                step += 1
                if rng.random() < 0.02:
                    scene.check()
            if killed_at is not None and step > killed_at:
                rng.choice(works).kill()
                killed_at = None
        assert [work.error for work in works] == [None] * len(works)
        scene.check()
    scene.check_at_rest()


@pytest.mark.usefixtures("no_fsync")
def test_two_that_encode_each_others_bases_leave_one_plain(scenes):
    """A against B, and B against A, each retired before the other one looks."""
    scene = scenes()
    jobs = [scene.compact(keys=[KEYS[0], KEYS[1]][::way], chain=True) for way in (1, -1)]
    with turns(*jobs) as works:
        while any(not work.done for work in works):
            for work in works:
                work.step()
        assert [work.error for work in works] == [None, None]
    scene.check()
    assert len(files(scene.folder, layout.OBJECTS)) > 0
    scene.check_at_rest()
