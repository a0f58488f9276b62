"""What thousands of related states cost: ``python -m benchmarks.index``.

Processor time of whole processes of the command line, Python's start and the imports included:
`ls`, `show`, `du` and a dry `prune` of stores of 20 to 4,000 states of 100 tensors, 97 of which a
state shares with the 99 others of its architecture; and `ls --type` of one architecture among up to
100,000 states of 10 tensors. The first time there is no index of what the states say; the second
time there is.
State files and objects are written directly in the layout, as small as they can be. Needs 3 GB of
disk.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.harness import Figure, Figures, report, show
from benchmarks.scale import SPEC, write_object, write_state_files, write_tensor
from mlstate.digests import Digest
from mlstate.format import layout
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.states import StateKey, StateType

STATES = (20, 1_000, 4_000)
MANY = (4_000, 20_000, 100_000)
FAMILY = 100
ASKED = StateKey(StateType("pytorch", "net-0"), "run-7")
GOALS = {"ls": 0.5, "show of one state": None, "du": 1.0, "prune --dry-run": None}
"""What is measured, and the seconds that it may take of 4,000 states, the second time."""


def main() -> None:
    """Make stores, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command (5)")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--folder", type=Path, help="for all that is written (a temporary one)")
    parser.add_argument("--most", type=int, default=max(MANY), help="states at most (100,000)")
    parser.add_argument("--only", choices=["states", "types"], help="a part of it")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        if arguments.only != "types":
            results += by_states(Path(name), arguments.rounds)
        if arguments.only != "states":
            results += of_one_type(Path(name), arguments.rounds, arguments.most)
    report(results, arguments.json, keep=arguments.only is not None)


def by_states(folder: Path, rounds: int) -> list[Figures]:
    """Each command the first time and later, of stores with more and more states."""
    first: list[Figure] = []
    later: list[Figure] = []
    for count in STATES:
        store, cache = folder / f"states-{count}", folder / "cache"
        write_store(store, count)
        commands = {
            "ls": ["ls", str(store)],
            "show of one state": ["show", str(ASKED), "--store", str(store)],
            "du": ["du", str(store)],
            "prune --dry-run": ["prune", "--dry-run", "--older-than", "1h", "--store", str(store)],
        }
        for name, command in commands.items():
            once, again = timed(command, cache, rounds, first=rounds // 2)
            goal = GOALS[name] if count == max(STATES) else None
            first.append(Figure(name, once, None, count))
            later.append(Figure(name, again, goal, count))
        shutil.rmtree(store)
    return [
        show(Figures("the first time, without an index", "s", tuple(first))),
        show(Figures("the second time, by the index", "s", tuple(later))),
    ]


def of_one_type(folder: Path, rounds: int, most: int) -> list[Figures]:
    """`ls --type` of 100 states, with more and more states of other architectures beside them."""
    rows: list[Figure] = []
    for count in (count for count in MANY if count <= most):
        store, cache = folder / f"types-{count}", folder / "cache"
        write_store(store, count, tensors=10, own=1)
        command = ["ls", str(store), "--type", str(ASKED.state_type)]
        once, again = timed(command, cache, rounds, first=1)
        rows.append(Figure("ls --type, the first time", once, None, count))
        rows.append(Figure("ls --type, the second time", again, 0.5, count))
        shutil.rmtree(store)
    return [show(Figures("one architecture of many", "s", tuple(rows)))]


def timed(command: list[str], cache: Path, rounds: int, first: int = 3) -> tuple[float, float]:
    """The median seconds of a command without an index, and with it."""
    environment = {**os.environ, "MLSTATE_CACHE": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    once = []
    for _ in range(first):
        shutil.rmtree(cache, ignore_errors=True)
        once.append(seconds(command, environment))
    seconds(command, environment)
    again = [seconds(command, environment) for _ in range(rounds)]
    return statistics.median(once), statistics.median(again)


def seconds(command: list[str], environment: Mapping[str, str]) -> float:
    """The processor time that one process takes, which is next to all of its time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "mlstate", *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def write_store(folder: Path, count: int, tensors: int = 100, own: int = 3) -> None:
    """A store of so many states, in architectures of a hundred that share all but a few tensors."""
    folder.mkdir()
    (folder / layout.SETTINGS).write_bytes(layout.NEW_SETTINGS)
    write_state_files(folder, _states(folder, count, tensors - own, own))


def _states(folder: Path, count: int, shared: int, own: int) -> Iterator[tuple[StateKey, Digest]]:
    numbers = itertools.count()
    for family in range(0, count, FAMILY):
        common = [write_tensor(folder, next(numbers)) for _ in range(shared)]
        state_type = StateType("pytorch", f"net-{family // FAMILY}")
        for run in range(min(FAMILY, count - family)):
            tensors = [*common, *(write_tensor(folder, next(numbers)) for _ in range(own))]
            refs = {f"layers.{n}.weight": TensorRef(SPEC, d) for n, d in enumerate(tensors)}
            data = StateObject({}, refs).encode()
            write_object(folder, Digest.of(data), data, len(data))
            yield StateKey(state_type, f"run-{run}"), Digest.of(data)


if __name__ == "__main__":
    main()
