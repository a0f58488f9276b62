"""The command for hooks and CI: `check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mlstate.cli.exit_codes import FINDING, OK
from mlstate.cli.options import Json
from mlstate.cli.output import human_count, note, print_json, put, put_lines

if TYPE_CHECKING:
    from mlstate.operations.check import CheckReport

__all__ = ["check"]

_MOST = 5  # files that are named


def check(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Manifests, or folders of them.", show_default=False),
    ] = None,
    mirrors: Annotated[
        bool,
        typer.Option(
            "--mirrors", help="Ask each mirror whether it has what is named, and its size."
        ),
    ] = False,
    staged: Annotated[
        bool,
        typer.Option(
            "--staged", help="What the next commit of this repository changes, as it is staged."
        ),
    ] = False,
    allow_unpinned: Annotated[
        bool, typer.Option("--allow-unpinned", help="Let states without a digest pass.")
    ] = False,
    pass_over: Annotated[
        bool, typer.Option("--pass-over", help="Pass over files that are no manifests.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Check manifests before others get them: they can be read, and every state is pinned.

    For hooks and CI. With --mirrors also that every mirror has what it is named for; bytes are
    compared with digests by mlstate fetch and verify. Exit code 1 if something is wrong.
    """
    from mlstate.operations.check import check_manifests, check_staged

    if bool(files) == staged:
        raise typer.BadParameter("give manifests, or --staged")
    if staged:
        report = check_staged(mirrors=mirrors, allow_unpinned=allow_unpinned)
    else:
        report = check_manifests(
            files or [], mirrors=mirrors, allow_unpinned=allow_unpinned, pass_over=pass_over
        )
    if as_json:
        print_json("check", {"ok": report.ok}, report)
    else:
        _show(report)
    return OK if report.ok else FINDING


def _show(report: CheckReport) -> None:
    for finding in report.findings:
        put_lines(finding)
    done = [human_count(len(report.manifests), "manifest"), human_count(report.states, "state")]
    if report.asked is not None:
        done.append(f"{human_count(report.asked, 'file')} asked for at mirrors")
    wrong = human_count(len(report.findings), "finding") if report.findings else "all is well"
    if report.manifests:
        put(f"{', '.join(done)}: {wrong}")
    else:
        put("nothing to check: no manifests")
    if report.unmirrored:
        note(f"{human_count(len(report.unmirrored), 'state')} without a mirror")
    if report.passed_over:
        count, named = len(report.passed_over), ", ".join(report.passed_over[:_MOST])
        more = f" and {count - _MOST} more" if count > _MOST else ""
        note(f"{human_count(count, 'file')} passed over, no manifests: {named}{more}")
