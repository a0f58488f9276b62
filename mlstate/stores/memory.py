"""States in memory: for tests, and for what need not outlive the process."""

from __future__ import annotations

from mlstate.objects import MemoryObjectStore
from mlstate.stores.save import SavingStore
from mlstate.stores.statefiles import MemoryStateFiles

__all__ = ["MemoryStateStore"]


class MemoryStateStore(SavingStore):
    """States in dictionaries of this process, encoded and verified as everywhere.

    Example:
        >>> import torch
        >>> from mlstate import StateKey
        >>> store = MemoryStateStore()
        >>> key = StateKey.parse("pytorch.linear.ones")
        >>> _ = store.save_state_dict({"weight": torch.ones(2)}, key)
        >>> store.load_state_dict(key)["weight"].sum().item()
        2.0
    """

    def __init__(self) -> None:
        super().__init__(MemoryStateFiles(), MemoryObjectStore())

    def __repr__(self) -> str:
        return "MemoryStateStore()"
