"""The command that looks for trouble: `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlstate.cli.default_store import default_store, project_here
from mlstate.cli.exit_codes import FINDING, OK
from mlstate.cli.options import Json, StoreOption
from mlstate.cli.output import print_fields, print_json, put
from mlstate.phrases import in_shell

if TYPE_CHECKING:
    from mlstate.operations.doctor.doctor import Check, Diagnosis

__all__ = ["doctor"]

_MARKS = {True: "ok", False: "PROBLEM", None: "-"}


def doctor(
    store: StoreOption = None,
    no_network: Annotated[
        bool, typer.Option("--no-network", help="Open no socket; mirrors are not asked.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Look for trouble: versions, settings, the cache and its disk, whether mirrors answer.

    Nothing is changed, and no token is shown. The exit code is 1 if there is a PROBLEM.
    """
    from mlstate.operations.doctor.doctor import diagnose

    there: Any = store if store is not None or project_here() is None else default_store()
    found = diagnose(there, reach=not no_network, offline=True if no_network else None)
    if as_json:
        print_json("doctor", {"ok": found.ok}, found)
    else:
        _print(found)
    return OK if found.ok else FINDING


def _print(found: Diagnosis) -> None:
    print_fields(
        (name, "not installed" if version is None else version)
        for name, version in found.versions.items()
    )
    put()
    print_fields(
        (name, f"not set: {default}" if value is None else value)
        for name, value, default in found.settings
    )
    put()
    width = max((len(check.name) for check in found.checks), default=0)
    for check in found.checks:
        _print_check(check, width)


def _print_check(check: Check, width: int) -> None:
    put(f"{_MARKS[check.ok].ljust(7)}  {check.name.ljust(width)}  {check.found}")
    if check.remedy is not None:
        put(f"{' ' * 9}what to do: {in_shell(check.remedy)}")
