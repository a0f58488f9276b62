"""The command that makes something to look at: `report`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mlstate.cli.keys import chosen_keys
from mlstate.cli.options import (
    Json,
    Keys,
    Overwrite,
    StoreArgument,
    StoreOption,
    opened,
    store_and_keys,
)
from mlstate.cli.output import from_here, human_count, human_size, note, print_json, put

if TYPE_CHECKING:
    from mlstate.operations.verify.report import Finding

__all__ = ["report"]

_OUTPUT = "report.html"


def report(
    context: typer.Context,
    where: StoreArgument = None,
    keys: Keys = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html",
            help=f"The file to write: {_OUTPUT} by default, none with --json.",
        ),
    ] = None,
    no_values: Annotated[
        bool,
        typer.Option("--no-values", help="Say which tensors differ, not by how much: read none."),
    ] = False,
    findings: Annotated[
        str | None,
        typer.Option(
            "--findings",
            metavar="FILE.json",
            help="Show the findings in what mlstate verify --json printed.",
        ),
    ] = None,
    store: StoreOption = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a page to look at: space, layers that each state changed, lineage, findings.

    One HTML file, for a browser without a network. Tensors that differ are read and compared once;
    the numbers are kept in the cache folder. Nothing is fetched. An earlier report is replaced.
    With --store, what would be STORE is the first KEY.
    """
    from mlstate.cli.progress import progress
    from mlstate.operations.report.report import report as make_report

    name, words = store_and_keys(context, where, keys or [], store)
    target = output or (None if as_json else _OUTPUT)
    found = _read(findings)
    view = opened(name, quiet=True)
    made = make_report(
        view,
        chosen_keys(view, words, everything=None) if words else None,
        values=not no_values,
        findings=found,
        progress=progress(),
    )
    if target is not None:
        made.write(target, overwrite=overwrite)
    if as_json:
        print_json("report", made)
    else:
        put(from_here(target))
    used = made.usage
    note(f"{human_count(len(used.states), 'state')}, {human_size(used.total)} of objects")


def _read(path: str | None) -> tuple[Finding, ...] | None:
    if path is None:
        return None
    from mlstate.files import read_input
    from mlstate.operations.report.findings import read_findings

    return read_findings(read_input(path, 64 << 20), path)
