"""Checkpoints that two processes of a real job wrote together: FSDP2 and DTensors over gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from mlstate import StateKey, adopt, file_digest, state_digest
from tests.support.models import same

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

KEY = StateKey.parse("pytorch.net.a")
JOB = """
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
for layer in (model[0], model[2], model):
    fully_shard(layer, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(2, 7)).sum().backward()
optimizer.step()
weights, moments = get_state_dict(model, optimizer)
more = {
    "columns": distribute_tensor(torch.arange(35.0).reshape(5, 7), mesh, [Shard(1)]),
    "copies": distribute_tensor(torch.arange(6).reshape(2, 3), mesh, [Replicate()]),
}
saved = {"model": weights, "optim": moments, "epoch": 3, "more": more}
dcp.save(saved, checkpoint_id=f"{folder}/ck")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("job")
    ranks = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", JOB, str(rank), str(place)])
        for rank in range(2)
    ]
    assert [rank.wait(300) for rank in ranks] == [0, 0]
    return place


def test_what_two_ranks_wrote_is_what_torch_puts_together(folder, store):
    assert len([*(folder / "ck").glob("*.distcp")]) == 2
    dcp_to_torch_save(folder / "ck", folder / "all.pth")
    whole = torch.load(folder / "all.pth", weights_only=False)
    report = adopt(folder / "ck", KEY, store, select="model")
    assert report.digest == state_digest(whole["model"])
    assert same(store.load_state_dict(KEY), whole["model"])
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    model.load_state_dict(store.load_state_dict(KEY))
    assert file_digest(folder / "ck", select="more") == state_digest(whole["more"])
    moments = whole["optim"]["state"]["0.weight"]
    assert file_digest(folder / "ck", select="optim.state.0.weight") == state_digest(moments)
