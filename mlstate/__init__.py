"""mlstate: model weights under version control that fits weights.

A content-addressed store for PyTorch states: each tensor kept once, every load verified.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlstate.lazy import exports
from mlstate.version import __version__ as __version__

if TYPE_CHECKING:
    from mlstate.errors import MlstateError
    from mlstate.manifests import Manifest
    from mlstate.models import LoadResult, with_state_type
    from mlstate.operations.adopt import adopt
    from mlstate.operations.adopt_all import adopt_all
    from mlstate.operations.alias import set_alias
    from mlstate.operations.bundle import bundle, unbundle
    from mlstate.operations.check import check_manifests
    from mlstate.operations.compact.compact import compact
    from mlstate.operations.copy import copy
    from mlstate.operations.describe import describe
    from mlstate.operations.diff import diff
    from mlstate.operations.diff_manifests import diff_manifests
    from mlstate.operations.doctor.doctor import diagnose
    from mlstate.operations.enlist import enlist, unlist
    from mlstate.operations.export import export
    from mlstate.operations.history import history, restore
    from mlstate.operations.lock import lock
    from mlstate.operations.meta import set_meta
    from mlstate.operations.pins import list_pins, remove_pins
    from mlstate.operations.rename import rename
    from mlstate.operations.report.report import report
    from mlstate.operations.sign import sign, verify_signature
    from mlstate.operations.usage import usage
    from mlstate.operations.verify.verify import verify
    from mlstate.states import StateKey, StateType
    from mlstate.stores import (
        AbstractListStateStore,
        AbstractStateStore,
        GitHUBReleaseStore,
        GitHubReleaseStore,
        LocalStateStore,
        ManifestStore,
        MemoryStateStore,
        S3StateStore,
        Store,
        load_pretrained_model,
        manifest_of,
        open_project,
        open_store,
    )
    from mlstate.tensors import state_digest
    from mlstate.weights.files import file_digest

__all__ = [
    "AbstractListStateStore",
    "AbstractStateStore",
    "GitHUBReleaseStore",
    "GitHubReleaseStore",
    "LoadResult",
    "LocalStateStore",
    "Manifest",
    "ManifestStore",
    "MemoryStateStore",
    "MlstateError",
    "S3StateStore",
    "StateKey",
    "StateType",
    "Store",
    "adopt",
    "adopt_all",
    "bundle",
    "check_manifests",
    "compact",
    "copy",
    "describe",
    "diagnose",
    "diff",
    "diff_manifests",
    "enlist",
    "export",
    "file_digest",
    "history",
    "list_pins",
    "load_pretrained_model",
    "lock",
    "manifest_of",
    "open_project",
    "open_store",
    "remove_pins",
    "rename",
    "report",
    "restore",
    "set_alias",
    "set_meta",
    "sign",
    "state_digest",
    "unbundle",
    "unlist",
    "usage",
    "verify",
    "verify_signature",
    "with_state_type",
]

_HOMES = {
    "AbstractListStateStore": "mlstate.stores",
    "AbstractStateStore": "mlstate.stores",
    "GitHUBReleaseStore": "mlstate.stores",
    "GitHubReleaseStore": "mlstate.stores",
    "LoadResult": "mlstate.models",
    "LocalStateStore": "mlstate.stores",
    "Manifest": "mlstate.manifests",
    "ManifestStore": "mlstate.stores",
    "MemoryStateStore": "mlstate.stores",
    "MlstateError": "mlstate.errors",
    "S3StateStore": "mlstate.stores",
    "StateKey": "mlstate.states",
    "StateType": "mlstate.states",
    "Store": "mlstate.stores",
    "adopt": "mlstate.operations.adopt",
    "adopt_all": "mlstate.operations.adopt_all",
    "bundle": "mlstate.operations.bundle",
    "check_manifests": "mlstate.operations.check",
    "compact": "mlstate.operations.compact.compact",
    "copy": "mlstate.operations.copy",
    "describe": "mlstate.operations.describe",
    "diagnose": "mlstate.operations.doctor.doctor",
    "diff": "mlstate.operations.diff",
    "diff_manifests": "mlstate.operations.diff_manifests",
    "enlist": "mlstate.operations.enlist",
    "export": "mlstate.operations.export",
    "file_digest": "mlstate.weights.files",
    "history": "mlstate.operations.history",
    "list_pins": "mlstate.operations.pins",
    "load_pretrained_model": "mlstate.stores",
    "lock": "mlstate.operations.lock",
    "manifest_of": "mlstate.stores",
    "open_project": "mlstate.stores",
    "open_store": "mlstate.stores",
    "rename": "mlstate.operations.rename",
    "restore": "mlstate.operations.history",
    "set_alias": "mlstate.operations.alias",
    "set_meta": "mlstate.operations.meta",
    "remove_pins": "mlstate.operations.pins",
    "report": "mlstate.operations.report.report",
    "sign": "mlstate.operations.sign",
    "state_digest": "mlstate.tensors",
    "unbundle": "mlstate.operations.bundle",
    "unlist": "mlstate.operations.enlist",
    "usage": "mlstate.operations.usage",
    "verify": "mlstate.operations.verify.verify",
    "verify_signature": "mlstate.operations.sign",
    "with_state_type": "mlstate.models",
}


__getattr__, __dir__ = exports(__name__, _HOMES)
