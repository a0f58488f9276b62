"""Stores: what users hold, with `get_state_keys`, `load` and `save`."""

from mlstate.stores.abstract import AbstractStateStore
from mlstate.stores.bundles import bundle, unbundle
from mlstate.stores.copying import CopyReport, copy
from mlstate.stores.github import GitHUBReleaseStore, GitHubReleaseStore
from mlstate.stores.list import AbstractListStateStore
from mlstate.stores.local import LocalStateStore
from mlstate.stores.manifest import ManifestStore, Store, load_pretrained_model, manifest_of
from mlstate.stores.memory import MemoryStateStore
from mlstate.stores.pinning import lock
from mlstate.stores.prune import PruneReport
from mlstate.stores.s3 import S3StateStore

__all__ = [
    "AbstractListStateStore",
    "AbstractStateStore",
    "CopyReport",
    "GitHUBReleaseStore",
    "GitHubReleaseStore",
    "LocalStateStore",
    "ManifestStore",
    "MemoryStateStore",
    "PruneReport",
    "S3StateStore",
    "Store",
    "bundle",
    "copy",
    "load_pretrained_model",
    "lock",
    "manifest_of",
    "unbundle",
]
