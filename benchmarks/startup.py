"""What it costs to begin: ``python -m benchmarks.startup``.

Processor time (user and system) of a new process, the median of many runs, interleaved. Files are
in the page cache, and modules are compiled.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.harness import Figure, Figures, arguments_parser, report, show
from mlstate import LocalStateStore, StateKey

NOTHING = "python -c pass"
GOALS = {
    "import mlstate": 60.0,
    "import mlstate.stores": None,
    "from mlstate import LocalStateStore": None,
    "mlstate --help": None,
    "mlstate ls of a small store": 150.0,
    "import torch": None,
}
"""What begins, and the milliseconds beyond Python's own that it may take."""


def main() -> None:
    """Start processes, measure."""
    parser = arguments_parser(__doc__ or "")
    parser.set_defaults(rounds=31)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        store = small_store(Path(name) / "store")
        commands = {
            NOTHING: ["-c", "pass"],
            "import mlstate": ["-c", "import mlstate"],
            "import mlstate.stores": ["-c", "import mlstate.stores"],
            "from mlstate import LocalStateStore": ["-c", "from mlstate import LocalStateStore"],
            "mlstate --help": ["-m", "mlstate", "--help"],
            "mlstate ls of a small store": ["-m", "mlstate", "ls", str(store)],
            "import torch": ["-c", "import torch"],
        }
        beyond = processor_time(commands, arguments.rounds)
    rows = tuple(Figure(name, beyond[name], GOALS.get(name)) for name in commands)
    title = f"processor time beyond that of {NOTHING}, {arguments.rounds} runs"
    report([show(Figures(title, "ms", rows))], arguments.json)


def small_store(folder: Path) -> Path:
    """A store of ten small states of two architectures."""
    store = LocalStateStore(folder)
    for number in range(10):
        key = StateKey.parse(f"pytorch.net-{number % 2}.run-{number}")
        store.save_state_dict({"weight": torch.full((8, 8), float(number))}, key)
    return folder


def processor_time(commands: dict[str, list[str]], rounds: int) -> dict[str, float]:
    """The median milliseconds of each command beyond those of the first in the same round.

    Args:
        commands: What is measured -> the arguments of Python; the first is what the others are
            held against, and its own figure is its whole time.
        rounds: How many runs; one more that does not count comes first.
    """
    first, *others = commands
    times: dict[str, list[float]] = {name: [] for name in commands}
    for round_ in range(rounds + 1):
        for name, arguments in commands.items():
            took = spent(arguments)
            if round_:
                times[name].append(took)
    base = times[first]
    return {first: statistics.median(base)} | {
        name: statistics.median(took - least for took, least in zip(times[name], base, strict=True))
        for name in others
    }


def spent(arguments: Sequence[str]) -> float:
    """The processor time of a Python process, in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    python(arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def python(arguments: Sequence[str]) -> str:
    """Run Python, which keeps what it compiles, as it does where nobody says otherwise.

    Returns:
        What it printed.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


if __name__ == "__main__":
    main()
