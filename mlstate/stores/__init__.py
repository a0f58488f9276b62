"""Stores: what users hold, with `get_state_keys`, `load` and `save`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlstate.lazy import exports

if TYPE_CHECKING:
    from mlstate.stores.abstract import AbstractStateStore
    from mlstate.stores.adopting import adopt
    from mlstate.stores.adoption import AdoptReport
    from mlstate.stores.bundles import bundle, unbundle
    from mlstate.stores.comparing import StateDiff, diff
    from mlstate.stores.copying import CopyReport, copy
    from mlstate.stores.describing import Description, describe
    from mlstate.stores.diagnosis import Diagnosis, diagnose
    from mlstate.stores.enlisting import enlist, unlist
    from mlstate.stores.exporting import export
    from mlstate.stores.github import GitHUBReleaseStore, GitHubReleaseStore
    from mlstate.stores.list import AbstractListStateStore
    from mlstate.stores.local import LocalStateStore
    from mlstate.stores.manifest import ManifestStore, Store, load_pretrained_model, manifest_of
    from mlstate.stores.memory import MemoryStateStore
    from mlstate.stores.opening import open_store
    from mlstate.stores.pinning import lock
    from mlstate.stores.prune import PruneReport
    from mlstate.stores.s3 import S3StateStore
    from mlstate.stores.sizes import StateUsage, Usage, usage
    from mlstate.stores.verifying import Finding, VerifyReport, verify
    from mlstate.stores.weightfiles import file_digest

__all__ = [
    "AbstractListStateStore",
    "AbstractStateStore",
    "AdoptReport",
    "CopyReport",
    "Description",
    "Diagnosis",
    "Finding",
    "GitHUBReleaseStore",
    "GitHubReleaseStore",
    "LocalStateStore",
    "ManifestStore",
    "MemoryStateStore",
    "PruneReport",
    "S3StateStore",
    "StateDiff",
    "StateUsage",
    "Store",
    "Usage",
    "VerifyReport",
    "adopt",
    "bundle",
    "copy",
    "describe",
    "diagnose",
    "diff",
    "enlist",
    "export",
    "file_digest",
    "load_pretrained_model",
    "lock",
    "manifest_of",
    "open_store",
    "unbundle",
    "unlist",
    "usage",
    "verify",
]

_HOMES = {
    "AbstractListStateStore": "mlstate.stores.list",
    "AbstractStateStore": "mlstate.stores.abstract",
    "AdoptReport": "mlstate.stores.adoption",
    "CopyReport": "mlstate.stores.copying",
    "Description": "mlstate.stores.describing",
    "Diagnosis": "mlstate.stores.diagnosis",
    "Finding": "mlstate.stores.findings",
    "GitHUBReleaseStore": "mlstate.stores.github",
    "GitHubReleaseStore": "mlstate.stores.github",
    "LocalStateStore": "mlstate.stores.local",
    "ManifestStore": "mlstate.stores.manifest",
    "MemoryStateStore": "mlstate.stores.memory",
    "PruneReport": "mlstate.stores.prune",
    "S3StateStore": "mlstate.stores.s3",
    "StateDiff": "mlstate.stores.comparing",
    "StateUsage": "mlstate.stores.sizes",
    "Usage": "mlstate.stores.sizes",
    "Store": "mlstate.stores.manifest",
    "VerifyReport": "mlstate.stores.findings",
    "adopt": "mlstate.stores.adopting",
    "bundle": "mlstate.stores.bundles",
    "copy": "mlstate.stores.copying",
    "describe": "mlstate.stores.describing",
    "diagnose": "mlstate.stores.diagnosis",
    "diff": "mlstate.stores.comparing",
    "enlist": "mlstate.stores.enlisting",
    "export": "mlstate.stores.exporting",
    "file_digest": "mlstate.stores.weightfiles",
    "load_pretrained_model": "mlstate.stores.manifest",
    "lock": "mlstate.stores.pinning",
    "manifest_of": "mlstate.stores.manifest",
    "open_store": "mlstate.stores.opening",
    "unbundle": "mlstate.stores.bundles",
    "unlist": "mlstate.stores.enlisting",
    "usage": "mlstate.stores.sizes",
    "verify": "mlstate.stores.verifying",
}

__getattr__, __dir__ = exports(__name__, _HOMES)
