"""Compactions in processes of their own: two at once, and one that is killed with kill -9."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time

import pytest

from mlstate import LocalStateStore, compact, verify
from tests.operations.compact.states import KEYS, digests, save_all, weights

pytestmark = pytest.mark.torture
SPAWN = multiprocessing.get_context("spawn")


def _compact(folder, barrier, options):
    store = LocalStateStore(folder)
    compact(store, dry_run=True)  # all that is needed is imported now
    barrier.wait(60)
    for one in options:
        compact(store, **one)


@pytest.fixture
def store(tmp_path) -> LocalStateStore:
    store = LocalStateStore(tmp_path / "store")
    save_all(store, {key: weights(step, layers=4) for step, key in enumerate(KEYS[:6])})
    return store


def begin(store, *jobs):
    """Start a process for each list of compactions, and wait until all of them are ready."""
    barrier = SPAWN.Barrier(len(jobs) + 1)
    processes = [
        SPAWN.Process(target=_compact, args=(str(store.folder), barrier, options))
        for options in jobs
    ]
    for process in processes:
        process.start()
    barrier.wait(60)
    return processes


def test_two_processes_compact_and_undo_while_a_third_prunes(store):
    before = digests(store)
    both = begin(
        store,
        [{}, {"undo": True}, {"chain": True}],
        [{"chain": True}, {"undo": True}, {}],
    )
    while any(process.is_alive() for process in both):
        store.prune(grace_seconds=0)
        assert digests(store) == before
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert verify(store).ok
    compact(store)
    assert digests(store) == before


def test_kill_9_at_any_moment_loses_nothing_and_the_next_run_goes_on(store):
    rng = random.Random(5)
    before = digests(store)
    for _ in range(3):
        (process,) = begin(store, [{}, {"undo": True}] * 50)
        time.sleep(rng.uniform(0, 0.4))  # somewhere in it: nothing depends on where
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert digests(store) == before
        assert verify(store).ok
    compact(store)
    assert compact(store).objects == 0
    assert digests(store) == before
    assert verify(store).ok
    compact(store, undo=True)
    assert not list(store.folder.glob("encoded/[0-9a-f][0-9a-f]/*"))
