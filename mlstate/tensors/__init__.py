"""Tensors in and out of objects: the only layer that imports torch."""

from torch import Tensor

from mlstate.tensors.checkpoints import write_checkpoint
from mlstate.tensors.encode import encode_tensors, state_digest, tensor_sources
from mlstate.tensors.load import load_tensors
from mlstate.tensors.read import places_of, places_on, read_tensors, reading

__all__ = [
    "Tensor",
    "encode_tensors",
    "load_tensors",
    "places_of",
    "places_on",
    "read_tensors",
    "reading",
    "state_digest",
    "tensor_sources",
    "write_checkpoint",
]
