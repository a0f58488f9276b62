"""What loading and saving takes of memory beyond the state itself: ``python -m benchmarks.memory``.

Each case runs in a process of its own, which looks at its memory every millisecond. Memory that the
process has written (anonymous) is told from mapped pages of files, which are the page cache's own:
the kernel takes them back when it needs to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Figure, Figures, arguments_parser, report, show
from benchmarks.states import MODELS
from mlstate import LocalStateStore, StateKey

GOAL = 64.0
OPERATIONS = ("save", "save again", "load", "load, assign=True", "load_file + load_state_dict")
PARTS = ("RssAnon", "RssFile")


def main() -> None:
    """Run every case in a process of its own."""
    parser = arguments_parser(__doc__ or "")
    parser.add_argument("--case", nargs=3, metavar=("MODEL", "OPERATION", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(_measured(*arguments.case)))
        return
    anonymous, mapped = [], []
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            for operation in OPERATIONS:
                case = ["--case", model.name, operation, folder]
                command = [sys.executable, "-m", "benchmarks.memory", *case]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found = json.loads(out)
                name = f"{model.name}, {operation}"
                goal = None if operation.startswith("load_file") else GOAL
                anonymous.append(Figure(name, found["RssAnon"], goal))
                mapped.append(Figure(name, found["RssFile"]))
    tables = [
        show(Figures("peak memory of the process's own, beyond the model", "MB", tuple(anonymous))),
        show(Figures("peak of mapped files, beyond what was mapped before", "MB", tuple(mapped))),
    ]
    report(tables, arguments.json)


def _measured(name: str, operation: str, folder: str) -> dict[str, float]:
    """Do it once, and say how much memory it took at most, in MB."""
    made = next(model for model in MODELS if model.name == name).make()
    store, file = LocalStateStore(Path(folder) / "store"), Path(folder) / "model.safetensors"
    state = made.state_dict()

    def load_file() -> None:
        from safetensors.torch import load_file

        made.load_state_dict(load_file(file))

    def key() -> StateKey:
        return store.get_state_keys()[0]

    if operation.startswith("load_file"):
        from safetensors.torch import save_file

        save_file(state, file)
    del state
    run: dict[str, Callable[[], object]] = {
        "save": lambda: store.save(made, "seed0"),
        "save again": lambda: store.save(made, "seed0"),
        "load": lambda: store.load(made, key()),
        "load, assign=True": lambda: store.load(made, key(), assign=True),
        "load_file + load_state_dict": load_file,
    }
    _warm_up(Path(folder))
    before = _memory()
    with _Peak() as peak:
        run[operation]()
    return {part: (peak.most[part] - before[part]) / 1000 for part in PARTS}


def _warm_up(folder: Path) -> None:
    """What a process does once, such as importing, is not the operation's."""
    import torch

    from mlstate import StateType, with_state_type

    torch.manual_seed(0)  # the next case warms up in the same store
    small = with_state_type(torch.nn.Linear(80, 80), StateType("pytorch", "warm-up"))
    store = LocalStateStore(folder / "warm-up")
    store.load(small, store.save(small, "one"))
    store.load(small, store.save(small, "one"), assign=True)


class _Peak:
    """Looks at the memory of this process until the context ends."""

    def __init__(self) -> None:
        self.most = _memory()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.001):
            self._note()
        self._note()

    def _note(self) -> None:
        self.most = {part: max(most, now) for part, now, most in self._pairs()}

    def _pairs(self) -> list[tuple[str, int, int]]:
        now = _memory()
        return [(part, now[part], self.most[part]) for part in PARTS]


def _memory() -> dict[str, int]:
    """What this process has in memory, in KB."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {part: int(found[part].split()[0]) for part in PARTS}


if __name__ == "__main__":
    main()
