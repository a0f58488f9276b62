"""`add --all`: what becomes of each of the weights below a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlstate.cli.exit_codes import OK, REFUSED, exit_code
from mlstate.cli.output import complain, human_count, human_size, note, print_json, print_table

if TYPE_CHECKING:
    from mlstate.operations.adopt_all import AdoptAllReport

__all__ = ["add_all"]


def add_all(folder: str, target: Any, key: str, *, as_json: bool, **options: Any) -> int:
    """Adopt all weights below a folder, print a table or JSON, and give the exit code.

    Args:
        folder: The folder.
        target: The store, or the path of a manifest.
        key: The template of keys.
        as_json: Print JSON.
        options: As for `mlstate.adopt_all`.
    """
    from mlstate.operations.adopt_all import adopt_all

    report = adopt_all(folder, target, key, **options)
    if as_json:
        print_json("add-all", {"dry_run": options["dry_run"]}, report)
    else:
        _print(report)
    codes = {exit_code(error) for _, error in report.failures}
    return OK if not codes else codes.pop() if len(codes) == 1 else REFUSED


def _print(report: AdoptAllReport) -> None:
    print_table(
        ["SOURCE", "KEY", ">SIZE", ">NEW", ">SHARED", "RESULT"],
        (
            [
                state.source,
                state.key,
                *(
                    ["", "", ""]
                    if state.size is None
                    else map(human_size, (state.size, state.added, state.spared))
                ),
                state.result,
            ]
            for state in report.states
        ),
    )
    for source, error in report.failures:
        complain(error, source)
    results = [state.result for state in report.states]
    counts = [f"{results.count(each)} {each}" for each in dict.fromkeys(sorted(results))]
    sizes = f"; {human_size(report.added)} new, {human_size(report.spared)} shared"
    moved = "stored" in results or "existed" in results
    note(f"{human_count(len(results), 'source')}: {', '.join(counts)}{sizes if moved else ''}")
