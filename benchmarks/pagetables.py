"""The tables of docs/performance.md, made of the results: what they are called there, and how."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["TABLES"]

RESULTS = Path(__file__).parent / "results"
MODELS = ("ResNet-50", "BERT-base", "LLM", "MiniLM")
SMALL_SHARE = 3
"""Percent of the time; kinds of work below it are not named one by one."""


def _by_model(file: str, what: str) -> str:
    """Ways to do one thing, by model: their ratios to the first way."""
    having = {}
    for model in MODELS:
        for title, rows in _results(file).items():
            if re.fullmatch(rf"{file}, {model}, [^,]+(?: tensors)?, {re.escape(what)}", title):
                having[model] = {row["name"]: row for row in rows}
    lines = [
        [way, *(_ratio(rows[way]) for rows in having.values())]
        for way in next(iter(having.values()))
    ]
    return _markdown(["way", *having], lines)


def _ways(file: str, columns: Mapping[str, str]) -> str:
    """Ways to do several things: title of the results -> head of the column."""
    results = _results(file)
    having = {head: {row["name"]: row for row in results[title]} for title, head in columns.items()}
    names = dict.fromkeys(name for rows in having.values() for name in rows)
    lines = [
        [name, *(_ratio(rows[name]) if name in rows else "" for rows in having.values())]
        for name in names
    ]
    return _markdown(["way", *having], lines)


def _ratio(row: Mapping[str, Any]) -> str:
    if row["least"] == row["most"] == 1:
        seconds = row["seconds"]
        return f"1.00 ({seconds:.1f} s)" if seconds >= 10 else f"1.00 ({1000 * seconds:.0f} ms)"
    own = row["name"].startswith("mlstate") or row["name"] == "the second save"
    if not own:
        return f"{row['ratio']:.2f}"
    goal = "" if row["goal"] is None else f", goal {row['goal']:g}"
    return f"{row['ratio']:.2f} ({row['least']:.2f} to {row['most']:.2f}{goal})"


def _memory() -> str:
    rows = _results("memory")["peak memory of the process's own, beyond the model"]
    found = {tuple(row["name"].split(", ", 1)): row["value"] for row in rows}
    what = dict.fromkeys(name for _, name in found)
    lines = [[name, *(f"{found[model, name]:.1f}" for model in MODELS)] for name in what]
    return _markdown(["MB, own memory", *MODELS], lines)


def _phases(model: str) -> str:
    tables = {
        title.removeprefix(f"{model}, "): {row["name"]: row["value"] for row in rows}
        for title, rows in _results("phases").items()
        if title.startswith(f"{model}, ")
    }
    names = dict.fromkeys(name for rows in tables.values() for name in rows)
    last = [name for name in ("the rest", "all") if name in names]
    lines = [
        [name, *(f"{rows[name]:.3g}" if name in rows else "" for rows in tables.values())]
        for name in [*(name for name in names if name not in last), *last]
    ]
    return _markdown([model, *tables], lines)


def _figures(file: str, title: str, form: str, *, goals: bool = False) -> str:
    rows = _results(file)[title]
    lines = []
    for row in rows:
        value = "not measured" if row["value"] is None else format(row["value"], form)
        name = f"{row['name']} {row['note']}".strip()
        goal = [f"{row['goal']:g}" if row["goal"] is not None else ""] if goals else []
        lines.append([name, value, *goal])
    return _markdown(["what", _unit(file, title), *(["goal"] if goals else [])], lines)


def _by_size(file: str, title: str, form: str, head: str) -> str:
    """Figures at several sizes."""
    found: dict[str, dict[int, float]] = {}
    for row in _results(file)[title]:
        if row["at"] is not None:
            found.setdefault(row["name"], {})[row["at"]] = row["value"]
    sizes = dict.fromkeys(size for row in found.values() for size in row)
    lines = [[name, *(format(row[size], form) for size in sizes)] for name, row in found.items()]
    return _markdown([f"{_unit(file, title)}; {head}", *(f"{size:,}" for size in sizes)], lines)


def _columns(file: str, columns: Mapping[str, str], form: str, head: str) -> str:
    """Figures of the same things: title of the results -> head of the column."""
    results = _results(file)
    found = [{row["name"]: _valued(row, form) for row in results[title]} for title in columns]
    names = dict.fromkeys(name for column in found for name in column)
    lines = [[name, *(column.get(name, "") for column in found)] for name in names]
    return _markdown([head, *columns.values()], lines)


def _valued(row: Mapping[str, Any], form: str) -> str:
    note = [] if not row["note"] else [row["note"].strip("()")]
    goal = [] if row["goal"] is None else [f"goal {row['goal']:g}"]
    more = ", ".join(note + goal)
    return format(row["value"], form) + (f" ({more})" if more else "")


def _profiles() -> str:
    lines = []
    for job, rows in _results("profiles").items():
        shares = {row["name"]: row["value"] for row in rows}
        named = [f"{kind} {share:.0f}" for kind, share in shares.items() if share >= SMALL_SHARE]
        lines.append([job, ", ".join(named)])
    return _markdown(["job", "% of the processor's time"], lines)


def _checkpoints() -> str:
    results = _results("checkpoints")
    what = next(title for title in results if title.endswith(": add one")).partition(":")[0]
    disk = {row["name"]: row for row in results[f"{what}: disk"]}
    restoring = next(t for t in results if t.startswith(f"{what}: restore one"))
    add = {row["name"]: row["seconds"] for row in results[f"{what}: add one"]}
    restore = {row["name"]: row["seconds"] for row in results[restoring]}
    own_add, own_restore = add["mlstate, durable"], restore["mlstate load_state_dict"]
    lines = []
    for name, row in disk.items():
        label = f"{name} {row['note']}".strip()
        if name == "mlstate":
            materialize = restore["mlstate materialize, durable"] / own_restore
            added = f"1 ({own_add:.2f} s)"
            restored = f"1 ({own_restore:.2f} s); `materialize` {materialize:.1f}"
        elif name in add:
            added = f"{add[name] / own_add:.1f}"
            restored = f"{restore[name] / own_restore:.1f}"
        else:
            added = restored = ""
        lines.append([label, f"{row['value']:,.0f}", added, restored])
    heads = [
        "tool",
        "disk, MB",
        "add one, times mlstate's",
        "restore one, times `load_state_dict`'s",
    ]
    return _markdown(heads, lines)


def _every_weight() -> str:
    title = next(t for t in _results("checkpoints") if t.endswith("every weight changed: disk"))
    return _figures("checkpoints", title, ",.0f")


def _results(file: str) -> dict[str, list[dict[str, Any]]]:
    """Title of a table -> its rows."""
    tables = json.loads((RESULTS / f"{file}.json").read_text())["tables"]
    return {table["title"]: table["rows"] for table in tables}


def _unit(file: str, title: str) -> str:
    tables = json.loads((RESULTS / f"{file}.json").read_text())["tables"]
    return str(next(table["unit"] for table in tables if table["title"] == title))


def _markdown(heads: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    listed = list(heads)
    rows = [listed, ["---"] * len(listed), *lines]
    return "".join(
        "|" + "|".join(row) + "|\n" if index == 1 else "| " + " | ".join(row) + " |\n"
        for index, row in enumerate(map(list, rows))
    )


def _peered(kind: str) -> dict[str, str]:
    title = f"fine-tuned, 2e-5, 500 steps, {kind}"
    return {
        f"{title}: size": "of the raw data",
        f"{title}: encode": "encode, GB/s of a processor",
        f"{title}: decode": "decode",
    }


_UP = "2000 MB in 64 tensors, Ceph"
TABLES: dict[str, Callable[[], str]] = {
    "load warm": partial(_by_model, "load", "warm"),
    "load against sha256": partial(_by_model, "load", "warm, held against sha256"),
    "load cold": partial(_by_model, "load", "cold"),
    "save unsynced": partial(_by_model, "save", "new, no fsync on either side"),
    "save durable": partial(_by_model, "save", "new, durable on both sides"),
    "save unchanged": partial(_by_model, "save", "nothing changed"),
    "fetch": partial(
        _ways,
        "fetch",
        {
            "one file of 438 MB, loopback": "one file of 438 MB",
            "438 MB in 76 objects, 50 ms of latency a request": "76 objects, 50 ms away",
            "2,000 objects of 20 KB, loopback": "2,000 objects of 20 KB",
            "2,000 objects of 20 KB, 50 ms of latency a request": "the same, 50 ms away",
        },
    ),
    "tuned": partial(
        _ways,
        "tuned",
        {
            "a checkpoint of 438 MB whose base is there, 50 ms of latency a request": (
                "a checkpoint of 438 MB"
            )
        },
    ),
    "s3": partial(
        _ways,
        "s3",
        {
            f"up: {_UP}": "up",
            f"down: {_UP}": "down",
            f"the second save: one tensor of 64 differs, {_UP}": "one tensor of 64 differs",
        },
    ),
    "memory": _memory,
    "phases BERT-base": partial(_phases, "BERT-base"),
    "phases ResNet-50": partial(_phases, "ResNet-50"),
    "profiles": _profiles,
    "limits": partial(_figures, "limits", "what this machine can do", ".1f"),
    "checkpoints": _checkpoints,
    "checkpoints, every weight": _every_weight,
    "other states": partial(
        _by_size, "scale", "states of other architectures", ".2f", "states beside them"
    ),
    "own states": partial(_by_size, "scale", "states of the architecture itself", ".2f", "states"),
    "objects": partial(
        _by_size, "scale", "objects of a store, half of them named by no state", ".2f", "objects"
    ),
    "memory of objects": partial(
        _by_size, "scale", "anonymous memory at its peak, beyond the imports", ".1f", "objects"
    ),
    "index, first": partial(_by_size, "index", "the first time, without an index", ".2f", "states"),
    "index, second": partial(_by_size, "index", "the second time, by the index", ".2f", "states"),
    "index, one type": partial(_by_size, "index", "one architecture of many", ".2f", "states"),
    "encoded, sizes": partial(
        _columns,
        "encoded",
        {
            f"size of {what}, {kind}": f"{kind}, {what}"
            for kind in ("bf16", "fp32")
            for what in ("the layers", "all tensors")
        },
        ".3f",
        "of the raw data",
    ),
    "encoded, speed": partial(
        _columns,
        "encoded",
        {
            f"{what} by a thread, {kind}": f"{kind}, {what}"
            for kind in ("bf16", "fp32")
            for what in ("encode", "decode")
        },
        ".2f",
        "GB/s",
    ),
    "encoded, bf16, peers": partial(_columns, "encoded", _peered("bf16"), ".3g", "way"),
    "encoded, fp32, peers": partial(_columns, "encoded", _peered("fp32"), ".3g", "way"),
    "encoded, chain": partial(
        _columns,
        "encoded_stores",
        {f"checkpoints 100 steps apart, {kind}": kind for kind in ("bf16", "fp32")},
        ".3f",
        "of the files",
    ),
    "encoded, loads": partial(
        _ways,
        "encoded_stores",
        {
            f"load of BERT-base in {kind}, {how}, {state}": f"{kind}, {how}, {state}"
            for kind in ("bf16", "fp32")
            for how in ("assign=True", "into the model")
            for state in ("warm", "cold")
        },
    ),
    "startup": partial(
        _figures,
        "startup",
        "processor time beyond that of python -c pass, 31 runs",
        ".0f",
        goals=True,
    ),
    "browser": partial(
        _figures,
        "browser",
        "a report of 200 states with 500 tensors each in Chromium",
        ".0f",
        goals=True,
    ),
    "regression": partial(
        _figures, "regression", "least time over that of plain work on the same bytes", ".2f"
    ),
}
"""Name of a table on the page -> what makes it."""
