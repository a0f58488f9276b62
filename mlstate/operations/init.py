"""`init` writes a project file: which store and which manifests a folder's commands are about."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlstate.errors import FormatError, MlstateError, concerning
from mlstate.files import read_file
from mlstate.format import layout
from mlstate.locations import local_path
from mlstate.locks import locked_folder
from mlstate.objects.beside import temporary_beside
from mlstate.objects.durable import write_over
from mlstate.project import PYPROJECT, Project, is_project_file, read_project
from mlstate.texts import decoded, load_toml

__all__ = ["DEFAULT_STORE", "init"]

DEFAULT_STORE = "weights"
_LARGEST = 1 << 20


def init(
    folder: str | os.PathLike[str] = ".",
    *,
    store: str | None = None,
    manifests: Sequence[str] = (),
) -> Project:
    """Make a folder a project: commands in it, and below, are about its store.

    A `pyproject.toml` gets a table ``[tool.mlstate]``; all else in it stays. Without one an
    `mlstate.toml` is written.

    Args:
        folder: The folder of the project.
        store: Its store: a path relative to the folder. By default ``weights``, unless manifests
            are given.
        manifests: Its manifests, and folders of some.

    Returns:
        The project; the same again where its file says so already.

    Raises:
        MlstateError: The folder is a project that says something else, or is a store.
        FormatError: The `pyproject.toml` cannot be read.
        OSError: The file cannot be written.
    """
    place = Path(os.path.abspath(local_path(folder)))
    named = DEFAULT_STORE if store is None and not manifests else store
    values: dict[str, Any] = {} if named is None else {"store": named}
    values |= {"manifests": [*manifests]} if manifests else {}
    marker, pyproject = place / layout.SETTINGS, place / PYPROJECT
    if marker.exists() and not is_project_file(marker):
        raise MlstateError(
            "this folder is a store, and no project",
            path=place,
            remedy="make a project of the folder that it is in",
        )
    with locked_folder(place):
        return _written(marker, pyproject, values)


def _written(marker: Path, pyproject: Path, values: Mapping[str, Any]) -> Project:
    for file in (marker, pyproject):
        known = read_project(file) if file.exists() else None
        if known is not None:
            return _unchanged(known, values)
    target = pyproject if pyproject.exists() else marker
    old = read_file(target, _LARGEST) if target.exists() else None
    new = _new_text(values) if old is None else _added(old, values, target)
    if not write_over(target, old, [new], temporary=temporary_beside(target), read_only=False):
        raise MlstateError("this file was changed meanwhile; nothing was written", path=target)
    project = read_project(target)
    assert project is not None
    return project


def _unchanged(known: Project, values: Mapping[str, Any]) -> Project:
    said = {"store": known.store, "manifests": [*known.manifests]}
    if {name: value for name, value in said.items() if value} != values:
        raise MlstateError(
            "this folder is a project already, and its file says something else",
            path=known.file,
            expected=_new_text(values).decode().replace("\n", "; ").rstrip("; "),
            remedy="edit the file",
        )
    return known


def _new_text(values: Mapping[str, Any]) -> bytes:
    import tomlkit

    return tomlkit.dumps(dict(values)).encode()


def _added(old: bytes, values: Mapping[str, Any], path: Path) -> bytes:
    """The text of a `pyproject.toml` with the table, where all else stays as it is."""
    with concerning(path=path):
        text = decoded(old, f"the {PYPROJECT}")
        load_toml(text, f"the {PYPROJECT}")
    end = "\r\n" if "\r\n" in text else "\n"
    lines = ["[tool.mlstate]", *_new_text(values).decode().splitlines(), ""]
    gap = "" if not text else end if text.endswith("\n") else end * 2
    new = text + gap + end.join(lines)
    try:
        load_toml(new, f"the {PYPROJECT}")
    except FormatError:  # tool = {...} in one line, say
        raise FormatError(
            "a table cannot be added to this file; nothing was written",
            path=path,
            remedy="add the table [tool.mlstate] by hand",
        ) from None
    return old + new[len(text) :].encode()
