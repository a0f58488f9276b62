"""What tests of checkpoints of DCP share: saving, loading, and a small training."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

from mlstate import StateKey, StateType
from mlstate.integrations.dcp import MlstateWriter

ALONE = "ignore:torch.distributed is (disabled|unavailable)"
"""What torch warns of where one process saves and loads: a filter of pytest."""

__all__ = [
    "ALONE",
    "NET",
    "STEP",
    "Parts",
    "Training",
    "cause",
    "chunked",
    "load_all",
    "load_into",
    "save",
]

NET = StateType("pytorch", "net")
STEP = StateKey(NET, "step-1")


class Training:
    """A model, its optimizer, and the steps so far: an object with a state, as DCP takes it."""

    def __init__(self, seed: int = 0, width: int = 96) -> None:
        torch.manual_seed(seed)
        layers = [torch.nn.Linear(64, width), torch.nn.Tanh(), torch.nn.Linear(width, 64)]
        self.model = torch.nn.Sequential(*layers)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.steps = 0

    def step(self) -> float:
        """One step with inputs of its own; returns the loss."""
        inputs = torch.full((4, 64), 0.1 * self.steps + 0.1)
        loss = self.model(inputs).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """See ``Stateful``."""
        weights, moments = get_state_dict(self.model, self.optimizer)
        return {"model": weights, "optim": moments, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``Stateful``."""
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optim"],
        )
        self.steps = state["steps"]


def save(state: Any, writer: Any, checkpoint_id: Any = None) -> None:
    """Save in this process alone."""
    dcp.save(state, storage_writer=writer, checkpoint_id=checkpoint_id)


def load_into(state: Any, reader: Any, checkpoint_id: Any = None) -> None:
    """Load in this process alone, into what is there."""
    dcp.load(state, storage_reader=reader, checkpoint_id=checkpoint_id)


def load_all(reader: Any, checkpoint_id: Any = None) -> dict[str, Any]:
    """Load all that a checkpoint has, nested as it was."""
    return _load_state_dict_from_keys(storage_reader=reader, checkpoint_id=checkpoint_id)


def cause(error: CheckpointException) -> BaseException:
    """The error of a rank, which torch has wrapped."""
    (failure, _), *_ = error.failures.values()
    return failure


def chunked(
    store: Any, tensors: dict[str, torch.Tensor], boxes: dict[str, list[Any]]
) -> tuple[Any, list[Any]]:
    """Store tensors in chunks, as many ranks would; what they tell the coordinator."""
    described = {}
    results = []
    writer = MlstateWriter(store, STEP)
    for name, tensor in tensors.items():
        properties = dcp.metadata.TensorProperties(dtype=tensor.dtype)
        chunks = [
            dcp.metadata.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
            for offsets, sizes in boxes[name]
        ]
        described[name] = dcp.metadata.TensorStorageMetadata(properties, tensor.shape, chunks)
        for chunk in chunks:
            place = dcp.metadata.MetadataIndex(name, chunk.offsets)
            data = dcp.planner.TensorWriteData(chunk, properties, tensor.shape)
            kind = dcp.planner.WriteItemType.SHARD
            plan = dcp.planner.SavePlan([dcp.planner.WriteItem(place, kind, None, data)])
            results += writer.write_data(plan, Parts(tensor, chunk)).value()
    return dcp.metadata.Metadata(described), results


class Parts(dcp.DefaultSavePlanner):
    """Gives one part of a tensor."""

    def __init__(self, tensor: torch.Tensor, chunk: Any) -> None:
        super().__init__()
        self.part = tensor[
            tuple(slice(o, o + s) for o, s in zip(chunk.offsets, chunk.sizes, strict=True))
        ]

    def resolve_data(self, write_item: Any) -> torch.Tensor:
        return self.part
