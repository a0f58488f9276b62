"""Write the tables of load and save in docs/performance.md: ``python -m benchmarks.page``.

Those tables of the page that `TABLES` lists are made anew from benchmarks/results/, in order; what
is said around them is a person's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["PAGE", "page"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
MODELS = ("ResNet-50", "BERT-base", "LLM", "MiniLM")
# The file, the end of a table's title there, and the first row by which the page's table is known.
TABLES = (
    ("load", "warm", "load_file + load_state_dict"),
    ("load", "warm, held against sha256", "sha256 of the file + the same"),
    ("load", "cold", "load_file + load_state_dict"),
    ("save", "new, no fsync on either side", "save_file"),
    ("save", "new, durable on both sides", "save_file + fsync"),
    ("save", "nothing changed", "save_file"),
)
_TABLE = re.compile(r"^\|.*\|\n\|[-|]+\|\n(?:\|.*\|\n)+", re.M)


def page(text: str) -> str:
    """The page with its tables as the results have them."""
    wanted = iter(TABLES)
    nearest = next(wanted, None)
    parts, end = [], 0
    for found in _TABLE.finditer(text):
        row = found[0].splitlines()[2]
        if nearest is None or not row.startswith(f"| {nearest[2]} |"):
            continue
        parts += [text[end : found.start()], _table(nearest[0], nearest[1])]
        end, nearest = found.end(), next(wanted, None)
    if nearest is not None:
        raise ValueError(f"the page has no table for {nearest}")
    return "".join([*parts, text[end:]])


def _table(name: str, what: str) -> str:
    """A table: the ways to do it, by model."""
    results = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    having = {}
    for model in MODELS:
        for table in results["tables"]:
            if re.fullmatch(
                rf"{name}, {model}, [^,]+(?: tensors)?, {re.escape(what)}", table["title"]
            ):
                having[model] = {row["name"]: row for row in table["rows"]}
    lines = [["", *having], ["---"] * (1 + len(having))]
    for way in next(iter(having.values())):
        lines.append([way, *(_cell(rows[way]) for rows in having.values())])
    return "".join(_lines(lines))


def _cell(row: dict[str, Any]) -> str:
    if row["least"] == row["most"] == 1:
        return f"1.00 ({1000 * row['seconds']:.0f} ms)"
    if not row["name"].startswith("mlstate"):
        return f"{row['ratio']:.2f}"
    goal = "" if row["goal"] is None else f", goal {row['goal']:g}"
    return f"{row['ratio']:.2f} ({row['least']:.2f} to {row['most']:.2f}{goal})"


def _lines(lines: list[list[str]]) -> Iterator[str]:
    for cells in lines:
        yield (
            "| " + " | ".join(cells) + " |\n"
            if cells[0] != "---"
            else "|" + "|".join(cells) + "|\n"
        )


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
