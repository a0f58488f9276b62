"""A state as a plain folder, which `from_pretrained` and stock safetensors open as it is."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mlstate.digests import Digest, Hasher
from mlstate.errors import FormatError, MlstateError, concerning
from mlstate.format import tensor_object
from mlstate.format.dtypes import check_values
from mlstate.format.plain_file import (
    BLOCK,
    INDEX_NAME,
    PlainFile,
    format_index,
    is_weights_name,
    parse_size,
    shard_names,
    split,
)
from mlstate.format.state_object import BYTES_NAME, StateObject, TensorRef
from mlstate.locations import check_file_names, local_path
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore
from mlstate.objects.extents import clone_range
from mlstate.objects.files import make_folders, sync_path, write_file
from mlstate.objects.verified import check_digest, check_size
from mlstate.parallel import for_each
from mlstate.reading import read_state
from mlstate.stores.plainfolder import (
    PIECE,
    RECORD_NAME,
    FolderPlan,
    format_record,
    is_own_name,
    look,
    pieces_at,
    sweep,
    temporary_name,
)

if TYPE_CHECKING:
    from mlstate.stores.view import Found

__all__ = ["materialize_state"]


@dataclass(frozen=True)
class _Weights:
    """A file of tensors to write; `digest` is the state digest of what it holds."""

    name: str
    digest: Digest
    layout: PlainFile
    state: StateObject


@dataclass(frozen=True)
class _File:
    """Another file to write: its content, or None if that is an object of the store."""

    name: str
    digest: Digest
    content: bytes | None = None


_Output = _Weights | _File


def materialize_state(
    found: Found,
    folder: str | os.PathLike[str],
    *,
    max_shard_size: int | str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a state's tensors and files into a plain folder; see `StateView.materialize`."""
    entry, objects = found
    target = local_path(folder)
    with concerning(entry.key):
        most = None if max_shard_size is None else parse_size(max_shard_size)
        state = read_state(entry, objects)
        outputs = _outputs(entry, state, most)
        wanted = {output.name: output.digest for output in outputs}
        plan = look(target, wanted, overwrite=overwrite)
        sweep(target)
        final = format_record(entry.key, entry.pinned_digest, _recorded(wanted))
        if plan.write or plan.stale or not _says(target / RECORD_NAME, final):
            intent = format_record(entry.key, entry.pinned_digest, _recorded(wanted, plan))
            with _temporaries(target) as run:
                new = [output for output in outputs if output.name in plan.write]
                written = {
                    output.name: _write(output, objects, run / str(number))
                    for number, output in enumerate(new)
                }
                # From here on nothing can turn out to be damaged any more.
                _write_record(target, run, intent)
                _publish(target, written, plan)
                _write_record(target, run, final)
    return target


def _outputs(entry: StateEntry, state: StateObject, most: int | None) -> list[_Output]:
    """What the folder is to hold, in the order in which it is published.

    The index comes last: whoever finds it finds all that it names.

    Raises:
        FormatError: The state is none that tools could read, or a file of it has a name of ours.
    """
    if BYTES_NAME in state.specs:
        raise FormatError(
            "a state of opaque bytes has no tensors that a tool could read",
            remedy="load it into its model",
        )
    check_file_names(entry.files)
    outputs: list[_Output] = []
    for name, file in sorted(entry.files.items()):
        first = name.partition("/")[0]
        if is_weights_name(first) or is_own_name(first):
            raise FormatError(
                "a file of this state has a name that its weights need here",
                path=name,
                remedy="save the state without this file, or with another name for it",
            )
        outputs.append(_File(name, file.digest))
    shards = split(state.specs, most)
    names = shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        part = StateObject(
            {tensor: state.inline[tensor] for tensor in shard if tensor in state.inline},
            {tensor: state.refs[tensor] for tensor in shard if tensor in state.refs},
        )
        digest = Digest.of(part.encode())
        outputs.append(_Weights(name, digest, PlainFile.lay_out(shard), part))
    if len(shards) > 1:
        index = format_index(names, shards)
        outputs.append(_File(INDEX_NAME, Digest.of(index), index))
    return outputs


# Writing temporaries: each complete, verified and on the disk.


@contextmanager
def _temporaries(folder: Path) -> Iterator[Path]:
    """A folder for temporaries within a folder; that one is made if it is missing."""
    new = not folder.exists()
    make_folders(folder, folder)
    run = folder / temporary_name()
    run.mkdir()
    try:
        yield run
    finally:
        shutil.rmtree(run, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):  # it is empty only if nothing was published
                folder.rmdir()


