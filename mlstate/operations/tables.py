"""Reports as tables: of lines where one is printed, of HTML in a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from mlstate.shown import printable
from mlstate.units import format_size

__all__ = ["Table", "Tabular", "aligned", "size_cell"]

_NUMBER = ">"


@dataclass(frozen=True)
class Table:
    """The cells of a table.

    Attributes:
        titles: The title of each column; one that begins with ``>`` has numbers below it.
        rows: The cells of each row.
        summary: A line about all of it.
    """

    titles: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    summary: str


class Tabular:
    """A report that prints as a table; its `repr` has all that it knows."""

    def _table(self) -> Table:
        raise NotImplementedError

    def __str__(self) -> str:
        table = self._table()
        rows = [tuple(map(printable, row)) for row in table.rows]
        return "\n".join([*(aligned(table.titles, rows) if rows else ()), table.summary])

    def _repr_html_(self) -> str:
        """The table for a notebook."""
        table = self._table()
        heads = "".join(_html_cell("th", title, title) for title in table.titles)
        rows = "".join(
            f"<tr>{''.join(map(_html_cell, ['td'] * len(row), table.titles, row))}</tr>"
            for row in table.rows
        )
        body = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        return f"{body if rows else ''}<p>{html.escape(printable(table.summary))}</p>"


def _html_cell(tag: str, title: str, text: str) -> str:
    side = "right" if title.startswith(_NUMBER) else "left"
    shown = html.escape(printable(text.removeprefix(_NUMBER)))
    return f'<{tag} style="text-align: {side}">{shown}</{tag}>'


def aligned(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: two spaces between columns, numbers to the right, nothing cut off.

    Example:
        >>> aligned(["NAME", ">SIZE"], [["bias", "4 B"], ["weight", "4.1 kB"]])
        ['NAME      SIZE', 'bias       4 B', 'weight  4.1 kB']
    """
    lines = [tuple(title.removeprefix(_NUMBER) for title in titles), *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return ["  ".join(map(_padded, titles, line, widths)).rstrip() for line in lines]


def _padded(title: str, cell: str, width: int) -> str:
    return cell.rjust(width) if title.startswith(_NUMBER) else cell.ljust(width)


def size_cell(nbytes: int | None) -> str:
    """A number of bytes as the cell of a table; a question mark if it is not known."""
    return "?" if nbytes is None else format_size(nbytes)
