"""Where the time of a load and a save goes: ``python -m benchmarks.phases``.

Processor time of both cores, in ms, by what it is spent on. That of the phases is counted in the
threads that do them, and what is left over is everything else: Python, the kernel's part in opening
and naming files, and starting threads. (Not the time on the clock: with two cores at work that is
about half of it.)
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.harness import Figure, Figures, arguments_parser, report, show
from benchmarks.save import no_fsync
from benchmarks.states import MODELS, Model
from mlstate import LocalStateStore
from mlstate.digests import Hasher
from mlstate.objects import durable, mapped
from mlstate.stores import load as stores_load
from mlstate.tensors import encode, fit, load, read

PHASES: dict[str, tuple[tuple[Any, str], ...]] = {
    "hash (with the page faults of mapped files)": ((Hasher, "update"),),
    "open, map or read files": ((read.OpenedObject, "open"), (read, "read_tensor")),
    "write to the page cache": ((mapped, "_write_block"), (mapped, "write_all")),
    "flush and name files": ((durable.NewFile, "flush"), (durable.NewFile, "publish")),
    "read the state object": ((stores_load, "read_state"),),
    "compare names and shapes": ((load, "compare"), (fit, "stand_apart")),
    "look at the tensors": ((encode, "_source"),),
    "copy or assign": ((load, "assignable"), (load, "set_entries")),
}
"""Phase -> the functions that do it and nothing else that is named here."""


def main() -> None:
    """Measure every model in turn."""
    parser = arguments_parser(__doc__ or "")
    parser.add_argument("--model", action="append", choices=[model.name for model in MODELS])
    arguments = parser.parse_args()
    tables = []
    for model in MODELS:
        if not arguments.model or model.name in arguments.model:
            tables += _of(model, arguments.rounds)
    report(tables, arguments.json, keep=bool(arguments.model))


def _of(model: Model, rounds: int) -> list[Figures]:
    copied, assigned = model.make(), model.make()
    with tempfile.TemporaryDirectory() as name:
        kept, new = LocalStateStore(Path(name) / "kept"), Path(name) / "new"
        key = kept.save(copied, "seed0")

        def save_new() -> None:
            with no_fsync():
                LocalStateStore(new).save(copied, "seed0")

        runs: dict[str, Callable[[], object]] = {
            "load, assign=True": lambda: kept.load(assigned, key, assign=True),
            "load into the model": lambda: kept.load(copied, key),
            "save, new, no fsync": save_new,
            "save, nothing changed": lambda: kept.save(copied, "seed0"),
        }
        return [_profile(f"{model.name}, {what}", run, new, rounds) for what, run in runs.items()]


def _profile(title: str, run: Callable[[], object], new: Path, rounds: int) -> Figures:
    """The medians of each phase and of the rest."""
    measured: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        shutil.rmtree(new, ignore_errors=True)
        with _counted() as spent:
            began = time.process_time()
            run()
            whole = time.process_time() - began
        if number:
            for phase in PHASES:
                measured[phase].append(spent[phase])
            measured["the rest"].append(whole - sum(spent.values()))
            measured["all"].append(whole)
    medians = ((phase, statistics.median(times) * 1000) for phase, times in measured.items())
    return show(Figures(title, "ms of CPU time", tuple(Figure(*row) for row in medians if row[1])))


@contextmanager
def _counted() -> Iterator[dict[str, float]]:
    """The CPU time that phases take within this context: phase -> seconds."""
    spent: dict[str, float] = defaultdict(float)
    with ExitStack() as stack:
        for phase, functions in PHASES.items():
            for owner, name in functions:
                counting = _counting(getattr(owner, name), phase, spent)
                stack.enter_context(patch.object(owner, name, counting))
        yield spent


def _counting(function: Any, phase: str, spent: dict[str, float]) -> Any:
    # What torch copies it copies on threads of its own, when no other is at work.
    clock = time.process_time if phase == "copy or assign" else time.thread_time

    def counted(*args: Any, **options: Any) -> Any:
        began = clock()
        try:
            return function(*args, **options)
        finally:
            spent[phase] += clock() - began

    return counted


if __name__ == "__main__":
    main()
