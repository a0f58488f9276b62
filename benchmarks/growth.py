"""How times grow with size and number, measured and drawn: ``python -m benchmarks.growth``.

Without ``--measure`` it draws: results/growth.json (time against size), results/scale.json (time
against the number of states and objects) and results/index.json (the same, of whole commands)
become docs/images/*.svg, byte for byte the same each time. With it, it measures the first of them,
too.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.harness import Figure, Figures, Table, Way, arguments_parser, compare, report, show
from benchmarks.svg import Series, line_chart
from mlstate import LocalStateStore, StateKey, StateType, with_state_type

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZES = (16, 64, 256, 1024)
TENSOR = 4
"""The size of each tensor, in MB."""
GROWING = StateType("pytorch", "growing")
LOAD, SAVE = "load", "save"


def main() -> None:
    """Measure if asked to, and draw."""
    parser = arguments_parser(__doc__ or "")
    parser.add_argument("--measure", action="store_true", help="measure time against size, first")
    arguments = parser.parse_args()
    if arguments.measure:
        figures = by_size(arguments.rounds)
        report(figures, arguments.json or RESULTS / "growth.json")
    IMAGES.mkdir(exist_ok=True)
    for name, text in drawn(RESULTS).items():
        (IMAGES / name).write_text(text)
        print(f"docs/images/{name}")


# Measuring.


def by_size(rounds: int) -> list[Figures]:
    """Load and save states of several sizes; medians."""
    times: dict[str, list[Figure]] = {LOAD: [], SAVE: []}
    for size in SIZES:
        torch.manual_seed(size)
        parameters = [torch.randn(TENSOR * 250_000) for _ in range(size // TENSOR)]
        with tempfile.TemporaryDirectory() as name:
            bench = Bench(Path(name), parameters)
            for what, ways in ((SAVE, bench.saving()), (LOAD, bench.loading())):
                table = compare(f"{what} {size} MB in tensors of {TENSOR} MB", ways, rounds=rounds)
                times[what] += rows_of(table, size)
    return [show(Figures(f"{what}, by size in MB", "s", tuple(times[what]))) for what in times]


def rows_of(table: Table, size: int) -> list[Figure]:
    """The median times of a table."""
    return [Figure(row.name, row.seconds, at=size) for row in table.rows]


class Bench:
    """A model, a file and a store.

    Args:
        folder: Where they lie.
        parameters: The model's.
    """

    def __init__(self, folder: Path, parameters: list[torch.Tensor]) -> None:
        self.file, self.folder = folder / "model.safetensors", folder / "store"
        modules = torch.nn.ParameterList(parameters)
        self.model: Any = with_state_type(modules, GROWING)
        self.key = StateKey(GROWING, "seed")

    def saving(self) -> list[Way]:
        """Each makes durable what it writes, and begins with nothing there."""

        def plain() -> None:
            save_file(self.model.state_dict(), self.file)
            descriptor = os.open(self.file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

        def save() -> None:
            LocalStateStore(self.folder).save(self.model, "seed")

        return [
            Way("save_file + fsync, unhashed", plain, lambda: self.file.unlink(missing_ok=True)),
            Way("mlstate", save, lambda: shutil.rmtree(self.folder, ignore_errors=True)),
        ]

    def loading(self) -> list[Way]:
        """Into a model; what is mapped goes into one of its own."""
        store = LocalStateStore(self.folder)
        mapped: Any = with_state_type(
            torch.nn.ParameterList([torch.zeros_like(p) for p in self.model]), GROWING
        )
        return [
            Way(
                "load_file + load_state_dict, unverified",
                lambda: self.model.load_state_dict(load_file(self.file)),
            ),
            Way("mlstate, into the model", lambda: store.load(self.model, self.key)),
            Way("mlstate, assign=True", lambda: store.load(mapped, self.key, assign=True)),
        ]


# Drawing.


def drawn(results: Path) -> dict[str, str]:
    """The charts of the results in a folder: file name -> content."""
    size, scale = _read(results / "growth.json"), _read(results / "scale.json")
    index = _read(results / "index.json")
    return {
        "growth-size.svg": line_chart(
            "Load and save, by size",
            "size of the state, MB",
            "time, ms (both axes logarithmic)",
            [
                *_lines(size, "load", 1000, lambda name: f"load: {name}"),
                *_lines(size, "save", 1000, lambda name: f"save: {name}"),
            ],
        ),
        "growth-states.svg": line_chart(
            "Listing and finding, by number of states",
            "states in the store",
            "time, ms (both axes logarithmic)",
            [
                *_lines(scale, "states of other", 1, lambda name: f"among others: {name}"),
                *_lines(scale, "states of the", 1, lambda name: f"all of the type: {name}"),
            ],
        ),
        "growth-objects.svg": line_chart(
            "Pruning and verifying, by number of objects",
            "objects in the store",
            "time, ms (both axes logarithmic)",
            _lines(scale, "objects", 1000, lambda name: name),
        ),
        "growth-index.svg": line_chart(
            "Commands, by number of related states",
            "states in the store, of 100 tensors each",
            "processor time of the process, ms (both axes logarithmic)",
            [
                *_lines(index, "the first time", 1000, lambda name: f"first: {name}")[:2],
                *_lines(index, "the second time", 1000, lambda name: f"second: {name}"),
            ],
        ),
    }


def _read(path: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(path.read_text())
    return found


def _lines(
    results: Mapping[str, Any], title: str, factor: float, named: Callable[[str], str]
) -> list[Series]:
    """The rows of one table as lines: those that were measured at two sizes and more."""
    points: dict[str, list[tuple[float, float]]] = {}
    for table in results["tables"]:
        for row in table["rows"] if table["title"].startswith(title) else ():
            if row["at"] is not None and row["value"] is not None:
                points.setdefault(row["name"], []).append((row["at"], row["value"] * factor))
    return [Series(named(name), tuple(sorted(at))) for name, at in points.items() if len(at) > 1]


if __name__ == "__main__":
    main()
