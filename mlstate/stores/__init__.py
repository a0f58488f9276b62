"""Stores: what users hold, with `get_state_keys`, `load` and `save`."""

from mlstate.stores.abstract import AbstractStateStore
from mlstate.stores.list import AbstractListStateStore
from mlstate.stores.local import LocalStateStore
from mlstate.stores.manifest import ManifestStore, Store, load_pretrained_model
from mlstate.stores.memory import MemoryStateStore
from mlstate.stores.prune import PruneReport

__all__ = [
    "AbstractListStateStore",
    "AbstractStateStore",
    "LocalStateStore",
    "ManifestStore",
    "MemoryStateStore",
    "PruneReport",
    "Store",
    "load_pretrained_model",
]
