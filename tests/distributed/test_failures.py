"""A rank that fails, is killed or stopped ends the work of all, and nothing is changed by it."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from mlstate import LocalStateStore, StateKey, StateType, verify
from mlstate.errors import PeerError
from tests.support.ranks import Job

pytestmark = pytest.mark.distributed

NET = StateType("pytorch", "net")

PATIENCE = 3.0
ENV = {"MLSTATE_PEER_PATIENCE": f"{PATIENCE}", "MLSTATE_PATIENCE": "30"}
WORLD = 3
SAVING = ["describe", "store", "flush"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store with a state in it."""
    found = tmp_path_factory.mktemp("job")
    with Job(1, found) as job:
        job.values("save_twice", training_id="whole", seed=0)
    return found


@pytest.fixture(scope="module")
def job(folder):
    with Job(WORLD, folder, ENV) as found:
        yield found


def check(folder, key):
    store = LocalStateStore(folder / "store")
    assert verify(store).ok
    assert not store.exists(StateKey(NET, key))


@pytest.mark.parametrize("who", [0, WORLD - 1])
@pytest.mark.parametrize("phase", [*SAVING, "verify"])
def test_an_exception_is_the_error_of_all_ranks(job, folder, phase, who):
    answers = job.run("failing", phase=phase, how="error", who=who)
    for answer in answers:
        assert type(answer.error) is PeerError, answer.text
        assert answer.error.rank == who
        assert "No space left" in answer.error.found
    check(folder, f"{phase}-error-{who}")
    # The same job goes on: the next save works, through the same group.
    assert all(job.values("save_twice", training_id=f"after-{phase}-{who}", seed=who))


def test_an_exception_while_rank_0_publishes_is_that_of_all(job, folder):
    for answer in job.run("failing", phase="publish", how="error", who=0):
        assert (type(answer.error), answer.error.rank) == (PeerError, 0), answer.text
    check(folder, "publish-error-0")


@pytest.mark.parametrize("phase", ["store", "verify"])
def test_a_slow_rank_is_waited_for(job, phase):
    assert all(job.values("failing", phase=phase, how="slow", who=1))


@pytest.mark.parametrize("who", [0, WORLD - 1])
@pytest.mark.parametrize("phase", ["come", *SAVING, "verify"])
def test_a_killed_rank_ends_all_at_once(folder, phase, who):
    _killed(folder, phase, who)


def test_a_rank_that_is_killed_while_it_publishes_ends_all(folder):
    _killed(folder, "publish", 0)


def _killed(folder, phase, who):
    others = [rank for rank in range(WORLD) if rank != who]
    with Job(WORLD, folder, ENV) as job:
        job.values("save_twice", training_id="whole", seed=0)
        job.tell("failing", phase=phase, how="kill", who=who)
        job.processes[who].join(60)
        assert not job.processes[who].is_alive()
        begun = time.monotonic()
        answers = job.answers(others)
        took = time.monotonic() - begun
        for answer in answers:
            assert type(answer.error) is PeerError, answer.text
            assert answer.error.rank == who
        assert took < 30, took  # at once, and not after a timeout of minutes
    check(folder, f"{phase}-kill-{who}")
    # The next save works, and uses what is there already.
    state = {"weight": torch.full((90, 90), float(who))}
    store, key = LocalStateStore(folder / "store"), StateKey(NET, f"after-{phase}-kill-{who}")
    store.save_state_dict(state, key)
    assert torch.equal(store.load_state_dict(key)["weight"], state["weight"])


@pytest.mark.parametrize("who", [0, WORLD - 1])
@pytest.mark.parametrize("phase", ["store", "verify"])
def test_a_stopped_rank_ends_all_after_the_patience(folder, phase, who):
    others = [rank for rank in range(WORLD) if rank != who]
    with Job(WORLD, folder, ENV) as job:
        job.tell("failing", phase=phase, how="stop", who=who)
        for answer in job.answers(others):
            assert type(answer.error) is PeerError, answer.text
            assert answer.error.rank == who
            assert "MLSTATE_PEER_PATIENCE" in answer.error.remedy
        check(folder, f"{phase}-stop-{who}")
        # Once it goes on, it learns of it.
        os.kill(job.processes[who].pid, signal.SIGCONT)
        (answer,) = job.answers([who])
        assert type(answer.error) is PeerError, answer.text


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_rank_that_takes_the_rendezvous_store_along_ends_all(folder, how):
    with Job(WORLD, folder, ENV, own_store=True) as job:
        job.tell("failing", phase="store", how=how, who=0)
        for answer in job.answers([1, 2]):
            assert type(answer.error) is PeerError, answer.text
            assert answer.error.rank == 0
    check(folder, f"store-{how}-0")
