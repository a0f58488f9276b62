"""Real jobs of 1, 2 and 4 ranks that save and load one state together."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mlstate import LocalStateStore, StateKey, StateType, manifest_of, verify
from mlstate.errors import (
    FormatError,
    IntegrityError,
    PeerError,
    StateExistsError,
    UnsupportedStoreError,
)
from mlstate.format import layout
from tests.support.ranks import Job

pytestmark = pytest.mark.distributed

NET = StateType("pytorch", "net")


@pytest.fixture(scope="module", params=[1, 2, 4])
def job(request, tmp_path_factory):
    with Job(request.param, tmp_path_factory.mktemp("job")) as found:
        found.folder = Path(found._folder)
        found.saved = found.values("save_layouts")
        yield found


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with Job(2, tmp_path_factory.mktemp("pair")) as found:
        found.folder = Path(found._folder)
        found.values("save_layouts")
        yield found


def errors(answers):
    return [type(answer.error) for answer in answers]


def test_the_digest_of_each_layout_is_that_of_one_process(job):
    assert all(all(found.values()) for found in job.saved), job.saved
    assert verify(LocalStateStore(job.folder / "store")).ok


def test_a_state_loads_into_each_layout(job):
    for found in job.values("load_layouts"):
        assert all(found.values()), found


def test_tensors_of_all_kinds_and_placements_are_saved(job):
    assert all(job.values("placements"))


def test_stages_of_a_pipeline_are_one_state(job):
    assert job.values("stages") == [[]] * job.world
    names = LocalStateStore(job.folder / "store").load_state_dict(
        StateKey.parse("pytorch.pipe.line")
    )
    assert len(names) == job.world


def test_training_goes_on_after_an_assigned_load(job):
    assert all(job.values("train_after_assign"))


def test_options_of_a_load_are_those_of_one_process(pair):
    for found in pair.values("options"):
        assert found == {
            "same": True,
            "missing": ["mask"],
            "unexpected": ["more"],
            "mismatched": ["norm.weight"],
            "loaded": True,
        }


def test_the_same_again_changes_nothing_and_other_weights_are_refused(pair):
    first = pair.values("save_twice", training_id="again", seed=1)
    file = pair.folder / "store" / layout.STATES / "pytorch" / "net" / "again.toml"
    before = file.stat().st_mtime_ns
    assert pair.values("save_twice", training_id="again", seed=1) == first
    assert file.stat().st_mtime_ns == before
    assert errors(pair.run("save_twice", training_id="again", seed=2)) == [StateExistsError] * 2
    other = pair.values("save_twice", training_id="again", seed=2, overwrite=True)
    assert other != first


def test_a_lost_and_a_damaged_object_are_put_again(pair):
    (digest, _) = pair.values("save_twice", training_id="mended", seed=3)
    store = LocalStateStore(pair.folder / "store")
    state = store.get(StateKey(NET, "mended"))
    objects = [path for path in (store.folder / layout.OBJECTS).rglob("*") if path.is_file()]
    own = [p for p in objects if p.parent.name + p.name in _digests(store, state)]
    own[0].unlink()
    damage(own[1])
    assert pair.values("save_twice", training_id="mended", seed=3, verify=True) == [digest] * 2
    assert verify(store, [StateKey(NET, "mended")]).ok


def _digests(store, found):
    from mlstate.reading import read_state

    return {ref.digest for ref in read_state(*found).refs.values()}


def damage(path):
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_what_a_pruning_takes_before_the_state_is_named_is_put_again(pair):
    pair.values("save_while_pruned", training_id="a")
    store = LocalStateStore(pair.folder / "pruned")
    assert verify(store).ok
    assert store.load_state_dict(StateKey(NET, "a"))


def test_of_two_jobs_that_save_under_one_key_one_wins(pair, tmp_path):
    with Job(2, pair.folder) as other:
        pair.tell("save_twice", training_id="raced", seed=11)
        other.tell("save_twice", training_id="raced", seed=12)
        answers = [pair.answers(), other.answers()]
    digest = LocalStateStore(pair.folder / "store").digest(StateKey(NET, "raced"))
    won = [[one.value == digest for one in both] for both in answers]
    assert sorted(won) == [[False, False], [True, True]]
    (lost,) = [both for both in answers if both[0].value is None]
    assert errors(lost) == [StateExistsError] * 2


def test_copies_that_differ_are_refused_on_demand(pair):
    for answer in pair.run("save_other_replicas"):
        assert type(answer.error) is IntegrityError
        assert answer.error.tensor == "weight"
        assert "rank 1" in answer.error.found
    assert not LocalStateStore(pair.folder / "store").exists(StateKey.parse("pytorch.copies.b"))


def test_groups_that_are_made_anew_of_other_processes_save(tmp_path):
    """Each has the name of the one before, and a rank that another number of saves."""
    with Job(3, tmp_path, {"MLSTATE_PEER_PATIENCE": "3", "MLSTATE_PATIENCE": "3"}) as job:
        worlds = [[0, 1], [0], [0], [1, 0], [2, 0]]
        found = job.values("save_anew", worlds=worlds, port=job._store.port)
    assert [sum(one[i] is not None for one in found) for i in range(5)] == [2, 1, 1, 2, 2]
    assert verify(LocalStateStore(tmp_path / "store")).ok


def test_groups_of_one_program_save_and_load_at_once(pair):
    assert all(pair.values("save_by_groups_at_once"))


def test_the_code_of_the_page_saves_and_loads(pair):
    page = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert blocks
    for key, stored, own in pair.values("run_page", code="\n".join(blocks)):
        assert (key, stored) == ("pytorch.page.step-1000", own)


def test_a_model_says_itself_what_its_state_is(pair):
    assert all(pair.values("save_own_state"))


@pytest.mark.parametrize(
    ("case", "kind", "said"),
    [
        ("save_copies_alone", FormatError, "group="),
        ("save_other_keys", FormatError, "one thing together"),
        ("save_own_folders", FormatError, "same folder"),
        ("save_memory", UnsupportedStoreError, "copy the state"),
        ("save_partial", FormatError, "redistribute"),
    ],
)
def test_what_cannot_be_saved_together_is_refused_on_all_ranks(pair, case, kind, said):
    for answer in pair.run(case):
        assert type(answer.error) is kind, answer.text
        assert said in str(answer.error)


def test_a_plain_state_is_saved_by_one_rank_alone(pair):
    pair.values("save_alone")
    assert LocalStateStore(pair.folder / "store").exists(StateKey(NET, "alone"))


@pytest.mark.parametrize("caches", ["cache", "cache-{rank}"])
def test_each_object_is_fetched_and_hashed_once_per_job(pair, caches, start_recording, tmp_path):
    """With one cache for all, and with one for each rank, as on two nodes."""
    store = LocalStateStore(pair.folder / "store")
    files = {
        str(path.relative_to(store.folder)): path.read_bytes()
        for path in store.folder.rglob("*")
        if path.is_file()
    }
    server = start_recording(files)
    manifest = tmp_path / "models.toml"
    manifest_of(store, [StateKey(NET, "whole")], objects=[server.url]).write(manifest)
    where = f"{tmp_path}/{caches}"
    found = pair.values("load_manifest", manifest=str(manifest), caches=where)
    assert all(one["right"] for one in found)
    hashed = sum((Counter(one["hashed"]) for one in found), Counter())
    assert set(hashed.values()) == {1}
    assert set(hashed) == _digests(store, store.get(StateKey(NET, "whole")))
    asked = Counter(r.path for r in server.requests if layout.OBJECTS in r.path)
    assert set(asked.values()) == {1}, asked
    # A damaged object of the cache is mended once, by its owner.
    damaged = 0
    for cache in {where.format(rank=rank) for rank in range(2)}:
        for path in Path(cache, layout.OBJECTS).rglob("*"):
            if path.is_file() and path.stat().st_size > 100_000:
                damage(path)
                damaged += 1
    answers = pair.run("load_manifest", manifest=str(manifest), caches=where)
    assert all(answer.value["right"] for answer in answers), [a.text for a in answers]
    assert sum(len(answer.warned) for answer in answers) >= 1
    again = Counter(r.path for r in server.requests if layout.OBJECTS in r.path) - asked
    assert len(again) == damaged > 0
    assert set(again.values()) == {1}, again


def test_a_rank_that_fetches_stops_when_another_fails(pair, start_nginx, tmp_path):
    store = LocalStateStore(pair.folder / "store")
    slow = start_nginx(store.folder, limit_rate=4096)
    manifest = tmp_path / "models.toml"
    manifest_of(store, [StateKey(NET, "whole")], objects=[slow.url("", "slow")]).write(manifest)
    answers = pair.run(
        "load_while_one_fails", manifest=str(manifest), caches=f"{tmp_path}/{{rank}}"
    )
    for answer in answers:
        assert type(answer.error) is PeerError, answer.text
        assert answer.error.rank == 1
    # The largest takes half a minute to come.
    found = [path for path in (tmp_path / "0" / layout.OBJECTS).rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in found) < 100_000


def test_a_bucket_takes_a_state_from_all_ranks(pair, moto):
    assert all(
        pair.values(
            "save_s3",
            bucket=moto.new_bucket(),
            endpoint=moto.url,
            session=dict(moto.session_kwargs),
        )
    )


SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from mlstate import LocalStateStore, StateType, state_digest, with_state_type

dist.init_process_group("gloo")
torch.manual_seed(0)
model = with_state_type(torch.nn.Linear(300, 200), StateType("pytorch", "linear"))
digest = state_digest(model.state_dict())
fully_shard(model)
store = LocalStateStore(sys.argv[1])
key = store.save(model, "first")
assert store.digest(key) == digest
torch.nn.init.zeros_(model.weight)
assert store.load(model, key).missing_keys == []
assert state_digest({n: t.full_tensor() for n, t in model.state_dict().items()}) == digest
dist.destroy_process_group()
"""


def test_a_script_of_torchrun_saves_and_loads(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node=2", str(script), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
    )
    assert done.returncode == 0, done.stderr
    assert verify(LocalStateStore(tmp_path / "store")).ok
