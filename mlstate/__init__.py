"""mlstate: model weights under version control that fits weights.

A content-addressed store for PyTorch states: each tensor kept once, every load verified.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlstate.errors import MlstateError
    from mlstate.manifests import Manifest
    from mlstate.models import LoadResult, with_state_type
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
        bundle,
        copy,
        load_pretrained_model,
        lock,
        manifest_of,
        unbundle,
    )
    from mlstate.tensors import state_digest

__version__ = "0.1.0"

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
    "bundle",
    "copy",
    "load_pretrained_model",
    "lock",
    "manifest_of",
    "state_digest",
    "unbundle",
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
    "bundle": "mlstate.stores",
    "copy": "mlstate.stores",
    "load_pretrained_model": "mlstate.stores",
    "lock": "mlstate.stores",
    "manifest_of": "mlstate.stores",
    "state_digest": "mlstate.tensors",
    "unbundle": "mlstate.stores",
    "with_state_type": "mlstate.models",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that importing mlstate is quick."""
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
