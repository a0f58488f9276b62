"""Compare ways to do one thing: interleaved in one run, medians, and ratios pair by pair.

The machine may be shared and noisy, so the times of one round stand next to each other and each is
divided by that of the same round's first way. Only the ratios are worth quoting.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = [
    "Figure",
    "Figures",
    "Row",
    "Table",
    "Way",
    "arguments_parser",
    "compare",
    "main_arguments",
    "report",
    "show",
]

PACKAGES = (
    "mlstate",
    "torch",
    "safetensors",
    "blake3",
    "requests",
    "urllib3",
    "huggingface_hub",
    "obstore",
    "boto3",
    "pooch",
)


@dataclass(frozen=True)
class Way:
    """One way to do it.

    Attributes:
        name: What it is called in the table.
        run: Does it once; only this is timed.
        clear: Called before each run: empties folders.
    """

    name: str
    run: Callable[[], object]
    clear: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Row:
    """What was measured of one way.

    Attributes:
        name: The way.
        seconds: The median time.
        ratio: The median of its time over that of the first way in the same round.
        least: The smallest such ratio.
        most: The largest.
        goal: What the ratio is to be at most, if anything was promised.
        best: The ratio of the two shortest times: what other work on the machine disturbed least.
    """

    name: str
    seconds: float
    ratio: float
    least: float
    most: float
    goal: float | None = None
    best: float | None = None


@dataclass(frozen=True)
class Table:
    """A comparison: all ways to do one thing."""

    title: str
    rounds: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Figure:
    """One thing that was measured, or could not be.

    Attributes:
        name: What.
        value: How much, in the unit of its `Figures`; None if it was not measured.
        goal: What the value is to be at most, if anything was promised.
        at: The size that it was measured at, where that varies: states, objects, bytes.
        note: Why it was not measured, or what else there is to say.
    """

    name: str
    value: float | None
    goal: float | None = None
    at: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """Things measured in one unit, which may be other than seconds."""

    title: str
    unit: str
    rows: tuple[Figure, ...]


def show(figures: Figures) -> Figures:
    """Print figures, and give them back."""
    print(f"\n{figures.title}, {figures.unit}")
    width = max(len(row.name) for row in figures.rows)
    for row in figures.rows:
        size = "" if row.at is None else f"{row.at:>9,}"
        value = "not measured" if row.value is None else f"{row.value:12,.3f}"
        goal = "" if row.goal is None else f"   goal {row.goal:g}"
        print(f"  {row.name:{width}} {size} {value}{goal} {row.note}".rstrip(), flush=True)
    return figures


def compare(
    title: str,
    ways: Sequence[Way],
    *,
    rounds: int,
    warm_up: bool = True,
    goals: Mapping[str, float] | None = None,
) -> Table:
    """Run every way in turn, round after round; the first one is what the others are held against.

    Args:
        title: What is being done.
        ways: How.
        rounds: How often.
        warm_up: Whether a round that does not count comes first.
        goals: Way -> what its ratio is to be at most.
    """
    times: dict[str, list[float]] = {way.name: [] for way in ways}
    for round_ in range(-1 if warm_up else 0, rounds):
        for way in ways:
            way.clear()
            began = time.perf_counter()
            way.run()
            took = time.perf_counter() - began
            if round_ >= 0:
                times[way.name].append(took)
    base = times[ways[0].name]
    rows = []
    for name, measured in times.items():
        ratios = [took / other for took, other in zip(measured, base, strict=True)]
        middle, least, most = statistics.median(ratios), min(ratios), max(ratios)
        goal = (goals or {}).get(name)
        best = min(measured) / min(base)
        rows.append(Row(name, statistics.median(measured), middle, least, most, goal, best))
    table = Table(title, rounds, tuple(rows))
    print(_text(table), flush=True)
    return table


def _text(table: Table) -> str:
    lines = [f"\n{table.title} ({table.rounds} rounds)"]
    width = max(len(row.name) for row in table.rows)
    for row in table.rows:
        goal = "" if row.goal is None else f"   goal {row.goal:.2f}"
        best = "" if row.best is None else f", best {row.best:.2f}"
        span = f"({row.least:.2f} to {row.most:.2f}{best})"
        lines.append(f"  {row.name:{width}} {row.seconds:8.3f} s  {row.ratio:6.2f} {span}{goal}")
    return "\n".join(lines)


def main_arguments(description: str) -> argparse.Namespace:
    """The arguments that every benchmark takes."""
    return arguments_parser(description).parse_args()


def arguments_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the arguments that every benchmark takes, for one that takes more."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (7)")
    parser.add_argument("--json", type=Path, help="write the results here")
    return parser


def report(tables: Sequence[Table | Figures], path: Path | None, *, keep: bool = False) -> None:
    """Write the tables as JSON, with the machine described.

    Args:
        tables: What was measured.
        path: Where to.
        keep: Leave tables of other titles there: only a part was measured again.
    """
    if path is not None:
        written = [asdict(table) for table in tables]
        if keep and path.exists():
            old = {table["title"]: table for table in json.loads(path.read_text())["tables"]}
            written = list((old | {table["title"]: table for table in written}).values())
        found = {"machine": machine(), "tables": written}
        path.write_text(json.dumps(found, indent=1) + "\n")


def machine() -> dict[str, object]:
    """What the figures were measured on; nothing that names the machine itself."""
    cpu = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    model = [line.partition(":")[2].strip() for line in cpu.splitlines() if "Model name" in line]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model[0] if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
