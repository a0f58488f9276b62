"""The command that makes a folder a project: `init`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mlstate.cli.options import Json
from mlstate.cli.output import from_here, note, print_json, put, warning
from mlstate.errors import FormatError
from mlstate.phrases import in_shell

if TYPE_CHECKING:
    from mlstate.project import Project

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
    _tell_of_places_outside(project)
    if as_json:
        said = {"store": project.store, "manifests": project.manifests}
        print_json("init", {"path": str(project.file), **said})
        return
    put(from_here(project.file))
    if project.store is not None:
        note(f"states are saved in {project.store}; keep it out of git, with a line in .gitignore")


def _tell_of_places_outside(project: Project) -> None:
    """Say what the project names and may not name before it is trusted."""
    named = [("store", project.store), *(("manifests", name) for name in project.manifests)]
    for key, name in named:
        try:
            if name is not None:
                project.place(name, key)
        except FormatError as error:
            warning(f"{name} is outside of the project: {in_shell(error.remedy)}")
