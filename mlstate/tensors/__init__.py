"""Tensors in and out of objects: the layer that knows torch's types."""

from torch import Tensor

from mlstate.tensors.arrays import arrays_of
from mlstate.tensors.checkpoints import write_checkpoint
from mlstate.tensors.encode import encode_tensors, state_digest, tensor_sources
from mlstate.tensors.load import load_tensors
from mlstate.tensors.optimizers import flattened, unflattened
from mlstate.tensors.read import places_of, places_on, read_tensors, reading
from mlstate.tensors.ties import part_constant
from mlstate.tensors.wrappers import inner_model, unwrapped

__all__ = [
    "Tensor",
    "arrays_of",
    "encode_tensors",
    "flattened",
    "inner_model",
    "load_tensors",
    "part_constant",
    "places_of",
    "places_on",
    "read_tensors",
    "reading",
    "state_digest",
    "tensor_sources",
    "unflattened",
    "unwrapped",
    "write_checkpoint",
]
