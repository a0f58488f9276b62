"""The index of a test, and stores whose files are old enough to be known."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from mlstate import StateKey
from mlstate.index.database import index_folder


def key(text: str) -> StateKey:
    return StateKey.parse(f"pytorch.{text}")


def save(store, text: str, *values: int, **more) -> StateKey:
    """Save a state of one large tensor for each value."""
    tensors = {f"w{n}": torch.full((5000,), float(value)) for n, value in enumerate(values)}
    store.save_state_dict({**tensors, "b": torch.ones(3)}, key(text), **more)
    return key(text)


def settle(folder: Path) -> None:
    """Wait until the files of a store are old enough that a change shows in their times."""
    youngest = max(path.lstat().st_ctime for path in [folder, *folder.rglob("*")])
    while time.time() < youngest + 0.11:
        time.sleep(0.01)


def index_file() -> Path:
    (found,) = index_folder().glob("*.sqlite")
    return found
