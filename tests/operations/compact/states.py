"""States that are related, as fine-tunes are: small, but of objects of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from mlstate import StateKey
from mlstate.format import layout

__all__ = ["KEYS", "digests", "files", "near", "noise", "save_all", "weights"]

KEYS = [StateKey.parse(f"pytorch.net.step-{number:03}") for number in range(12)]
SHAPE = (100, 100)

Tensors = Mapping[str, torch.Tensor]


def noise(seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A tensor that is near to no other."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(SHAPE, generator=generator) * 0.05).to(dtype)


def near(tensor: torch.Tensor, seed: int, by: float = 1e-4) -> torch.Tensor:
    """A tensor that is near to another."""
    generator = torch.Generator().manual_seed(seed)
    moved = tensor.float() + by * torch.randn(tensor.shape, generator=generator)
    return moved.to(tensor.dtype)


def weights(step: int, dtype: torch.dtype = torch.bfloat16, layers: int = 2) -> Tensors:
    """The weights at a step of a run, the first of which is 0."""
    tensors: dict[str, torch.Tensor] = {"bias": torch.ones(3)}
    for layer in range(layers):
        tensor = noise(layer, dtype)
        for number in range(step):
            tensor = near(tensor, 1000 * layer + number + 7)
        tensors[f"layers.{layer}.weight"] = tensor
    return tensors


def save_all(store, states: Mapping[StateKey, Tensors]) -> None:
    """Save states in their order."""
    for key, tensors in states.items():
        store.save_state_dict(tensors, key)


def digests(store) -> dict[StateKey, str]:
    """What each state decodes to: its digest, of what is really loaded."""
    from mlstate import state_digest

    return {key: state_digest(store.load_state_dict(key)) for key in store.get_state_keys()}


def files(folder: Path, below: str = layout.OBJECTS) -> dict[str, str]:
    """The files below a folder of a store, with what they hold."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / below).rglob("*"))
        if path.is_file()
    }
