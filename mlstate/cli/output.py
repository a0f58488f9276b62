"""Output: data to standard output, all else to standard error, for people or as JSON.

On a terminal rich lays tables out, in its width and with colour. Into a pipe or a file they go as
plain lines, with two spaces between columns and nothing cut off.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TextIO

from mlstate.errors import MlstateError
from mlstate.phrases import in_shell
from mlstate.states import StateKey
from mlstate.units import format_size

__all__ = [
    "ago",
    "complain",
    "has_colour",
    "human_count",
    "human_shape",
    "human_size",
    "is_lively",
    "note",
    "print_fields",
    "print_json",
    "print_table",
    "printable",
    "put",
    "put_written",
]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_STEPS = ((365 * 86400, "year"), (30 * 86400, "month"), (86400, "day"), (3600, "hour"))


def printable(text: str) -> str:
    """Return a text whose control characters show, and do nothing: names come from any file."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def put(text: str = "") -> None:
    """Print a line of data."""
    print(printable(text))


def note(text: str) -> None:
    """Print a line that is not data: what is going on, what was done."""
    sys.stdout.flush()
    print(printable(text), file=sys.stderr, flush=True)


def complain(what: object) -> None:
    """Print what went wrong, an error or a text, in the words of the command line."""
    mark = "\x1b[1;31merror:\x1b[0m" if has_colour(sys.stderr) else "error:"
    sys.stdout.flush()
    print(mark, end=" ", file=sys.stderr)
    note(what.text(in_shell) if isinstance(what, MlstateError) else in_shell(what))


def print_json(command: str, *reports: object) -> None:
    """Print a command's reports as one object; see `mlstate.cli.printed`.

    Args:
        command: The name of the command.
        reports: Reports, or mappings, whose members follow each other. Of two with the same name
            the first stays.
    """
    from mlstate.operations.reports import to_json

    members: dict[str, Any] = {"schema": f"mlstate.{command}/1"}
    for report in reports:
        members |= to_json(report) | members
    print(json.dumps(members, indent=2, ensure_ascii=False))


def put_written(command: str, keys: Sequence[StateKey], path: object, *, as_json: bool) -> None:
    """Print where something was written."""
    if as_json:
        print_json(command, {"states": keys, "path": str(path)})
    else:
        put(str(path))


def is_lively(stream: TextIO) -> bool:
    """Whether a stream may show bars: it is a terminal, and not that of a CI job."""
    return stream.isatty() and os.environ.get("CI", "").lower() in ("", "0", "false")


def has_colour(stream: TextIO) -> bool:
    """Whether a stream may show colour; see no-color.org."""
    return is_lively(stream) and not os.environ.get("NO_COLOR")


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; nothing at all if it has no rows.

    Args:
        titles: The title of each column. One that begins with ``>`` has numbers below it, which are
            set to the right and never broken over lines.
        rows: The cells of each row.
    """
    listed = [tuple(map(printable, row)) for row in rows]
    if not listed:
        return
    if sys.stdout.isatty():
        _rich_table(titles, listed)
        return
    lines = [tuple(title.removeprefix(">") for title in titles), *listed]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if title.startswith(">") else cell.ljust(width)
            for title, cell, width in zip(titles, line, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _rich_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        number = title.startswith(">")
        # Names have no spaces to break at: they are folded, so that nothing is lost.
        table.add_column(
            title.removeprefix(">"),
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    colours: Literal["auto"] | None = "auto" if has_colour(sys.stdout) else None
    Console(color_system=colours, highlight=False).print(table)


def print_fields(fields: Iterable[tuple[str, str | None]]) -> None:
    """Print names and values, a line each; those without a value are left out."""
    listed = [(name, value) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        print(printable(f"{name.ljust(width)}  {value}"))


def human_size(count: int | None) -> str:
    """A number of bytes for people; a question mark if it is not known."""
    return "?" if count is None else format_size(count)


def human_count(count: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> human_count(1, "state"), human_count(1200, "state")
        ('1 state', '1,200 states')
    """
    return f"{count:,} {noun if count == 1 else noun + 's'}"


def human_shape(shape: Sequence[int]) -> str:
    """The shape of a tensor: ``2x3``."""
    return "x".join(map(str, shape)) or "scalar"


def ago(moment: float | None) -> str:
    """The time since a moment, which is in seconds since the epoch, for people."""
    if moment is None:
        return ""
    passed = time.time() - moment
    for step, name in _STEPS:
        if passed >= step:
            return f"{human_count(int(passed // step), name)} ago"
    return "just now" if passed < 60 else f"{human_count(int(passed // 60), 'minute')} ago"
