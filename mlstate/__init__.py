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
    from mlstate.operations.bundle import bundle, unbundle
    from mlstate.operations.copy import copy
    from mlstate.operations.describe import describe
    from mlstate.operations.diff import diff
    from mlstate.operations.doctor.doctor import diagnose
    from mlstate.operations.enlist import enlist, unlist
    from mlstate.operations.export import export
    from mlstate.operations.lock import lock
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
    "report",
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
    "bundle": "mlstate.operations.bundle",
    "copy": "mlstate.operations.copy",
    "describe": "mlstate.operations.describe",
    "diagnose": "mlstate.operations.doctor.doctor",
    "diff": "mlstate.operations.diff",
    "enlist": "mlstate.operations.enlist",
    "export": "mlstate.operations.export",
    "file_digest": "mlstate.weights.files",
    "load_pretrained_model": "mlstate.stores",
    "lock": "mlstate.operations.lock",
    "manifest_of": "mlstate.stores",
    "open_store": "mlstate.stores",
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
