"""Output: data to standard output, all else to standard error, for people or as JSON.

On a terminal rich lays tables out, in its width and with colour. Into a pipe or a file they go as
plain lines, with two spaces between columns and nothing cut off.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol, TextIO

from mlstate.errors import MlstateError
from mlstate.phrases import in_shell
from mlstate.shown import printable, without_queries
from mlstate.states import StateKey
from mlstate.units import format_size

__all__ = [
    "ago",
    "be_quiet",
    "complain",
    "from_here",
    "has_colour",
    "human_count",
    "human_shape",
    "human_size",
    "is_lively",
    "is_quiet",
    "never_refuse",
    "note",
    "print_fields",
    "print_json",
    "print_table",
    "put",
    "put_lines",
    "put_marked",
    "put_written",
    "said",
    "tell",
    "warning",
]

_STEPS = ((365 * 86400, "year"), (30 * 86400, "month"), (86400, "day"), (3600, "hour"))


class HasText(Protocol):
    """What has a text of several lines: an error, or a finding."""

    def text(self, say: Callable[[object], str] = str) -> str:
        """The text, with each value in it as ``say`` has it."""


def said(value: object) -> str:
    """A value as part of a line: in the words of the command line, and as `mlstate.shown` has it.

    All that is printed goes through here; JSON, which has escapes of its own, through `print_json`.
    """
    return printable(without_queries(value if type(value) is str else in_shell(value)))


def put(text: str = "") -> None:
    """Print a line of data."""
    print(said(text))


def put_lines(what: HasText) -> None:
    """Print what has several lines."""
    print(what.text(said))


def put_marked(colour: int | None, word: str, rest: str) -> None:
    """Print a line of data whose first word stands out where there is colour, by ANSI's number."""
    coloured = colour is not None and has_colour(sys.stdout)
    print((f"\x1b[{colour}m{said(word)}\x1b[0m" if coloured else said(word)) + said(rest))


_quiet = False


def be_quiet() -> None:
    """Print no notes from now on; errors are told all the same."""
    global _quiet  # noqa: PLW0603  # of the process, as its streams are
    _quiet = True


def is_quiet() -> bool:
    """Whether no notes are printed, and no progress."""
    return _quiet


def note(text: str) -> None:
    """Print a line that is not data: what is going on, what was done."""
    if _quiet:
        return
    sys.stdout.flush()
    tell(said(text))


def warning(text: str) -> None:
    """Print what should be known, however little was asked for."""
    sys.stdout.flush()
    tell(said(f"warning: {text}"))


def complain(what: object, about: object | None = None) -> None:
    """Print what went wrong, an error or a text, in the words of the command line.

    Args:
        what: What went wrong.
        about: What that is about, to be put in front.
    """
    mark = "\x1b[1;31merror:\x1b[0m" if has_colour(sys.stderr) else "error:"
    text = what.text(said) if isinstance(what, MlstateError) else said(what)
    sys.stdout.flush()
    front = "" if about is None else f"{said(about)}: "
    tell(f"{mark} {front}{text}")


def tell(text: str) -> None:
    """Print to standard error; where that takes nothing (its disk is full), nobody can be told."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        # Else Python tries once more at its exit, and ends with a code of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def never_refuse() -> None:
    """Let the standard streams escape what their encoding lacks, such as that of ``LANG=C``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
    print(_json_text(_without_queries(members)))


def _without_queries(value: Any) -> Any:
    """JSON whose texts are as `mlstate.shown.without_queries` has them."""
    if isinstance(value, str):
        return without_queries(value)
    if isinstance(value, dict):
        return {without_queries(name): _without_queries(item) for name, item in value.items()}
    return [_without_queries(item) for item in value] if isinstance(value, list) else value


def _json_text(value: Any) -> str:
    """JSON in UTF-8, or in ASCII; what does not print is escaped as JSON has it."""
    ascii_only = (sys.stdout.encoding or "").lower().replace("_", "-") not in ("utf-8", "utf8")
    text = json.dumps(value, indent=2, ensure_ascii=ascii_only, allow_nan=False)
    return "\n".join(
        line if line.isprintable() else "".join(map(_escaped, line)) for line in text.split("\n")
    )


def _escaped(character: str) -> str:
    return (
        character
        if character.isprintable()
        else json.dumps(character)[1:-1].replace("\x7f", "\\u007f")
    )


def from_here(path: object) -> str:
    """A path as one would type it: relative, if it is below the working folder."""
    text = str(path)
    with suppress(OSError):  # the working folder is gone
        here = f"{os.getcwd()}{os.sep}"
        return text.removeprefix(here)
    return text


def put_written(
    command: str,
    keys: Sequence[StateKey],
    path: object,
    *,
    pinned_now: Sequence[StateKey],
    as_json: bool,
) -> None:
    """Print where something was written; for programs what was pinned by this first use, too."""
    if as_json:
        print_json(command, {"states": keys, "path": str(path), "pinned_now": pinned_now})
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
    listed = [tuple(map(said, row)) for row in rows]
    if not listed:
        return
    if sys.stdout.isatty():
        _rich_table(titles, listed)
        return
    from mlstate.operations.tables import aligned

    for line in aligned(titles, listed):
        print(line)


def _rich_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours: Literal["auto"] | None = "auto" if has_colour(sys.stdout) else None
    console = Console(color_system=colours, highlight=False)
    plain = [title.removeprefix(">") for title in titles]
    widths = [max(map(len, cells)) for cells in zip(plain, *rows, strict=True)]
    if len(titles) > 1 and sum(widths) + 2 * (len(widths) - 1) > console.width:
        _stacked(console, plain, rows, widths)
        return
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
    console.print(table)


def _stacked(
    console: Any, titles: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]
) -> None:
    """Print a table that is too wide with the first cell of a row on a line of its own.

    That is a name, which people copy: it must not be folded. A terminal breaks it if it is longer
    than a line, and copies it as one.
    """
    from rich.text import Text

    for row, style in ((titles, "bold"), *((row, "") for row in rows)):
        console.print(Text(row[0], style), soft_wrap=True)
        cells = [cell.ljust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        if rest := "  ".join(cells).rstrip():
            console.print(Text(f"    {rest}", style), soft_wrap=sum(widths[1:]) < console.width)


def print_fields(fields: Iterable[tuple[str, str | None]]) -> None:
    """Print names and values, a line each; those without a value are left out."""
    listed = [(name, value) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        put(f"{name.ljust(width)}  {value}")


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
