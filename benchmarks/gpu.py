"""How fast a state loads onto a GPU, verified: ``python -m benchmarks.gpu``.

Held against safetensors' ``load_file(device="cuda")`` and fastsafetensors, which verify nothing.
All files are in the page cache. Each way ends when the device has everything. Without a CUDA device
nothing is measured, and nothing written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.harness import Table, Way, compare
from benchmarks.states import Model, measure_models, state_bytes
from mlstate import LocalStateStore

BASE = "load_file(device) + load_state_dict"


def main() -> None:
    """Measure every model in turn."""
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured")
        return
    measure_models(__doc__ or "", lambda model, folder, n: Bench.of(model, folder).tables(n))


@dataclass(frozen=True)
class Bench:
    """A model on the device, stored in each way."""

    title: str
    file: Path
    store: LocalStateStore
    key: Any
    model: Any
    device: torch.device

    @classmethod
    def of(cls, model: Model, folder: Path) -> Bench:
        """Make a model and store it in each way."""
        device = torch.device("cuda", torch.cuda.current_device())
        made = model.make()
        state = made.state_dict()
        save_file(state, folder / "model.safetensors")
        store = LocalStateStore(folder / "store")
        key = store.save(made, "seed0")
        name = torch.cuda.get_device_name(device)
        title = f"{model.name}, {state_bytes(state) // 1_000_000} MB, onto {name}"
        return cls(title, folder / "model.safetensors", store, key, made.to(device), device)

    def tables(self, rounds: int) -> list[Table]:
        """Into a model that is there, and as tensors alone."""
        into = [
            self._way(BASE, lambda: self.model.load_state_dict(self._load_file())),
            self._way("mlstate, into the model", lambda: self.store.load(self.model, self.key)),
        ]
        alone = [
            self._way("load_file(device)", self._load_file),
            self._way(
                "mlstate, load_state_dict(device)",
                lambda: self.store.load_state_dict(self.key, device=self.device),
            ),
        ]
        if find_spec("fastsafetensors") is None:
            print("fastsafetensors is not installed: it is left out")
        else:
            alone.append(self._way("fastsafetensors", self._fastsafetensors))
        return [
            compare(f"load, {self.title}", into, rounds=rounds),
            compare(f"load tensors, {self.title}", alone, rounds=rounds),
        ]

    def _way(self, name: str, run: Callable[[], object]) -> Way:
        def to_the_end() -> None:
            run()
            torch.cuda.synchronize(self.device)

        return Way(name, to_the_end)

    def _load_file(self) -> dict[str, torch.Tensor]:
        return load_file(self.file, device=str(self.device))

    def _fastsafetensors(self) -> None:
        from fastsafetensors import SafeTensorsFileLoader, SingleGroup

        loader = SafeTensorsFileLoader(SingleGroup(), str(self.device))
        loader.add_filenames({0: [str(self.file)]})
        try:
            files = loader.copy_files_to_device()
            try:
                for name in files.key_to_rank_lidx:
                    files.get_tensor(name)
            finally:
                files.close()
        finally:
            loader.close()


if __name__ == "__main__":
    main()
