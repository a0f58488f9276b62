"""Checkpoints of DCP that real jobs save and load: FSDP2 and tensor parallel over gloo."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from mlstate import LocalStateStore, StateKey, verify
from mlstate.integrations.dcp import MlstateReader
from tests.integrations.test_dcp import flip
from tests.support.buckets import bucket_store
from tests.support.dcp import ALONE, load_all
from tests.support.dcp_job import FAILED, LAYOUTS, NET, Job, run

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings(ALONE)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints of all layouts, each saved twice."""
    folder = tmp_path_factory.mktemp("jobs")
    jobs = [Job("save", str(folder), one, (one, f"{one}-again")) for one in LAYOUTS]
    assert run(*jobs) == [[0] * ranks for ranks in LAYOUTS.values()]
    return folder


def flat(value: object, path: str = "") -> dict[str, object]:
    """All leaves of nested mappings and lists, by their paths."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    else:
        return {path: value.tolist() if isinstance(value, torch.Tensor) else value}
    return {name: leaf for key, one in pairs for name, leaf in flat(one, f"{path}/{key}").items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_ranks_saved_is_what_torch_saved(saved, layout):
    store = LocalStateStore(saved / "store")
    found = load_all(MlstateReader(store, NET), layout)
    assert flat(found) == flat(load_all(FileSystemReader(saved / layout)))
    assert store.meta(StateKey(NET, layout)) == {"format": "dcp", "ranks": LAYOUTS[layout]}


def test_any_layout_loads_into_any_other_and_trains_on(saved):
    jobs = [Job("load", str(saved), layout, tuple(LAYOUTS)) for layout in LAYOUTS]
    assert run(*jobs) == [[0] * ranks for ranks in LAYOUTS.values()]


def test_each_layout_has_a_digest_and_shards_that_are_the_same_are_there_once(saved):
    store = LocalStateStore(saved / "store")
    digests = {layout: store.digest(StateKey(NET, layout)) for layout in LAYOUTS}
    assert len({*digests.values()}) == len(LAYOUTS)
    for layout, digest in digests.items():
        again = store.get(StateKey(NET, f"{layout}-again")).entry
        assert (again.digest, again.files) == (
            digest,
            store.get(StateKey(NET, layout)).entry.files,
        )
    assert verify(store).ok


def told(folder: Path, ranks: int) -> list[dict[str, Any]]:
    """What the ranks of a job that counts have noted."""
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


def test_each_object_is_verified_once_for_all_ranks_of_a_node(saved):
    """And damage is an error of all, before a value of any changes."""
    store = LocalStateStore(saved / "store")
    state = MlstateReader(store, StateKey(NET, "rows-4"))
    state.read_metadata()
    refs = state._open().state.refs
    needed = sorted({ref.digest for name, ref in refs.items() if name.startswith("model.")})
    job = Job("count", str(saved), "rows-2", ("rows-4",))
    assert len(needed) == 4  # the shards of one weight
    assert run(job) == [[0, 0]]
    ranks = told(saved, 2)
    assert sorted(one for rank in ranks for one in rank["verified"]) == needed
    assert [(rank["told"], rank["changed"]) for rank in ranks] == [(None, True)] * 2

    victim = Path(store.own.locate(needed[0]))
    whole = victim.read_bytes()
    try:
        flip(victim)
        assert run(job) == [[0, 0]]
    finally:
        victim.write_bytes(whole)
    for rank in told(saved, 2):
        assert (rank["told"], rank["changed"]) == (["IntegrityError"], False)


@pytest.mark.parametrize(("action", "rank"), [("raise", FAILED), ("kill", -signal.SIGKILL)])
@pytest.mark.parametrize("background", [False, True], ids=["save", "async_save"])
def test_a_rank_that_ends_leaves_no_half_state(tmp_path, action, rank, background):
    (codes,) = run(Job(action, str(tmp_path), "rows-2", ("step-1",), background))
    assert codes[1] == rank
    assert codes[0] == FAILED if action == "raise" else codes[0] != 0
    store = LocalStateStore(tmp_path / "store")
    assert store.get_state_keys() == []
    assert verify(store).ok
    if not background:
        again = Job("save", str(tmp_path), "rows-2", ("step-1",))
        assert run(again, Job("load", str(tmp_path), "one", ("step-1",))) == [[0, 0], [0]]
        assert verify(store).ok


def test_ranks_save_into_a_bucket_and_load_from_it(tmp_path, moto, monkeypatch):
    name = moto.new_bucket()
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "cache"))
    bucket = (name, dict(moto.session_kwargs), moto.url, "models")
    jobs = [
        Job(action, str(tmp_path), layout, ("step-1",), bucket=bucket)
        for action, layout in (("save", "rows-2"), ("load", "rows-4"))
    ]
    assert run(*jobs) == [[0, 0], [0] * 4]
    assert verify(bucket_store(moto, name)).ok
