"""Tensors in and out of objects: the layer that knows torch's types."""

from torch import Tensor

from mlstate.tensors.arrays import arrays_of
from mlstate.tensors.checkpoints import write_checkpoint
from mlstate.tensors.encode import any_sharded, encode_tensors, state_digest, tensor_sources
from mlstate.tensors.load import load_tensors
from mlstate.tensors.optimizers import flattened, unflattened
from mlstate.tensors.read import places_of, places_on, read_tensors, reading
from mlstate.tensors.ties import part_constant
from mlstate.tensors.wrappers import has_shards, inner_model, saved_entries, unwrapped

__all__ = [
    "Tensor",
    "any_sharded",
    "arrays_of",
    "encode_tensors",
    "flattened",
    "has_shards",
    "inner_model",
    "load_tensors",
    "part_constant",
    "places_of",
    "places_on",
    "read_tensors",
    "reading",
    "saved_entries",
    "state_digest",
    "tensor_sources",
    "unflattened",
    "unwrapped",
    "write_checkpoint",
]
