"""How fast ranks save and load one state together: ``python -m benchmarks.distributed``.

Jobs of processes over gloo on this machine, held against torch's own ways: the full state dict on
rank 0 with safetensors' ``save_file``, and ``torch.distributed.checkpoint``, which hashes nothing.
The peak of memory is that of anonymous pages: what is mapped from files is the page cache's.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from benchmarks.harness import Figure, Figures, Table, Way, compare, main_arguments, report, show
from mlstate import LocalStateStore, StateKey, StateType, with_state_type
from mlstate.errors import PeerError
from tests.support.ranks import Job, Rank

FULL = "full_state_dict + save_file on rank 0"
DCP_SAVE = "dcp.save"
DCP_LOAD = "dcp.load"
OURS = "mlstate"
NET = StateType("pytorch", "net")
KEY = StateKey(NET, "a")
WIDTH, LAYERS = 2048, 20
LARGEST = WIDTH * WIDTH * 4
_made: dict[str, nn.Module] = {}


def model_of(rank: Rank, layout: str) -> nn.Module:
    """The model of this rank, made once for each layout."""
    if layout not in _made:
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
        size = {"rows": 1, "columns": rank.world, "2d": 2}[layout]
        mesh = init_device_mesh("cpu", (rank.world // size, size), mesh_dim_names=("dp", "tp"))
        if size > 1:
            styles = (ColwiseParallel, RowwiseParallel)
            plan: dict[str, Any] = {
                str(i): styles[(i + (layout == "columns")) % 2]() for i in range(LAYERS)
            }
            parallelize_module(model, mesh["tp"], plan)
        if size < rank.world:
            for layer in model:
                fully_shard(layer, mesh=mesh["dp"])
            fully_shard(model, mesh=mesh["dp"])
        _made[layout] = with_state_type(model, NET)
    return _made[layout]


def save_full(rank: Rank, layout: str) -> None:
    """Gather all on rank 0, and write one file there."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(model_of(rank, layout), options=options)
    if rank.rank == 0:
        save_file({name: t.contiguous() for name, t in state.items()}, f"{rank.folder}/out/full")
    dist.barrier()


