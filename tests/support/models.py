"""Models that several tests use."""

from __future__ import annotations

import torch
from torch import nn

from mlstate import StateType, with_state_type

LINEAR = StateType("pytorch", "net")


def net(seed: int = 0, *, width: int = 80, classes: int = 10) -> nn.Module:
    """A small net with tensors inside (biases) and outside (weights) the state object."""
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Linear(64, width),
        nn.BatchNorm1d(width),
        nn.Linear(width, 64),
        nn.Linear(64, classes),
    )
    return with_state_type(module, LINEAR)


class BytesModel:
    """A model of the older protocol."""

    state_type = StateType("sklearn", "forest")

    def __init__(self, state: bytes = b"") -> None:
        self.state = state

    def get_state(self) -> bytes:
        return self.state

    def set_state(self, state: bytes) -> None:
        self.state = state


class NoModule:
    """Not a torch module, but with the two methods."""

    state_type = LINEAR

    def __init__(self, **tensors: torch.Tensor) -> None:
        self.tensors = tensors

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.tensors)

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        self.tensors = {name: tensor.clone() for name, tensor in state_dict.items()}


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's state."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two states are the same, bit for bit, in names, dtypes, shapes and values."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and torch.equal(
            a[name].reshape(-1).view(torch.uint8), b[name].reshape(-1).view(torch.uint8)
        )
        if a[name].numel()
        else a[name].shape == b[name].shape
        for name in a
    )
