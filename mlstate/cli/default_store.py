"""The store of a command that was given none: that of the project, or else `Store()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlstate.project import Project
    from mlstate.stores.read import StateStore

__all__ = [
    "default_name",
    "default_store",
    "how_to_save_by_default",
    "project_here",
    "saves_by_default",
]


def project_here() -> Project | None:
    """The project of the working folder, if it names something that counts.

    Variables count before what the file says: MLSTATE_STORE is known to the option ``--store``, and
    MLSTATE_MANIFESTS replaces the manifests.
    """
    from dataclasses import replace

    from mlstate import settings
    from mlstate.project import find_project

    found = find_project()
    if found is not None and settings.extra_manifests():
        found = replace(found, manifests=())
    return found if found is not None and (found.store or found.manifests) else None


def default_store(*, manifests: bool = False, **options: Any) -> StateStore:
    """The store of a command without ``--store``.

    Args:
        manifests: Whether the manifests are wanted, of a project that names a store, too.
        options: As for `mlstate.open_store`.
    """
    project = project_here()
    if project is None:
        from mlstate.stores.open import open_store

        return open_store(**options)
    from mlstate.stores.project import open_named

    return open_named(project, manifests=manifests, **options)


def saves_by_default() -> bool:
    """Whether there is a project that says where states are saved."""
    project = project_here()
    return project is not None and project.store is not None


def how_to_save_by_default() -> str:
    """What to do where there is no store to save into."""
    project = project_here()
    if project is None:
        return "make this folder a project: mlstate init"
    return f'name a store of this project in {project.file}: store = "weights"'


def default_name() -> str:
    """What `default_store` is called in a report."""
    project = project_here()
    return "the default store" if project is None else f"the project {project.folder}"