def _write(output: _Output, objects: ObjectStore, path: Path) -> Path:
    # Readable too, for what was not copied is read again. As the umask has it, and not read-only:
    # the folder belongs to its user.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        if isinstance(output, _Weights):
            _write_weights(output, objects, descriptor)
        elif output.content is not None:
            _write_at(descriptor, output.content, 0)
        else:
            _write_object(output, objects, descriptor)
    finally:
        os.close(descriptor)
    sync_path(path)
    return path


def _write_weights(output: _Weights, objects: ObjectStore, descriptor: int) -> None:
    layout, state = output.layout, output.state
    os.ftruncate(descriptor, layout.size)
    _write_at(descriptor, layout.header, 0)
    for name, tensor in state.inline.items():
        _write_at(descriptor, tensor.data, layout.starts[name])

    def write(name: str) -> None:
        try:
            _write_tensor(state.refs[name], objects, descriptor, layout.starts[name])
        except MlstateError as error:
            error.tensor = name
            raise

    for_each(write, (name for name in layout.specs if name in state.refs))


def _write_tensor(ref: TensorRef, objects: ObjectStore, descriptor: int, start: int) -> None:
    """Bring a tensor's data into a file, shared or copied, and verify the object as it lies there.

    Raises:
        IntegrityError: The object is missing or damaged.
        FormatError: It is not what the state object says of it.
    """
    what, offset = "a tensor object", tensor_object.DATA_OFFSET
    with objects.open(ref.digest) as source:
        size = source.seek(0, 2)
        check_size(objects, ref.digest, tensor_object.object_size(ref.spec), size, what=what)
        source.seek(0)
        header = _read(source, offset)
        aligned = start % BLOCK == 0 and ref.spec.nbytes % BLOCK == 0
        if aligned and clone_range(source, offset, ref.spec.nbytes, descriptor, start):
            pieces = pieces_at(descriptor, start, ref.spec.nbytes)
        else:
            pieces = _copied(source, descriptor, start)
        hasher = Hasher()
        hasher.update(header)
        for piece in pieces:
            hasher.update(piece)
            check_values(ref.spec, piece)
    check_digest(objects, ref.digest, hasher.digest(), what=what)
    if header != tensor_object.header(ref.spec):
        raise FormatError(
            "a tensor object is not the tensor that the state object says it is",
            path=objects.locate(ref.digest),
            expected=f"{ref.spec.dtype} {list(ref.spec.shape)}",
            found=header[8:200].rstrip(),
        )


def _write_object(output: _File, objects: ObjectStore, descriptor: int) -> None:
    hasher = Hasher()
    with objects.open(output.digest) as source:
        source.seek(0)
        for piece in _copied(source, descriptor, 0):
            hasher.update(piece)
    check_digest(objects, output.digest, hasher.digest(), what=f"the file {output.name!r}")


def _copied(source: BinaryIO, descriptor: int, start: int) -> Iterator[bytes]:
    """What is left of a file, each piece as it has been written."""
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
        count = os.pwrite(descriptor, view, start)
        view, start = view[count:], start + count


# Publishing them.


def _publish(folder: Path, written: dict[str, Path], plan: FolderPlan) -> None:
    parents = {folder}
    for name in written:
        make_folders(folder, (folder / name).parent)
    for name, temporary in written.items():
        os.replace(temporary, folder / name)
        parents.add((folder / name).parent)
    _sync_all(parents)
    # An index first: nobody is to find one whose shards are gone.
    for name in sorted(plan.stale, key=lambda name: name != INDEX_NAME):
        (folder / name).unlink(missing_ok=True)
    _sync_all({(folder / name).parent for name in plan.stale})


def _sync_all(folders: Iterable[Path]) -> None:
    for folder in sorted(folders):
        sync_path(folder)


def _recorded(
    wanted: dict[str, Digest], plan: FolderPlan | None = None
) -> dict[str, tuple[Digest, ...]]:
    """What a record is to say: before publishing, of the old files and the new ones."""
    recorded = dict(plan.recorded) if plan else {}
    for name, digest in wanted.items():
        recorded[name] = tuple(dict.fromkeys((*recorded.get(name, ()), digest)))
    return recorded


def _write_record(folder: Path, run: Path, content: bytes) -> None:
    write_file(folder / RECORD_NAME, [content], temporary=run / "record", read_only=False)


def _says(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except FileNotFoundError:
        return False
