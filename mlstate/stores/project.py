"""`open_project` opens the store that the project file of a folder names."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlstate.errors import MlstateError, StoreNotFoundError
from mlstate.fetch.progress import OnProgress
from mlstate.manifests import Manifest
from mlstate.manifests.required import RequiredSignature, read_required
from mlstate.phrases import Phrase
from mlstate.project import PYPROJECT, Project, find_project
from mlstate.stores.cache import CacheLike
from mlstate.stores.manifest import ManifestStore
from mlstate.stores.open import is_manifest, open_store
from mlstate.stores.read import StateStore
from mlstate.stores.remote_entries import from_elsewhere

__all__ = ["ProjectManifests", "open_named", "open_project"]


def open_project(
    folder: str | os.PathLike[str] | None = None,
    *,
    cache: CacheLike | None = None,
    offline: bool | None = None,
    progress: OnProgress | bool | None = None,
    require_signature: RequiredSignature = None,
) -> Any:
    """Open the store of the project that a folder is in, as the command line does.

    A project has a file, `mlstate.toml` or `pyproject.toml`, that names its store or its manifests;
    ``mlstate init`` writes one. See the guide for what it may say, and where it is looked for.

    Args:
        folder: The folder; by default the working folder.
        cache: As for `ManifestStore`.
        offline: As for `ManifestStore`.
        progress: As for `ManifestStore`.
        require_signature: As for `ManifestStore`.

    Returns:
        The store that the file names, a `LocalStateStore` as a rule; where it names manifests
        alone, a `ManifestStore` of them.

    Raises:
        StoreNotFoundError: There is no project file, or it names no store and no manifest.
        FormatError: The project file cannot be read, or has a key that is not known.
        ManifestError: A manifest cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> project = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (project / "mlstate.toml").write_text('store = "weights"')
        >>> open_project(project).get_state_keys()
        []
    """
    project = find_project(folder)
    if project is None:
        raise StoreNotFoundError(
            "there is no project here",
            path=os.getcwd() if folder is None else folder,
            expected=f"an mlstate.toml, or a {PYPROJECT} with [tool.mlstate], here or above",
            remedy="make one: mlstate init",
        )
    return open_named(
        project,
        cache=cache,
        offline=offline,
        progress=progress,
        require_signature=require_signature,
    )


def open_named(project: Project, *, manifests: bool = False, **options: Any) -> StateStore:
    """Open what a project names.

    Args:
        project: The project.
        manifests: Whether its manifests are wanted, where it names both.
        options: As for `open_project`.

    Raises:
        StoreNotFoundError: It names nothing.
    """
    if project.store is not None and not (manifests and project.manifests):
        return _open_store(project, project.place(project.store, "store"), options)
    if not project.manifests:
        raise StoreNotFoundError(
            "this project file names no store and no manifest",
            path=project.file,
            expected='store = "weights", or manifests = ["manifests"]',
        )
    places = [project.place(name, "manifests") for name in project.manifests]
    return ProjectManifests(project, places, **options)


def _open_store(project: Project, place: str, options: dict[str, Any]) -> StateStore:
    far = "://" in place or place.startswith("github:")
    if not far and _said_by(project, lambda: is_manifest(place)):
        return ProjectManifests(project, [place], **options)
    opened: StateStore = _said_by(project, lambda: open_store(place, create=True, **options))
    return opened


def _said_by(project: Project, opening: Callable[[], Any]) -> Any:
    """Open something; an error of it tells which file names it."""
    try:
        return opening()
    except MlstateError as error:
        named = f"it is named by {project.file}"
        error.remedy = named if error.remedy is None else error.remedy + f"; {named}"
        raise


class ProjectManifests(ManifestStore):
    """The states of a project's manifests.

    They may name public servers, the hub, and files in the project's folder; other places if
    MLSTATE_ALLOWED_HOSTS has them, or if the project is trusted.

    Args:
        project: The project.
        places: Its manifests, and folders of some.
        options: As for `ManifestStore`.
    """

    def __init__(
        self,
        project: Project,
        places: list[str],
        *,
        require_signature: RequiredSignature = None,
        **options: Any,
    ) -> None:
        read = _said_by(project, lambda: read_required(places, require_signature))
        if not project.trusted:
            source = str(project.folder)
            entries = {key: from_elsewhere(entry, source) for key, entry in read.states.items()}
            read = replace(read, states=entries)
        super().__init__(Manifest(**vars(read)), require_signature=False, **options)
        self.path = Path(places[0]) if len(places) == 1 else None
        named = ", ".join(os.path.relpath(place, project.folder) for place in places)
        self._name = Phrase(f"open_project({str(project.folder)!r})", f"{named} of {project.file}")
