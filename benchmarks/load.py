"""How fast a state loads, verified: ``python -m benchmarks.load``.

Held against safetensors' ``load_file`` and the model's own ``load_state_dict``, which verify
nothing. All copies go into the same model; what is mapped goes into one of its own. The last
tables begin with an empty page cache, which takes root: without it they are left out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from benchmarks import hubcache
from benchmarks.floors import hash_files, objects_of
from benchmarks.harness import Table, Way, compare
from benchmarks.states import Model, measure_models, state_bytes
from mlstate import LocalStateStore

__all__ = ["drop_caches"]

BASE = "load_file + load_state_dict"
ASSIGN = "mlstate, assign=True"
COPY = "mlstate, into the model"
SHA256 = "sha256 of the file + the same"
COLD_ROUNDS = 7
DROP_CACHES = Path("/proc/sys/vm/drop_caches")

GOALS = {  # of the model: mapped, copied, and copied held against sha256 + load_file
    "ResNet-50": (0.9, 1.4, 0.25),
    "BERT-base": (1.0, 1.85, 0.24),
    "LLM": (1.0, 2.05, 0.22),
    "MiniLM": (None, None, None),
}


def main() -> None:
    """Measure every model in turn."""
    measure_models(__doc__ or "", lambda model, folder, n: Bench.of(model, folder).tables(n))


@dataclass(frozen=True)
class Bench:
    """A model, stored in each way, and two instances of it to load into."""

    name: str
    folder: Path
    store: LocalStateStore
    key: Any
    copied: Any
    assigned: Any
    megabytes: int
    objects: list[Path]

    @classmethod
    def of(cls, model: Model, folder: Path) -> Bench:
        """Make a model and store it in each way."""
        copied = model.make()
        state = copied.state_dict()
        save_file(state, folder / "model.safetensors")
        hubcache.fill(folder / "hub", folder / "model.safetensors")
        torch.save(state, folder / "model.pt")
        store = LocalStateStore(folder / "store")
        key = store.save(copied, "seed0")
        os.sync()
        megabytes = state_bytes(state) // 1_000_000
        objects = objects_of(store.folder)
        return cls(model.name, folder, store, key, copied, model.make(), megabytes, objects)

    @property
    def title(self) -> str:
        """What the tables are called by."""
        return f"{self.name}, {self.megabytes} MB in {len(self.copied.state_dict())} tensors"

    def tables(self, rounds: int) -> list[Table]:
        """Warm, against sha256, and cold."""
        goals = GOALS[self.name]
        warm = compare(
            f"load, {self.title}, warm",
            self._warm(),
            rounds=rounds,
            goals=_given({ASSIGN: goals[0], COPY: goals[1]}),
        )
        hashed = compare(
            f"load, {self.title}, warm, held against sha256",
            [Way(SHA256, _both(self._sha256, self._safetensors)), Way(COPY, self._mlstate)],
            rounds=rounds,
            goals=_given({COPY: goals[2]}),
        )
        if not os.access(DROP_CACHES, os.W_OK):
            print("  cold loads are left out: only root can empty the page cache")
            return [warm, hashed]
        cold = compare(
            f"load, {self.title}, cold",
            [Way(way.name, way.run, drop_caches) for way in self._cold()],
            rounds=min(rounds, COLD_ROUNDS),
            goals={COPY: 0.7},
        )
        return [warm, hashed, cold]

    def _warm(self) -> list[Way]:
        plain, pickled = self._safetensors, self._torch
        return [
            Way(BASE, plain),
            Way(ASSIGN, self._mlstate_assign),
            Way(COPY, self._mlstate),
            Way("mapping and hashing the same files, nothing else", self._floor),
            Way("load_file + load_state_dict(assign=True)", self._safetensors_assign),
            Way("huggingface_hub's cache + the same", self._hub),
            Way(SHA256, _both(self._sha256, plain)),
            Way("blake3 of the file + the same", _both(self._blake3, plain)),
            Way("torch.load + load_state_dict", pickled),
            Way("sha256 + torch.load + load_state_dict", _both(self._sha256_pt, pickled)),
            Way("torch.load(mmap=True) + load_state_dict", self._torch_mapped),
        ]

    def _cold(self) -> list[Way]:
        return [
            Way(BASE, self._safetensors),
            Way(COPY, self._mlstate),
            Way(ASSIGN, self._mlstate_assign),
            Way("torch.load + load_state_dict", self._torch),
        ]

    def _safetensors(self) -> None:
        self.copied.load_state_dict(load_file(self.folder / "model.safetensors"))

    def _safetensors_assign(self) -> None:
        self.assigned.load_state_dict(load_file(self.folder / "model.safetensors"), assign=True)

    def _floor(self) -> None:
        hash_files(self.objects)

    def _hub(self) -> None:
        self.copied.load_state_dict(
            load_file(hubcache.find(self.folder / "hub", "model.safetensors"))
        )

    def _torch(self) -> None:
        self.copied.load_state_dict(torch.load(self.folder / "model.pt"))

    def _torch_mapped(self) -> None:
        self.copied.load_state_dict(torch.load(self.folder / "model.pt", mmap=True))

    def _mlstate(self) -> None:
        self.store.load(self.copied, self.key)

    def _mlstate_assign(self) -> None:
        self.store.load(self.assigned, self.key, assign=True)

    def _sha256(self) -> None:
        with (self.folder / "model.safetensors").open("rb") as file:
            hashlib.file_digest(file, "sha256")

    def _sha256_pt(self) -> None:
        with (self.folder / "model.pt").open("rb") as file:
            hashlib.file_digest(file, "sha256")

    def _blake3(self) -> None:
        blake3(max_threads=blake3.AUTO).update_mmap(self.folder / "model.safetensors").digest()


def _both(first: Callable[[], object], second: Callable[[], object]) -> Callable[[], None]:
    def both() -> None:
        first()
        second()

    return both


def _given(goals: dict[str, float | None]) -> dict[str, float]:
    return {way: goal for way, goal in goals.items() if goal is not None}


def drop_caches() -> None:
    """Empty the page cache; takes root."""
    os.sync()
    DROP_CACHES.write_text("3")


if __name__ == "__main__":
    main()
