"""Files of weights on this machine, whoever wrote them: their tensors, and the bytes of these.

All are read without torch, and nothing that a torch checkpoint contains is run. No digest is
checked: there is none. The header of a safetensors file is checked by `mlstate.fetch.header`,
and more strictly than by safetensors: a name that is there twice is refused.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlstate.digests import Bytes, Digest, Hasher
from mlstate.errors import FormatError, concerning
from mlstate.format.encode import TensorSource, check_sources, encode_state
from mlstate.format.state_object import InlineTensor, StateObject, TensorRef, is_state_object
from mlstate.format.tensor_object import check_values
from mlstate.locations import ARRAYS, DISTRIBUTED, SAFETENSORS, TORCH_GZIP, local_path
from mlstate.parallel import for_each
from mlstate.phrases import Phrase
from mlstate.system import pread
from mlstate.units import check_size, parse_limit
from mlstate.weights.checkpoints import chosen_sources
from mlstate.weights.components import Component, components_of
from mlstate.weights.opened import PIECE, OpenFile, TensorInFile, pieces_at
from mlstate.weights.paths import files_and_index

if TYPE_CHECKING:
    from mlstate.pickled.select import Selected

__all__ = [
    "PIECE",
    "LocalTensor",
    "OpenFile",
    "OpenWeights",
    "digest_of_tensors",
    "file_digest",
    "open_weights",
    "pieces_at",
    "sources_of_file",
]

_USUAL_HEADER = 64 << 10
_FLAT = {SAFETENSORS: "a safetensors file", ARRAYS: "an archive of arrays"}
"""Containers that have no mappings inside others."""


def file_digest(
    path: str | os.PathLike[str], *, select: str | None = None, max_size: int | str | None = None
) -> Digest:
    """The state digest of a file of weights: are these the same weights?

    It is what `mlstate.Store.digest` gives of the same tensors under the same names, whichever
    container they are in. Needs no torch. The file is read
    once, a piece at a time, and nothing is stored.

    Args:
        path: A safetensors file; the ``.index.json`` of a sharded one; a torch checkpoint,
            compressed with gzip or not; NumPy's ``.npz``; the folder of a distributed checkpoint;
            or a folder with one of the others.
        select: Of a torch checkpoint, the dotted path of the state dict inside.
        max_size: The most bytes that its tensors may have, and that a compressed file may become:
            a number, or for instance ``"5GB"``. By default no limit, but for compressed files: 100
            times their size, or 256 MiB.

    Returns:
        64 hex digits.

    Raises:
        FormatError: There is no such file, it holds no weights, some that cannot be stored, or more
            than `max_size`.
        TransportError: It cannot be read.

    Example:
        >>> import tempfile, torch
        >>> from mlstate import state_digest
        >>> file = tempfile.mkdtemp() + "/ones.pt"
        >>> torch.save({"weight": torch.ones(2)}, file)
        >>> file_digest(file) == state_digest({"weight": torch.ones(2)})
        True
    """
    with sources_of_file(path, select=select, max_size=max_size) as sources:
        tensors = [s for s in sources if isinstance(s, TensorInFile)]
        if len(tensors) == len(sources):
            return digest_of_tensors(tensors)
        return encode_state(sources).digest


@contextmanager
def sources_of_file(
    path: str | os.PathLike[str], *, select: str | None = None, max_size: int | str | None = None
) -> Iterator[list[TensorSource]]:
    """The tensors of a file of weights; takes and raises what `file_digest` does.

    Yields a source for each tensor, good within the context. Its bytes are mapped where that is
    safe, else read, when they are asked for.
    """
    with open_weights(path, select=select, max_size=max_size) as opened:
        yield opened.sources


@dataclass(frozen=True)
class OpenWeights:
    """The tensors of a file of weights, and what was chosen in a torch checkpoint."""

    sources: list[TensorSource]
    chosen: Selected | None


@contextmanager
def open_weights(
    path: str | os.PathLike[str],
    *,
    select: str | None = None,
    tensors_only: bool = False,
    weights: str | None = None,
    form: str | None = None,
    max_size: int | str | None = None,
) -> Iterator[OpenWeights]:
    """Open a file of weights; see `sources_of_file`, and `mlstate.adopt` for the arguments.

    Of the folder of a pipeline all components are opened, each name with the prefix of its own.
    """
    place, most = local_path(path), parse_limit(max_size)
    components = components_of(place) if weights is None else []
    with ExitStack() as stack:
        models = [
            stack.enter_context(
                _open_model(
                    component.folder,
                    select=select,
                    tensors_only=tensors_only,
                    weights=weights,
                    form=form,
                    most=most,
                )
            )
            for component in components or [Component(place, "")]
        ]
        if not components:
            yield models[0]
            return
        sources = _joined(components, models)
        with concerning(path=path):
            check_size(sum(source.spec.nbytes for source in sources), most)
            check_sources(sources)
        yield OpenWeights(sources, None)


def _joined(components: list[Component], models: list[OpenWeights]) -> list[TensorSource]:
    """The tensors of several models, each name with the prefix of its model."""
    sources: list[TensorSource] = []
    for component, model in zip(components, models, strict=True):
        own = component.prefix
        deeper = tuple(other.prefix for other in components if len(other.prefix) > len(own))
        for source in model.sources:
            assert isinstance(source, TensorInFile)
            name = f"{own}{source.name}"
            if name.startswith(deeper):
                raise FormatError(
                    "a tensor's name begins like those of another folder",
                    path=component.folder,
                    tensor=source.name,
                )
            sources.append(replace(source, name=name))
    return sources


@contextmanager
def _open_model(
    path: Path,
    *,
    select: str | None,
    tensors_only: bool,
    weights: str | None,
    form: str | None,
    most: int | None,
) -> Iterator[OpenWeights]:
    with ExitStack() as stack:
        sources: list[TensorSource] = []
        chosen: Selected | None = None
        files, index = files_and_index(path, weights)
        sizes: dict[str, dict[str, int]] = {}
        for file, container in files:
            before = len(sources)
            with concerning(path=file):
                kind = form or container
                if kind in _FLAT and select is not None:
                    raise FormatError(
                        f"{_FLAT[kind]} has nothing inside that could be selected",
                        found=Phrase(f"select={select!r}", f"--select {select!r}"),
                    )
                if kind == SAFETENSORS:
                    found = _safetensors(file, stack)
                elif kind == DISTRIBUTED:
                    from mlstate.weights.distributed import distributed_sources

                    found, chosen = distributed_sources(
                        file, stack, select=select, tensors_only=tensors_only
                    )
                else:
                    found, chosen = chosen_sources(
                        file,
                        stack,
                        gzip=kind == TORCH_GZIP,
                        arrays=kind == ARRAYS,
                        select=select,
                        tensors_only=tensors_only,
                        max_size=most,
                    )
                sources += found
            sizes[str(file)] = {s.name: s.spec.nbytes for s in sources[before:]}
        with concerning(path=path):
            check_size(sum(source.spec.nbytes for source in sources), most)
            check_sources(sources)
        if index is not None and select is None:
            folder = Path(index.address).parent
            index.check({name: sizes[str(folder / name)] for name in index.shards})
        yield OpenWeights(sources, chosen)


@dataclass(frozen=True)
class LocalTensor(TensorInFile):
    """A tensor that lies in a file as it is stored."""

    file: OpenFile = field(repr=False)
    start: int  # the position of its data in the file
    exact: bool = False  # refuse a BOOL byte other than 0 and 1, rather than take it for 1

    @property
    def memory(self) -> Hashable:
        """See `TensorSource.memory`."""
        return (id(self.file), self.start)

    def pieces(self) -> Iterator[Bytes]:
        """Its bytes, in pieces; a `FormatError` if the file shrank or `exact` refuses a byte."""
        from mlstate.fetch.gather import values

        with concerning(tensor=self.name):
            pieces = self.file.pieces(self.start, self.spec.nbytes)
            for piece in pieces if self.exact else values(self.spec, pieces):
                check_values(self.spec, piece)
                yield piece

    @contextmanager
    def data(self) -> Iterator[Bytes]:
        """See `TensorSource.data`."""
        mapped = self.file.mapped if self.spec.dtype != "BOOL" else None
        if mapped is None:
            yield b"".join(self.pieces())
        else:
            yield mapped[self.start : self.start + self.spec.nbytes]


def digest_of_tensors(tensors: Iterable[TensorInFile]) -> Digest:
    """The state digest of tensors in files, each read once, a piece at a time."""
    listed = list(tensors)
    headers = check_sources([*listed])
    inline: dict[str, InlineTensor] = {}
    refs: dict[str, TensorRef] = {}
    tied: dict[Hashable, list[str]] = {}
    for tensor in listed:
        tied.setdefault((tensor.memory, tensor.spec), []).append(tensor.name)

    def digest(tensor: TensorInFile) -> None:
        names = tied[tensor.memory, tensor.spec]
        if tensor.name != names[0] and tensor.name in headers:
            return  # read with the first
        if tensor.name not in headers:
            inline[tensor.name] = InlineTensor(tensor.spec, b"".join(tensor.pieces()))
            return
        hasher = Hasher()
        hasher.update(headers[tensor.name])
        for piece in tensor.pieces():
            hasher.update(piece)
        refs.update(dict.fromkeys(names, TensorRef(tensor.spec, hasher.digest())))

    # The largest first, so that the threads end together.
    for_each(digest, sorted(listed, key=lambda tensor: -tensor.spec.nbytes))
    return Digest.of(StateObject(inline, refs).encode())


def _safetensors(path: Path, stack: ExitStack) -> list[TensorSource]:
    from mlstate.fetch.header import fetch_header
    from mlstate.transport.local import LocalResource

    header = fetch_header(LocalResource(path), _USUAL_HEADER)
    file = OpenFile(stack.enter_context(path.open("rb", buffering=0)), str(path))
    length = int.from_bytes(pread(file.file.fileno(), 8, 0), "little")
    if is_state_object(pread(file.file.fileno(), length, 8)):
        raise FormatError(
            "this is a state object: it names its large tensors, and does not hold them",
            remedy="its state digest is the BLAKE3 of the file itself: b3sum gives it",
        )
    if os.fstat(file.file.fileno()).st_size != header.size:
        raise FormatError("the file changed while it was read")
    return [LocalTensor(name, t.spec, file, t.start) for name, t in header.tensors.items()]
