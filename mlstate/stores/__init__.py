"""Stores: what users hold, with `get_state_keys`, `load` and `save`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlstate.lazy import exports

if TYPE_CHECKING:
    from mlstate.stores.abstract import AbstractStateStore
    from mlstate.stores.github.store import GitHUBReleaseStore, GitHubReleaseStore
    from mlstate.stores.list import AbstractListStateStore
    from mlstate.stores.local import LocalStateStore, MemoryStateStore
    from mlstate.stores.manifest import ManifestStore, Store, load_pretrained_model, manifest_of
    from mlstate.stores.open import open_store
    from mlstate.stores.project import open_project
    from mlstate.stores.prune import PruneReport
    from mlstate.stores.s3 import S3StateStore

__all__ = [
    "AbstractListStateStore",
    "AbstractStateStore",
    "GitHUBReleaseStore",
    "GitHubReleaseStore",
    "LocalStateStore",
    "ManifestStore",
    "MemoryStateStore",
    "PruneReport",
    "S3StateStore",
    "Store",
    "load_pretrained_model",
    "manifest_of",
    "open_project",
    "open_store",
]

_HOMES = {
    "AbstractListStateStore": "mlstate.stores.list",
    "AbstractStateStore": "mlstate.stores.abstract",
    "GitHUBReleaseStore": "mlstate.stores.github.store",
    "GitHubReleaseStore": "mlstate.stores.github.store",
    "LocalStateStore": "mlstate.stores.local",
    "ManifestStore": "mlstate.stores.manifest",
    "MemoryStateStore": "mlstate.stores.local",
    "PruneReport": "mlstate.stores.prune",
    "S3StateStore": "mlstate.stores.s3",
    "Store": "mlstate.stores.manifest",
    "load_pretrained_model": "mlstate.stores.manifest",
    "manifest_of": "mlstate.stores.manifest",
    "open_project": "mlstate.stores.project",
    "open_store": "mlstate.stores.open",
}

__getattr__, __dir__ = exports(__name__, _HOMES)
