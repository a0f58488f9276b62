"""Reading a checkpoint, whichever container it is in."""

from __future__ import annotations

from mlstate.foreign import check_same_container
from mlstate.locations import TORCH
from mlstate.pickled.checkpoint import Checkpoint
from mlstate.pickled.legacy import read_legacy
from mlstate.pickled.source import Source
from mlstate.pickled.tarred import is_tar, read_tarred
from mlstate.pickled.zipped import read_zipped

__all__ = ["read_checkpoint"]

_BLOCK = 512


def read_checkpoint(source: Source) -> Checkpoint:
    """Read the structure of a checkpoint of torch.save; no byte of a storage is read.

    Args:
        source: The file: a zip archive, a legacy file, or the tar archive of the first versions.

    Raises:
        FormatError: Anything else; a file that is damaged, lacks storages that its tensors need,
            or asks for more than `mlstate.pickled.caps` allows.
    """
    front = source.read(0, min(_BLOCK, source.size))
    check_same_container(front, TORCH)
    if front.startswith(b"PK\3\4"):
        return read_zipped(source)
    if len(front) == _BLOCK and is_tar(front):
        return read_tarred(source)
    return read_legacy(source)
