"""States in the releases of a GitHub repository: the store, and its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlstate.lazy import exports

if TYPE_CHECKING:
    from mlstate.stores.github.store import GitHUBReleaseStore, GitHubReleaseStore

__all__ = ["GitHUBReleaseStore", "GitHubReleaseStore"]

_HOMES = dict.fromkeys(__all__, "mlstate.stores.github.store")

__getattr__, __dir__ = exports(__name__, _HOMES)
