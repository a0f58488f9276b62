"""Writing plain files of weights from a store: each complete, verified and on the disk.

Bytes are hashed while they are copied, or shared with the store where the file system can. The
`serialize_file` of safetensors needs all of them verified and mapped before: it is slower, and
takes memory for all (docs/performance.md). Files get temporary names; the caller publishes them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlstate.digests import Digest, Hasher
from mlstate.errors import FormatError, concerning
from mlstate.format import tensor_object
from mlstate.format.plain_file import (
    BLOCK,
    USUAL_METADATA,
    WEIGHTS_STEM,
    PlainFile,
    content_digest,
    format_index,
    index_name,
    shard_names,
    split,
    stem_of_shard,
)
from mlstate.format.state_object import BYTES_NAME, StateObject, TensorRef
from mlstate.format.tensor_object import TensorCheck
from mlstate.layouts import Layout, place_tensors
from mlstate.objects import ObjectStore
from mlstate.objects.durable import make_folders, sync_path
from mlstate.objects.mapped import write_all
from mlstate.objects.reflink import clone_range
from mlstate.objects.verified import check_digest, check_tensor, open_tensor, pieces_of
from mlstate.parallel import for_each
from mlstate.system import pwrite
from mlstate.weights.files import PIECE, pieces_at
from mlstate.weights.folder import remove_temporaries, temporary_name

__all__ = [
    "BytesOutput",
    "Output",
    "WeightsOutput",
    "check_has_tensors",
    "laid_out",
    "split_anew",
    "temporaries",
    "weights_of",
    "write_output",
]


@dataclass(frozen=True)
class WeightsOutput:
    """A file of tensors to write; `digest` is that of `content_digest`."""

    name: str
    digest: Digest
    layout: PlainFile
    state: StateObject


@dataclass(frozen=True)
class BytesOutput:
    """Another file to write: `content`, or if that is None the object of this digest."""

    name: str
    digest: Digest
    content: bytes | None = None


Output = WeightsOutput | BytesOutput


def weights_of(
    state: StateObject,
    most: int | None,
    metadata: Mapping[str, str] | None = None,
    stem: str = WEIGHTS_STEM,
) -> list[Output]:
    """The files that hold a state's tensors; the index is last, so it is published last.

    Args:
        state: The state.
        most: The most bytes of data in a file that holds several tensors; None for one file.
        metadata: The metadata of each file; by default the usual.
        stem: What their names begin with, paths included.

    Raises:
        FormatError: It has no tensors that a tool could read.
    """
    check_has_tensors(state.specs)
    outputs: list[Output] = []
    shards = split(state.specs, most)
    names = shard_names(len(shards), stem)
    said = USUAL_METADATA if metadata is None else metadata
    for name, shard in zip(names, shards, strict=True):
        outputs.append(_weights(name, state.part({tensor: tensor for tensor in shard}), said))
    if len(shards) > 1:
        listed = [name.rpartition("/")[2] for name in names]
        index = format_index(listed, shards)
        outputs.append(BytesOutput(index_name(stem), Digest.of(index), index))
    return outputs


def _weights(
    name: str, part: StateObject, metadata: Mapping[str, str] | None = USUAL_METADATA
) -> Output:
    digest = content_digest(Digest.of(part.encode()), metadata)
    return WeightsOutput(name, digest, PlainFile.lay_out(part.specs, metadata), part)


def laid_out(
    state: StateObject, layout: Layout, indexes: Mapping[str, Mapping[str, str]]
) -> list[Output]:
    """The files that a state's tensors came in; see `place_tensors` for the arguments.

    Raises:
        FormatError: The layout does not fit the tensors, or there are none that a tool could read.
    """
    check_has_tensors(state.specs)
    placed = place_tensors(layout, state.specs, indexes)
    return [
        _weights(path, state.part(placed[path]), file.metadata)
        for path, file in sorted(layout.items())
    ]


def split_anew(
    state: StateObject, layout: Layout, indexes: Mapping[str, Mapping[str, str]], most: int
) -> list[Output]:
    """The files of a layout, each model in shards of another size; see `laid_out`."""
    check_has_tensors(state.specs)
    placed = place_tensors(layout, state.specs, indexes)
    models: dict[str, list[str]] = {}  # each by its prefix, with its files
    for path in sorted(layout):
        models.setdefault(layout[path].prefix, []).append(path)
    outputs: list[Output] = []
    for paths in models.values():
        names = {inner: name for path in paths for inner, name in placed[path].items()}
        metadata = layout[paths[0]].metadata
        outputs += weights_of(state.part(names), most, metadata, stem_of_shard(paths[0]))
    return outputs


def check_has_tensors(names: Collection[str]) -> None:
    """Refuse a state of opaque bytes.

    Raises:
        FormatError: It has no tensors that a tool could read.
    """
    if BYTES_NAME in names:
        raise FormatError(
            "a state of opaque bytes has no tensors that a tool could read",
            remedy="load it into its model",
        )


@contextmanager
def temporaries(folder: Path) -> Iterator[Path]:
    """A new folder for temporaries in a folder, which is made if it is missing.

    At the end it is removed, and so are the folders made for it, if nothing was published there.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    make_folders(folder, folder)
    run = folder / temporary_name()
    run.mkdir()
    try:
        yield run
    finally:
        remove_temporaries(run)
        with contextlib.suppress(OSError):  # one is empty only if nothing was published
            for place in new:
                place.rmdir()


