"""Torch checkpoints, read without torch and without running anything that they contain.

A checkpoint is a pickle and storages. The pickle is interpreted into inert values, in which a
tensor is a storage, an element type, a shape, strides and an offset; a storage is a range of the
file. So the tensors of a file are known before one of their bytes is read, and whatever a file
asks for beyond its own bytes is refused.
"""

from mlstate.pickled.checkpoint import Checkpoint, Place
from mlstate.pickled.gather import extent, is_contiguous, storage_pieces, tensor_pieces
from mlstate.pickled.read import read_checkpoint
from mlstate.pickled.select import select_tensors
from mlstate.pickled.source import BytesSource, FileSource, Source
from mlstate.pickled.spec import spec_of
from mlstate.pickled.tensor import CheckpointTensor, StorageClaim
from mlstate.pickled.zip_directory import Entry
from mlstate.pickled.zipped import Archive, read_archive

__all__ = [
    "Archive",
    "BytesSource",
    "Checkpoint",
    "CheckpointTensor",
    "Entry",
    "FileSource",
    "Place",
    "Source",
    "StorageClaim",
    "extent",
    "is_contiguous",
    "read_archive",
    "read_checkpoint",
    "select_tensors",
    "spec_of",
    "storage_pieces",
    "tensor_pieces",
]
