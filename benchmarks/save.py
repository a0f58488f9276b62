"""How fast a state is saved, hashed and all: ``python -m benchmarks.save``.

Held against safetensors' ``save_file``, which hashes nothing. A new state goes to an empty place
each time. What was written before is removed and the disk is at rest before the next begins.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save_file

from benchmarks.floors import hash_tensors, write_and_hash
from benchmarks.harness import Table, Way, compare
from benchmarks.states import Model, measure_models, state_bytes
from mlstate import LocalStateStore

__all__ = ["no_fsync"]

BASE = "save_file"
NEW = "mlstate"
GOALS = {"ResNet-50": 0.4, "BERT-base": 0.4, "LLM": 0.3}  # nothing changed


def main() -> None:
    """Measure every model in turn."""
    measure_models(__doc__ or "", lambda model, folder, n: Bench.of(model, folder).tables(n))


@dataclass(frozen=True)
class Bench:
    """A model, and the folder that it is saved to."""

    name: str
    model: torch.nn.Module
    state: Mapping[str, torch.Tensor]
    out: Path
    kept: LocalStateStore

    @classmethod
    def of(cls, model: Model, folder: Path) -> Bench:
        """Make a model, and a store that has its state."""
        made = model.make()
        kept = LocalStateStore(folder / "kept")
        kept.save(made, "seed0")
        return cls(model.name, made, made.state_dict(), folder / "out", kept)

    def tables(self, rounds: int) -> list[Table]:
        """New without and with fsync, and nothing changed."""
        size = f"{self.name}, {state_bytes(self.state) // 1_000_000} MB"
        goals = {"mlstate": 1.0}
        new = [
            self._way(BASE, _unsynced(self._safetensors)),
            self._way(NEW, _unsynced(self._mlstate)),
            self._way("writing and hashing the same tensors, nothing else", self._floor),
            self._way("save_file + sha256 of the file", _unsynced(self._safetensors_hashed)),
            self._way("torch.save", _unsynced(self._torch)),
            self._way("torch.save + sha256 of the file", _unsynced(self._torch_hashed)),
        ]
        durable = [
            self._way("save_file + fsync", self._synced(self._safetensors)),
            self._way(NEW, self._mlstate),
            self._way("torch.save + fsync", self._synced(self._torch)),
        ]
        same = [
            self._way(BASE, self._safetensors),
            self._way(NEW, self._mlstate_again),
            self._way("hashing the same tensors, nothing else", lambda: hash_tensors(self.state)),
        ]
        unchanged = {NEW: GOALS[self.name]} if self.name in GOALS else None
        title = f"save, {size}"
        return [
            compare(f"{title}, new, no fsync on either side", new, rounds=rounds, goals=goals),
            compare(f"{title}, new, durable on both sides", durable, rounds=rounds, goals=goals),
            compare(f"{title}, nothing changed", same, rounds=rounds, goals=unchanged),
        ]

    def _way(self, name: str, run: Callable[[], object]) -> Way:
        return Way(name, run, self._clear)

    def _clear(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        os.sync()

    def _mlstate(self) -> None:
        LocalStateStore(self.out / "store").save(self.model, "seed0")

    def _floor(self) -> None:
        write_and_hash(self.state, self.out / "files")

    def _mlstate_again(self) -> None:
        self.kept.save(self.model, "seed0")

    def _safetensors(self) -> Path:
        save_file(dict(self.state), self.out / "model.safetensors")
        return self.out / "model.safetensors"

    def _safetensors_hashed(self) -> None:
        _sha256(self._safetensors())

    def _torch(self) -> Path:
        torch.save(self.state, self.out / "model.pt")
        return self.out / "model.pt"

    def _torch_hashed(self) -> None:
        _sha256(self._torch())

    def _synced(self, run: Callable[[], Path]) -> Callable[[], None]:
        def synced() -> None:
            for path in (run(), self.out):
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)

        return synced


def _unsynced(run: Callable[[], object]) -> Callable[[], None]:
    """Without fsync: mlstate always asks for it, so here the asking is left out."""

    def unsynced() -> None:
        with no_fsync():
            run()

    return unsynced


@contextmanager
def no_fsync() -> Iterator[None]:
    """Let nothing be flushed to the disk."""
    with patch.object(os, "fsync", lambda _: None):
        yield


def _sha256(path: Path) -> None:
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")


if __name__ == "__main__":
    main()