def save_dcp(rank: Rank, layout: str) -> None:
    """Save by torch, a file for each rank."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state_dict_saver.save(
            model_of(rank, layout).state_dict(), checkpoint_id=f"{rank.folder}/out/dcp"
        )


def save_ours(rank: Rank, layout: str, store: str = "out/store") -> None:
    """Save into an empty store."""
    LocalStateStore(f"{rank.folder}/{store}").save(model_of(rank, layout), "a")


def prepare(rank: Rank, layout: str) -> None:
    """Save what is loaded afterwards."""
    save_ours(rank, layout, "kept/store")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state_dict_saver.save(
            model_of(rank, layout).state_dict(), checkpoint_id=f"{rank.folder}/kept/dcp"
        )


def load_dcp(rank: Rank, layout: str) -> None:
    """Load by torch, in place."""
    state = model_of(rank, layout).state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state_dict_loader.load(state, checkpoint_id=f"{rank.folder}/kept/dcp")


def load_ours(rank: Rank, layout: str) -> None:
    """Load verified, in place."""
    LocalStateStore(f"{rank.folder}/kept/store").load(model_of(rank, layout), KEY)


def peak_of(rank: Rank, call: str, layout: str) -> int:
    """The bytes of anonymous memory that a call takes at most, beyond what there was before."""
    work: Callable[[Rank, str], Any] = globals()[call]
    model_of(rank, layout)
    gc.collect()
    before = most = _anonymous()
    end = threading.Event()

    def watch() -> None:
        nonlocal most
        while not end.is_set():
            most = max(most, _anonymous())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work(rank, layout)
    end.set()
    watcher.join()
    return most - before


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def tables(world: int, layout: str, rounds: int) -> list[Table | Figures]:
    """What is measured with so many ranks, in one layout."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def clear() -> None:
            shutil.rmtree(folder / "out", ignore_errors=True)
            (folder / "out").mkdir()

        with Job(world, folder, cases="benchmarks.distributed") as job:

            def way(title: str, case: str, how: str = layout) -> Way:
                return Way(title, lambda: job.values(case, layout=how), clear)

            clear()
            (folder / "kept").mkdir()
            title = f"{world} ranks, {layout}, {LAYERS * LARGEST // 1_000_000} MB"
            goal = (2 * LARGEST + (16 << 20)) / 1e6
            # First of all: what was freed once may stay with the process.
            saved = max(job.values("peak_of", call="save_ours", layout=layout)) / 1e6
            job.values("prepare", layout=layout)
            loaded = max(job.values("peak_of", call="load_ours", layout=layout)) / 1e6
            figures = (Figure("save", saved, goal), Figure("load", loaded, goal))
            peaks = Figures(f"peak of memory beyond the model, {title}", "MB", figures)
            saving = [way(FULL, "save_full"), way(OURS, "save_ours"), way(DCP_SAVE, "save_dcp")]
            loading = [way(DCP_LOAD, "load_dcp"), way(OURS, "load_ours")]
            other = "columns" if layout != "columns" else "rows"
            moved = [way(DCP_LOAD, "load_dcp", other), way(OURS, "load_ours", other)]
            found: list[Table | Figures] = [
                compare(f"save, {title}", saving, rounds=rounds, goals={OURS: 0.75}),
                compare(f"load, {title}", loading, rounds=rounds, goals={OURS: 1.2}),
                compare(
                    f"load, {title}, saved so, into {other}",
                    moved,
                    rounds=rounds,
                    goals={OURS: 0.6},
                ),
            ]
            return [*found, show(peaks)]


_FAILING = {"MLSTATE_PEER_PATIENCE": "3", "MLSTATE_PATIENCE": "30"}
_ROUNDS = 3


def failures(world: int = 3) -> Figures:
    """How long the other ranks take to end with the error of one, the slowest of several times.

    It is counted from when that rank has raised, or its process has ended; of one that is stopped
    from when it was told to begin.
    """
    rows = []
    for phase in ("store", "verify"):
        for how, goal in (("error", 2.0), ("kill", 2.0), ("stop", 5.0)):
            slowest = max(
                _until_all_know(world, phase, how, who)
                for who in (0, world - 1)
                for _ in range(_ROUNDS)
            )
            name = f"{how}, {'save' if phase == 'store' else 'load'}"
            rows.append(Figure(name, slowest, goal, note="with a patience of 3 s"))
    return show(Figures(f"{world} ranks, until all raise what one met", "s", tuple(rows)))


def _until_all_know(world: int, phase: str, how: str, who: int) -> float:
    others = [rank for rank in range(world) if rank != who]
    with (
        tempfile.TemporaryDirectory() as folder,
        Job(world, folder, _FAILING, cases="tests.distributed.cases") as job,
    ):
        job.values("save_twice", training_id="whole", seed=0)
        begun = time.monotonic()
        job.tell("failing", phase=phase, how=how, who=who)
        if how == "kill":
            job.processes[who].join()
            begun = time.monotonic()
        elif how == "error":
            job.answers([who])
            begun = time.monotonic()
        told = [answer.error for answer in job.answers(others)]
        took = time.monotonic() - begun
        if not all(isinstance(error, PeerError) for error in told):
            raise RuntimeError(f"ranks do not know of a failure: {told}")
        return took


def main() -> None:
    """Measure, print, and write the results."""
    arguments = main_arguments((__doc__ or "").splitlines()[0])
    found: list[Table | Figures] = [failures()]
    for world, layout in ((2, "rows"), (4, "rows"), (4, "2d")):
        found += tables(world, layout, arguments.rounds)
    report(found, arguments.json)


if __name__ == "__main__":
    main()
