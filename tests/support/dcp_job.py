"""Real training jobs of several ranks that save and load checkpoints; see `Job`.

A rank exits with 0 if all is as it should be, and with `FAILED` after an error that all were told.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
import warnings
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from mlstate import LocalStateStore, S3StateStore, StateType
from mlstate.integrations import dcp_objects
from mlstate.integrations.dcp import MlstateReader, MlstateWriter

__all__ = ["FAILED", "LAYOUTS", "NET", "Job", "run"]

NET = StateType("pytorch", "net")
FAILED = 3
LAYOUTS = {"one": 1, "rows-2": 2, "rows-4": 4, "rows-and-columns": 4}
"""How the tensors are spread -> over how many ranks."""
_PATIENCE = timedelta(seconds=60)


@dataclass(frozen=True)
class Job:
    """What all ranks do.

    Attributes:
        action: ``"save"``, with torch's own writer as well; ``"load"``: compare with what that
            saved, and train on; ``"raise"`` or ``"kill"``: save, and let rank 1 end so in the
            middle; ``"count"``: load, and write what each rank has verified, or the error.
        folder: Where the store is, and the checkpoints of torch.
        layout: One of `LAYOUTS`.
        names: The training ids to save, one after the other, or to load.
        background: Save by ``async_save``.
        bucket: The arguments of an `S3StateStore`, if the store is one.
    """

    action: str
    folder: str
    layout: str
    names: tuple[str, ...]
    background: bool = False
    bucket: tuple[Any, ...] = ()


def run(*jobs: Job) -> list[list[int]]:
    """Run jobs, one after the other; the exit codes of the ranks of each."""
    given = json.dumps([asdict(job) for job in jobs])
    code = f"import {__name__} as program; program.launch()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=given,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        check=True,
        timeout=600,
    )
    codes: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return codes


def launch() -> None:
    """Fork the ranks of each job, once all is imported, which takes longer than a job."""
    warnings.simplefilter("ignore")
    codes = []
    for at, given in enumerate(json.load(sys.stdin)):
        job = Job(**given | {"names": tuple(given["names"]), "bucket": tuple(given["bucket"])})
        Path(job.folder).mkdir(exist_ok=True)
        meet = f"{job.folder}/meet-{os.getpid()}-{at}"
        ranks = [_forked(job, rank, meet) for rank in range(LAYOUTS[job.layout])]
        codes.append([os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks])
    print(json.dumps(codes))


def _forked(job: Job, rank: int, meet: str) -> int:
    if process := os.fork():
        return process
    code = 1
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{meet}",
            rank=rank,
            world_size=LAYOUTS[job.layout],
            timeout=_PATIENCE,
        )
        code = main(job)
        if code == 0:
            dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # a group that lost a rank is not waited for


class Net:
    """A model that is spread in a layout, with its optimizer, after one step."""

    def __init__(self, layout: str, seed: int) -> None:
        torch.manual_seed(seed)
        # Uneven, and with dimensions that some ranks have nothing of.
        layers = [torch.nn.Linear(258, 130), torch.nn.Tanh(), torch.nn.Linear(130, 3)]
        self.model = torch.nn.Sequential(*layers)
        if layout == "rows-and-columns":
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
            plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
            parallelize_module(self.model, mesh["columns"], plan)
            mesh = mesh["rows"]
        else:
            mesh = init_device_mesh("cpu", (LAYOUTS[layout],))
        for layer in (self.model[0], self.model[2], self.model):
            fully_shard(layer, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.step()

    def step(self) -> None:
        self.model(torch.ones(2, 258)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        weights, moments = get_state_dict(self.model, self.optimizer)
        rng = torch.get_rng_state()
        return {"model": weights, "optim": moments, "steps": 1, "rng": rng, "pair": (1, "a")}

    def take(self, state: dict[str, Any]) -> None:
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optim"],
        )


class Failing(dcp.DefaultSavePlanner):
    """Ends rank 1 when it gives its third tensor."""

    def __init__(self, action: str) -> None:
        super().__init__()
        self._action = action
        self._given = 0

    def resolve_data(self, write_item: Any) -> Any:
        self._given += 1
        if self._given == 3 and dist.get_rank() == 1:
            if self._action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("the disk is gone")
        return super().resolve_data(write_item)


def local(state: Any) -> list[Any]:
    """All tensors in a state, of this rank alone, and all else that is in it."""
    if isinstance(state, dict):
        return [one for name in sorted(state) for one in local(state[name])]
    if isinstance(state, DTensor):
        return [state.to_local().tolist()]
    return [state.tolist()] if isinstance(state, torch.Tensor) else [state]


def main(job: Job) -> int:
    """What one rank does."""
    store = S3StateStore(*job.bucket) if job.bucket else LocalStateStore(f"{job.folder}/store")
    if job.action == "load":
        for name in job.names:
            load(job, store, name)
        return 0
    if job.action == "count":
        count(job, store, job.names[0])
        return 0
    net = Net(job.layout, 0)
    planner = None if job.action == "save" else Failing(job.action)
    for name in job.names:
        writer = MlstateWriter(store, NET)
        given = {"storage_writer": writer, "checkpoint_id": name, "planner": planner}
        try:
            if job.background:
                dcp.async_save(net.state(), **given).result()
            else:
                dcp.save(net.state(), **given)
        except CheckpointException as error:
            told = list(error.failures) == [1] and "the disk is gone" in str(error)
            return FAILED if told else 1
        dcp.save(net.state(), storage_writer=FileSystemWriter(f"{job.folder}/{name}"))
    return 0


def count(job: Job, store: Any, name: str) -> None:
    """Load into plain tensors, as each rank needs all; note what it verified, or what was wrong."""
    verified: list[str] = []
    verify = dcp_objects.verify_object

    def noted(objects: Any, ref: Any, mapped: Any) -> None:
        verified.append(ref.digest)
        verify(objects, ref, mapped)

    dcp_objects.verify_object = noted
    described = MlstateReader(store, NET, digest=None)
    described.reset(name)
    tensors = {
        name: torch.full(one.size, -1.0)
        for name, one in described.read_metadata().state_dict_metadata.items()
        if name.startswith("model.")
    }
    told = None
    try:
        dcp.load(tensors, storage_reader=MlstateReader(store, NET), checkpoint_id=name)
    except CheckpointException as error:
        told = sorted({type(failure).__name__ for failure, _ in error.failures.values()})
    changed = any(bool((one != -1).any()) for one in tensors.values())
    said = {"verified": verified, "told": told, "changed": changed}
    Path(job.folder, f"rank-{dist.get_rank()}.json").write_text(json.dumps(said))


def load(job: Job, store: Any, name: str) -> None:
    """Load what was saved in any layout, and what torch's own reader has of it; train on."""
    found = []
    readers = (MlstateReader(store, NET), FileSystemReader(f"{job.folder}/{name}"))
    for reader, given in zip(readers, (name, None), strict=True):
        net = Net(job.layout, 1)
        state = net.state() | {"steps": 0, "pair": None}
        dcp.load(state, storage_reader=reader, checkpoint_id=given)
        assert (state["steps"], state["pair"]) == (1, (1, "a"))
        net.take(state)
        loaded = local(net.state()["model"]) + local(state["rng"])
        net.step()
        found.append([*loaded, *local(net.state())])
    assert found[0] == found[1]
