"""The command that makes a folder a project: `init`."""

from __future__ import annotations

from typing import Annotated

import typer

from mlstate.cli.options import Json
from mlstate.cli.output import from_here, note, print_json, put

__all__ = ["init"]


def init(
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            "-s",
            metavar="STORE",
            help="Where states are saved: a folder of the project. By default weights, unless "
            "manifests are given.",
        ),
    ] = None,
    manifest: Annotated[
        list[str] | None,
        typer.Option(
            "--manifest",
            metavar="PATH",
            help="A manifest of the project, or a folder of some; may be repeated.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make this folder a project: commands in it and below are about its store or manifests.

    A pyproject.toml gets a table [tool.mlstate]; without one an mlstate.toml is written.
    """
    from mlstate.operations.init import init as write_project

    project = write_project(store=store, manifests=manifest or [])
    if as_json:
        said = {"store": project.store, "manifests": project.manifests}
        print_json("init", {"path": str(project.file), **said})
        return
    put(from_here(project.file))
    if project.store is not None:
        note(f"states are saved in {project.store}; keep it out of git, with a line in .gitignore")
