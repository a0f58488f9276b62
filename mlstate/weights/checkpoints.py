"""The tensors of a torch checkpoint, or an archive of arrays, on this machine; without torch."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mlstate.digests import Bytes
from mlstate.errors import concerning
from mlstate.format.encode import TensorSource
from mlstate.pickled import (
    Checkpoint,
    CheckpointTensor,
    FileSource,
    is_contiguous,
    read_checkpoint,
    spec_of,
    tensor_pieces,
)
from mlstate.pickled.deflated import stored_archive
from mlstate.pickled.gzipped import plain_file
from mlstate.pickled.select import Selected, choose_tensors
from mlstate.weights.npz import read_npz
from mlstate.weights.opened import ONE_COPY, OpenFile, TensorInFile

__all__ = ["TensorInCheckpoint", "checkpoint_sources", "chosen_sources"]


@dataclass(frozen=True)
class TensorInCheckpoint(TensorInFile):
    """A tensor of a checkpoint.

    Attributes:
        tensor: Where it lies.
        checkpoint: What it is a part of.
        file: The file.
    """

    tensor: CheckpointTensor = field(repr=False)
    checkpoint: Checkpoint = field(repr=False)
    file: OpenFile = field(repr=False)

    @property
    def memory(self) -> Hashable:
        """See `TensorSource.memory`."""
        return (id(self.checkpoint), self.tensor)

    @cached_property
    def _source(self) -> FileSource:
        return FileSource(self.file.file)

    def pieces(self) -> Iterator[Bytes]:
        """Its bytes, piece by piece.

        Raises:
            FormatError: The storage is damaged, or the file became shorter.
        """
        from mlstate.fetch.gather import values

        with concerning(tensor=self.name, path=self.file.path):
            yield from values(self.spec, tensor_pieces(self.checkpoint, self._source, self.tensor))

    @contextmanager
    def data(self) -> Iterator[Bytes]:
        """See `TensorSource.data`."""
        plain = is_contiguous(self.tensor) and self.spec.dtype != "BOOL"
        mapped = self.file.mapped if plain else None
        if mapped is not None:
            with concerning(tensor=self.name, path=self.file.path):
                self.checkpoint.check(self._source, self.tensor.storage)
            start = self.checkpoint.start(self.tensor.storage)
            start += self.tensor.offset * self.tensor.itemsize
            yield mapped[start : start + self.spec.nbytes]
        elif plain:
            yield b"".join(self.pieces())
        else:
            with ONE_COPY:
                yield b"".join(self.pieces())


def checkpoint_sources(
    path: Path,
    stack: ExitStack,
    *,
    gzip: bool = False,
    select: str | None = None,
    max_size: int | None = None,
) -> list[TensorSource]:
    """The tensors of a checkpoint; arguments and errors as of `chosen_sources`."""
    return chosen_sources(path, stack, gzip=gzip, select=select, max_size=max_size)[0]


def chosen_sources(
    path: Path,
    stack: ExitStack,
    *,
    gzip: bool = False,
    arrays: bool = False,
    select: str | None = None,
    tensors_only: bool = False,
    max_size: int | None = None,
) -> tuple[list[TensorSource], Selected]:
    """The tensors of a checkpoint; nothing in it is run, and no torch is imported.

    Args:
        path: The file.
        stack: Keeps it open.
        gzip: Whether it is compressed; what it becomes has a limit, see `plain_file`.
        arrays: Whether it is an archive of NumPy arrays.
        select: The dotted path of the state dict inside.
        tensors_only: Pass over entries that are no tensors.
        max_size: The most bytes that a compressed file or archive may become; see `plain_file`.

    Returns:
        A source for each tensor, and what was chosen inside.

    Raises:
        FormatError: See `read_checkpoint` and `select_tensors`; or a tensor that the format
            cannot hold.
    """
    file = stack.enter_context(plain_file(path, gzip, None, max_size))
    file = stack.enter_context(stored_archive(file, path.parent, None, max_size))
    opened = OpenFile(file, str(path))
    source = FileSource(file)
    checkpoint = read_npz(source) if arrays else read_checkpoint(source)
    chosen = choose_tensors(checkpoint.root, source.size, select, tensors_only)
    sources: list[TensorSource] = [
        TensorInCheckpoint(name, spec_of(name, tensor), tensor, checkpoint, opened)
        for name, tensor in chosen.tensors.items()
    ]
    return sources, chosen