def write_output(output: Output, objects: ObjectStore, path: Path) -> Path:
    """Write a new file, verified and flushed to the disk.

    Args:
        output: The content of the file.
        objects: The store that has its bytes.
        path: Where to; nothing is there.

    Returns:
        The path.

    Raises:
        IntegrityError: An object is missing or damaged.
        FormatError: An object is not the tensor that the state says it is.
        OSError: The disk is full, and the like.
    """
    # Not read-only, for the folder belongs to its user; and readable: shared blocks are read again.
    with path.open("x+b", buffering=0) as file:
        if isinstance(output, WeightsOutput):
            _write_weights(output, objects, file.fileno())
        elif output.content is not None:
            write_all(file.fileno(), memoryview(output.content))
        else:
            _write_object(output, objects, file.fileno())
    sync_path(path)
    return path


def _write_weights(output: WeightsOutput, objects: ObjectStore, descriptor: int) -> None:
    layout, state = output.layout, output.state
    with contextlib.suppress(OSError):  # the writing needs it not, and says what is wrong
        os.ftruncate(descriptor, layout.size)
    _write_at(descriptor, layout.header, 0)
    for name, tensor in state.inline.items():
        _write_at(descriptor, tensor.data, layout.starts[name])

    def write(name: str) -> None:
        with concerning(tensor=name):
            _write_tensor(state.refs[name], objects, descriptor, layout.starts[name])

    for_each(write, (name for name in layout.specs if name in state.refs))


def _write_tensor(ref: TensorRef, objects: ObjectStore, descriptor: int, start: int) -> None:
    """Share or copy a tensor's data into a file, and verify what the file then has.

    Raises:
        IntegrityError: The object is missing or damaged.
        FormatError: It is not what the state object says of it.
    """
    offset, seen = tensor_object.DATA_OFFSET, TensorCheck(ref.spec)
    with open_tensor(objects, ref) as source:
        source.seek(0)
        seen.update(_read(source, offset))
        aligned = start % BLOCK == 0 and ref.spec.nbytes % BLOCK == 0
        if aligned and clone_range(source, offset, ref.spec.nbytes, descriptor, start):
            pieces = pieces_at(descriptor, start, ref.spec.nbytes)
        else:
            pieces = _copied(source, descriptor, start)
        for piece in pieces:
            seen.update(piece)
    check_tensor(objects, ref, seen)


def _write_object(output: BytesOutput, objects: ObjectStore, descriptor: int) -> None:
    hasher = Hasher()
    for piece in pieces_of(objects, output.digest):
        hasher.update(piece)
        write_all(descriptor, piece)
    check_digest(objects, output.digest, hasher.digest(), what=f"the file {output.name!r}")


def _copied(source: BinaryIO, descriptor: int, start: int) -> Iterator[bytes]:
    """The rest of a file, piece by piece; each was written when it is given."""
    while piece := source.read(PIECE):
        _write_at(descriptor, piece, start)
        yield piece
        start += len(piece)


def _read(source: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := source.read(size - len(data))):
        data += piece
    return data


def _write_at(descriptor: int, data: bytes | bytearray | memoryview, start: int) -> None:
    view = memoryview(data)
    while view:
        count = pwrite(descriptor, view, start)
        view, start = view[count:], start + count
