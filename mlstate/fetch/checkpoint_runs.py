"""Which bytes of a torch checkpoint elsewhere are asked for, and what they become.

A storage is an entry of a zip archive. Where its content begins only its own header says, which
lies right before it: header and content come in one request. A request for headers alone is made
for what comes in segments, and for parts of storages.

Most storages are one tensor, as it is stored, and go straight to where objects arrive. What lies in
another order, or is shared by several tensors, goes through a temporary file.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from mlstate.digests import Bytes
from mlstate.errors import FormatError, concerning
from mlstate.fetch import plan
from mlstate.fetch.archive import RemoteCheckpoint
from mlstate.fetch.gather import Gathering
from mlstate.fetch.header import FileTensor
from mlstate.fetch.plan import LARGE, Take, wrong_crc
from mlstate.fetch.reader import Reader
from mlstate.objects.partial import Partial
from mlstate.pickled import Entry, FileSource, Source, extent, is_contiguous, storage_pieces

__all__ = ["ONE_COPY", "CheckpointRuns"]

ONE_COPY = threading.Lock()
"""Held while a tensor is put together from another order: it takes memory, one at a time."""


@dataclass(frozen=True)
class _Wanted:
    """A range of a storage, and the tensors that are in it.

    Attributes:
        key: The key of the storage.
        entry: Its place in the file.
        start: The first byte of the storage that is needed.
        stop: The one after the last.
        names: The tensors.
        direct: Whether the range is one tensor as it is stored.
    """

    key: str
    entry: Entry
    start: int
    stop: int
    names: tuple[str, ...]
    direct: bool

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        return (self.start, self.stop) == (0, self.entry.size)

    @property
    def comes_with_header(self) -> bool:
        """Whether header and content come in one piece."""
        return self.is_whole and self.size < LARGE and self.entry.is_alone


class CheckpointRuns:
    """The requests that bring tensors of one checkpoint.

    Where every tensor has a digest that is compared, no more of a storage is read than they need.
    Elsewhere all of it is, and compared with its CRC-32.

    Args:
        checkpoint: The file.
        gathering: Takes the tensors.
        reader: Reads.
    """

    def __init__(self, checkpoint: RemoteCheckpoint, gathering: Gathering, reader: Reader) -> None:
        self._checkpoint = checkpoint
        self._gathering = gathering
        self._reader = reader
        self._wanted: list[_Wanted] = []
        self._empty: list[str] = []
        self._starts: dict[str, int] = {}

    @property
    def nbytes(self) -> int:
        """How many bytes will come, headers apart."""
        return sum(wanted.size for wanted in self._wanted)

    def choose(self, names: Iterable[str]) -> None:
        """Choose these tensors."""
        tensors = self._checkpoint.tensors
        by_storage: dict[str, list[str]] = {}
        for name in names:
            if tensors[name].nbytes:
                by_storage.setdefault(tensors[name].storage.key, []).append(name)
            else:
                self._empty.append(name)
        for key, inside in by_storage.items():
            self._wanted += self._ranges(key, inside)

    def locating(self) -> Iterator[Callable[[], None]]:
        """The requests that tell where storages begin, if those that bring them do not."""
        pieces = [
            plan.Piece[Take](
                wanted.entry.header,
                wanted.entry.header + wanted.entry.header_size,
                partial(self._locate, wanted),
            )
            for wanted in {w.key: w for w in self._wanted if not w.comes_with_header}.values()
        ]
        return self._reading(pieces)

    def bringing(self, spent: int) -> Iterator[Callable[[], None]]:
        """The requests that bring them, the large ones first; after `locating` was done.

        ``spent`` is what was read already beside tensors, in bytes.
        """
        small: list[plan.Piece[Take]] = []
        for wanted in sorted(self._wanted, key=lambda wanted: -wanted.size):
            if wanted.size >= LARGE:
                left = wanted.size
                for piece in self._segments(wanted):
                    left -= piece.stop - piece.start
                    yield partial(self._reader.read_run, self._checkpoint.resource, (piece,))
                self._reader.meter.spare(left)
            else:
                small.append(self._piece(wanted))
        yield from self._reading(small, spent + self._checkpoint.source.spent)
        if self._empty:
            yield self._take_empty

    def _reading(
        self, pieces: Iterable[plan.Piece[Take]], spent: int = 0
    ) -> Iterator[Callable[[], None]]:
        """The requests for these pieces; what came with the structure is taken from there."""
        absent = []
        for piece in pieces:
            data = self._checkpoint.source.held(piece.start, piece.stop - piece.start)
            if data is None:
                absent.append(piece)
            else:
                self._reader.meter.add(len(data))
                yield partial(piece.want, iter((data,)))
        for run in plan.join(absent, spent=spent):
            yield partial(self._reader.read_run, self._checkpoint.resource, run)

    def _ranges(self, key: str, names: list[str]) -> Iterator[_Wanted]:
        """The ranges of one storage that hold these tensors: those that overlap are one."""
        tensors, entry = self._checkpoint.tensors, self._checkpoint.archive.storages[key]
        ordered = sorted((*extent(tensors[name]), name) for name in names)
        groups: list[tuple[int, int, list[str]]] = []
        for start, stop, name in ordered:
            if groups and start < groups[-1][1]:
                first, last, inside = groups.pop()
                groups.append((first, max(last, stop), [*inside, name]))
            else:
                groups.append((start, stop, [name]))
        if self._compares_crc and (len(groups) > 1 or groups[0][:2] != (0, entry.size)):
            groups = [(0, entry.size, names)]
        for start, stop, inside in groups:
            direct = len(inside) == 1 and self._is_direct(inside[0], stop - start)
            yield _Wanted(key, entry, start, stop, tuple(inside), direct)

    def _is_direct(self, name: str, size: int) -> bool:
        tensor, spec = self._checkpoint.tensors[name], self._checkpoint.specs[name]
        # A byte of a BOOL may change on its way, and its sum is that of the file.
        summed_later = self._compares_crc and size >= LARGE and spec.dtype == "BOOL"
        return is_contiguous(tensor) and size == spec.nbytes and not summed_later

    @property
    def _compares_crc(self) -> bool:
        return self._checkpoint.archive.with_crc and not self._gathering.knows_digests

    def _crc(self, wanted: _Wanted) -> int | None:
        return wanted.entry.crc if self._compares_crc else None

    def _locate(self, wanted: _Wanted, chunks: Iterator[Bytes]) -> None:
        entry = wanted.entry
        front = b"".join(bytes(chunk) for chunk in chunks)
        with concerning(path=self._checkpoint.resource.address):
            self._starts[wanted.key] = entry.header + entry.offset(front)

    def _segments(self, wanted: _Wanted) -> Iterator[plan.Piece[Take]]:
        """The pieces of what is large, but for those that an earlier run has brought."""
        start = self._starts[wanted.key] + wanted.start
        specs = {name: self._checkpoint.specs[name] for name in wanted.names}
        if wanted.direct:
            [(name, spec)] = specs.items()
            yield from self._gathering.pieces(name, FileTensor(spec, start, self._crc(wanted)))
            return
        checkpoint = self._checkpoint
        where = f"{checkpoint.resource.address}\n{checkpoint.source.size}\n{start}\n{wanted.size}"

        def complete(came: Partial) -> None:
            expected = self._crc(wanted)
            with concerning(tensor=wanted.names[0], path=checkpoint.resource.address):
                if expected is not None and (found := came.crc()) != expected:
                    raise wrong_crc(expected, found)
            self._take_from(wanted, FileSource(came.descriptor))

        yield from self._gathering.spool(specs, where, wanted.size, start, complete)

    def _piece(self, wanted: _Wanted) -> plan.Piece[Take]:
        """The piece of what is small."""
        take = self._take_direct if wanted.direct else self._take_by_file
        if wanted.comes_with_header:
            entry = wanted.entry
            return plan.Piece(
                entry.header,
                entry.limit,
                lambda chunks: take(wanted, _content(entry, chunks, self._crc(wanted))),
            )
        start = self._starts[wanted.key] + wanted.start
        return plan.Piece(start, start + wanted.size, lambda chunks: take(wanted, chunks))

    def _take_direct(self, wanted: _Wanted, chunks: Iterator[Bytes]) -> None:
        [name] = wanted.names
        with concerning(tensor=name, path=self._checkpoint.resource.address):
            self._gathering.take(name, self._checkpoint.specs[name], chunks)

    def _take_by_file(self, wanted: _Wanted, chunks: Iterator[Bytes]) -> None:
        with tempfile.TemporaryFile(dir=self._gathering.receiver.temporaries) as file:
            with concerning(tensor=wanted.names[0], path=self._checkpoint.resource.address):
                for chunk in chunks:
                    file.write(chunk)
            file.flush()
            self._take_from(wanted, FileSource(file))

    def _take_from(self, wanted: _Wanted, source: Source) -> None:
        """Take tensors from a source that holds the range of the storage."""
        for name in wanted.names:
            tensor, spec = self._checkpoint.tensors[name], self._checkpoint.specs[name]
            with nullcontext() if is_contiguous(tensor) else ONE_COPY:
                pieces = storage_pieces(source, -wanted.start, tensor)
                with concerning(tensor=name, path=self._checkpoint.resource.address):
                    self._gathering.take(name, spec, pieces)

    def _take_empty(self) -> None:
        for name in self._empty:
            self._gathering.take(name, self._checkpoint.specs[name], iter(()))


def _content(entry: Entry, chunks: Iterator[Bytes], crc: int | None) -> Iterator[Bytes]:
    """The content of an entry of which all comes, its header first; all of it is taken.

    Raises:
        FormatError: The header does not agree with the directory.
        IntegrityError: The content has another CRC-32 than ``crc``, if that is given.
    """
    front = next(chunks, b"")
    while len(front) < entry.header_size and (more := next(chunks, b"")):
        front = bytes(front) + bytes(more)
    if len(front) < entry.header_size:
        raise FormatError("an entry of a checkpoint ends too early", found=entry.name)
    skip, left, found = entry.offset(front), entry.size, 0
    for chunk in itertools.chain((front,), chunks):
        view = memoryview(chunk)[skip:]
        skip -= min(skip, len(chunk))
        piece = view[:left]
        left -= len(piece)
        if len(piece):
            if crc is not None:
                found = zlib.crc32(piece, found)
            yield piece
    if crc is not None and found != crc:
        raise wrong_crc(crc, found)
