"""Checkpoints by torch.distributed.checkpoint: ``python -m benchmarks.dcp``.

A model and the moments of AdamW, in one process: the first save, a save of what did not change, and
a load, held against torch's own FileSystemWriter and FileSystemReader, which hash nothing. Both
flush to the disk. What was written before is removed, and the disk is at rest, before each.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from benchmarks.harness import (
    Figure,
    Figures,
    Table,
    Way,
    arguments_parser,
    compare,
    report,
    show,
)
from mlstate import LocalStateStore, StateKey, StateType
from mlstate.integrations.dcp import MlstateReader, MlstateWriter

TYPE = StateType("pytorch", "net")
TORCH, OURS = "FileSystemWriter", "MlstateWriter"
FIRST, UNCHANGED, LOAD = 1.8, 0.6, 1.5
ADDED = 0.1
"""The percentage of the bytes of a checkpoint that an unchanged one may add."""


def main() -> None:
    """Measure, with a model of the size that is asked for."""
    parser = arguments_parser(__doc__ or "")
    parser.add_argument("--megabytes", type=int, default=600, help="model and moments (600)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # torch says that it is alone
    with tempfile.TemporaryDirectory(prefix="mlstate-dcp-") as name:
        bench = Bench(Path(name), arguments.megabytes)
        report([*bench.tables(arguments.rounds), show(bench.added())], arguments.json)


class Bench:
    """A training, and the folders that it is saved to."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        # Three tensors of fp32 for each: the weight and two moments.
        width, layers = 1024, max(1, megabytes * 1_000_000 // (3 * 4 * 1024**2))
        torch.manual_seed(0)
        model = torch.nn.Sequential(*[torch.nn.Linear(width, width) for _ in range(layers)])
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(1, width)).sum().backward()
        optimizer.step()
        weights, moments = get_state_dict(model, optimizer)
        self.state: dict[str, Any] = {"model": weights, "optim": moments}
        self.again: dict[str, Any] = {name: _empty(one) for name, one in self.state.items()}
        self.size = sum(map(_nbytes, self.state.values()))
        self.folder = folder
        self.kept = LocalStateStore(folder / "kept")
        self._save(self.kept, 0)
        self._save_by_torch(folder / "kept-by-torch", 0)

    def tables(self, rounds: int) -> list[Table]:
        """The three comparisons."""
        title = f"DCP, one process, {self.size // 1_000_000} MB"
        new = LocalStateStore(self.folder / "new")
        first = [
            Way(TORCH, lambda: self._save_by_torch(self.folder / "new", 1), self._clear),
            Way(OURS, lambda: self._save(new, 1), self._clear),
        ]
        same = [
            Way(TORCH, lambda: self._save_by_torch(self.folder / "new", 2), self._clear),
            Way(OURS, lambda: self._save(self.kept, 2), self._forget),
        ]
        loads = [
            Way("FileSystemReader", self._load_by_torch),
            Way("MlstateReader", self._load),
        ]
        return [
            compare(f"{title}: first save", first, rounds=rounds, goals={OURS: FIRST}),
            compare(f"{title}: unchanged", same, rounds=rounds, goals={OURS: UNCHANGED}),
            compare(f"{title}: load", loads, rounds=rounds, goals={"MlstateReader": LOAD}),
        ]

    def added(self) -> Figures:
        """How much the disk takes for a step in which a number alone changed."""
        self._save(self.kept, 3)
        before = _disk(self.folder / "kept")
        self._save(self.kept, 4)
        percent = 100 * (_disk(self.folder / "kept") - before) / self.size
        row = Figure("unchanged but for the step", percent, goal=ADDED)
        return Figures("DCP: what a step adds", "% of its bytes", (row,))

    def _save(self, store: LocalStateStore, step: int) -> None:
        writer = MlstateWriter(store, TYPE)
        save(self.state | {"step": step}, storage_writer=writer, checkpoint_id=f"step-{step}")

    def _save_by_torch(self, folder: Path, step: int) -> None:
        save(self.state | {"step": step}, storage_writer=FileSystemWriter(folder))

    def _load(self) -> None:
        reader = MlstateReader(self.kept, TYPE)
        load(self.again | {"step": -1}, storage_reader=reader, checkpoint_id="step-0")

    def _load_by_torch(self) -> None:
        reader = FileSystemReader(self.folder / "kept-by-torch")
        load(self.again | {"step": -1}, storage_reader=reader)

    def _clear(self) -> None:
        shutil.rmtree(self.folder / "new", ignore_errors=True)
        os.sync()

    def _forget(self) -> None:
        key = StateKey(TYPE, "step-2")
        if self.kept.exists(key):
            self.kept.delete(key)
        os.sync()


def _empty(value: Any) -> Any:
    """The same nesting with tensors of zeros."""
    if isinstance(value, Mapping):
        return {name: _empty(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_empty(one) for one in value]
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else value


def _nbytes(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_nbytes, value.values()))
    if isinstance(value, list):
        return sum(map(_nbytes, value))
    return value.nbytes if isinstance(value, torch.Tensor) else 0


def _disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
