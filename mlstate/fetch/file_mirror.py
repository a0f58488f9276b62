"""Mirrors of files: safetensors, whole or in shards, and torch checkpoints; parts of them, too."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from mlstate.errors import FormatError, NoRangesError
from mlstate.fetch import plan
from mlstate.fetch.addresses import ShardIndex, addresses_of
from mlstate.fetch.attempts import Context
from mlstate.fetch.checkpoint_mirror import CheckpointMirror
from mlstate.fetch.download import SummedStream, too_large
from mlstate.fetch.gather import Gathering
from mlstate.fetch.header import FileHeader, HeaderRoom, fetch_header, read_header
from mlstate.fetch.names import Naming, translate_all
from mlstate.fetch.plan import LARGE, Take
from mlstate.fetch.said import Said
from mlstate.locations import Mirror
from mlstate.transport import Resource

__all__ = ["FileMirror"]


_USUAL_HEADER = 64 << 10
"""How much of a file is asked for first, where nothing says how long its header may be: bytes."""


class FileMirror:
    """Brings tensors from one mirror.

    ``header`` is how long a header may well be, in bytes, if that is known, and ``size`` the bytes
    of the state's tensor data, or None if nobody says. ``beside`` is how many bytes were read
    already beside those of tensors; they, too, count when ranges are joined at the cost of bytes
    that nobody wants.
    ``check_sums`` says whether a file's SHA-256 is checked where the mirror gives it, for which all
    of it is read: not where the state digest is known. ``naming`` gives the names in the state.
    """

    def __init__(
        self,
        mirror: Mirror,
        context: Context,
        *,
        header: int | None = None,
        size: int | None = None,
        beside: int = 0,
        check_sums: bool,
        naming: Naming = translate_all,
    ) -> None:
        self._mirror = mirror
        self._context = context
        self._header = _USUAL_HEADER if header is None else header
        self._known_header = header
        self._size = size
        self._room = HeaderRoom(size)
        self._beside = beside
        self._check_sums = check_sums
        self._naming = naming
        self._indexes: dict[str, tuple[ShardIndex, str]] = {}
        self._addresses: dict[int, str] = {}  # by the id of the resource
        self.said: dict[str, Said] = {}  # by the address of the file

    def gather(self, gathering: Gathering) -> None:
        """Bring the tensors that the gathering wants, or raise an `MlstateError`."""
        self._room = HeaderRoom(self._size)
        gathering.restart()
        self.said.clear()
        self._addresses.clear()
        plain: list[tuple[Mirror, Resource]] = []
        checkpoints: list[tuple[Mirror, Resource]] = []
        for part in self._mirror.parts or (self._mirror,):
            kind = plain if part.format == "safetensors" else checkpoints
            addresses = addresses_of(part, self._context, self._room.most, self._indexes)
            opened = [self._context.open_part(part, address) for address in addresses]
            self._addresses.update(zip(map(id, opened), addresses, strict=True))
            kind.extend((part, resource) for resource in opened)
        self._gather_plain(gathering, plain)
        if checkpoints:
            mirror = CheckpointMirror(
                self._context,
                header=self._known_header,
                room=self._room,
                beside=self._beside,
                check_sums=self._check_sums,
                naming=self._naming,
            )
            mirror.gather(gathering, checkpoints)
            for index, chosen in sorted(mirror.chosen.items()):
                address = self._addresses[id(checkpoints[index][1])]
                self.said.setdefault(address, Said(chosen=chosen))
        gathering.complete()

    def _gather_plain(self, gathering: Gathering, resources: list[tuple[Mirror, Resource]]) -> None:
        headed: dict[int, FileHeader] = {}
        sizes: dict[str, dict[str, int]] = {}
        whole: list[tuple[Mirror, Resource]] = []

        def look(index: int, part: Mirror, resource: Resource) -> None:
            if self._check_sums and part.sha256 is not None:
                whole.append((part, resource))
                return
            try:
                header = fetch_header(resource, self._header, self._room)
                sizes[resource.address] = {n: t.spec.nbytes for n, t in header.tensors.items()}
                self._note(resource, header)
                headed[index] = self._named(part, header)
            except NoRangesError:
                whole.append((part, resource))

        reader = self._context.reader
        reader.all(partial(look, index, *item) for index, item in enumerate(resources))
        if self._check_sums and not whole:
            self._check_indexes(sizes)
        wanted = []
        for _, plain in sorted(headed.items()):
            wanted.append((plain, gathering.expect(plain.specs, plain.resource.address)))
        count = sum(plain.tensors[name].spec.nbytes for plain, names in wanted for name in names)
        reader.meter.expect(None if whole else count)
        reader.all(
            itertools.chain(
                (partial(self._stream, gathering, *item) for item in whole),
                itertools.chain.from_iterable(
                    self._runs(gathering, plain, names) for plain, names in wanted
                ),
            )
        )

    def _note(self, resource: Resource, header: FileHeader) -> None:
        said = Said(tuple(header.tensors), header.metadata)
        self.said[self._addresses[id(resource)]] = said

    def _check_indexes(self, sizes: dict[str, dict[str, int]]) -> None:
        """Compare what the files have with what the indexes say that name them."""
        shown = {self._context.open(address).address: at for address, at in self._indexes.items()}
        for index in {id(index): index for index, _ in shown.values()}.values():
            mine = {name: sizes[a] for a, (i, name) in shown.items() if i is index and a in sizes}
            index.check(mine)

    def _runs(
        self, gathering: Gathering, plain: FileHeader, names: list[str]
    ) -> Iterator[Callable[[], None]]:
        """The requests that bring these tensors: the large ones first, opened one by one."""
        resource, reader = plain.resource, self._context.reader
        small: list[plan.Piece[Take]] = []
        for name in sorted(names, key=lambda name: -plain.tensors[name].spec.nbytes):
            tensor = plain.tensors[name]
            pieces = gathering.pieces(name, tensor, reader.span)
            if tensor.spec.nbytes >= LARGE:
                left = tensor.spec.nbytes
                for piece in pieces:
                    left -= piece.stop - piece.start
                    yield partial(reader.read_run, resource, (piece,))
                reader.meter.spare(left)
            else:
                small.extend(pieces)
        spent = self._beside + max(plain.data_start, self._header)
        for run in plan.join(small, spent=spent):
            yield partial(reader.read_run, resource, run)

    def _stream(self, gathering: Gathering, part: Mirror, resource: Resource) -> None:
        """Read a whole file once, from front to back."""
        reader = self._context.reader
        with resource.read() as raw:
            stream = SummedStream(raw) if self._check_sums and part.sha256 is not None else raw
            header = read_header(resource, stream, self._room)
            self._note(resource, header)
            plain = self._named(part, header)
            names = set(gathering.expect(plain.specs, resource.address))
            nbytes = plain.size - plain.data_start
            if nbytes > self._context.max_bytes:  # of tensors that are not the state's
                raise too_large(resource, self._context.max_bytes, f"{nbytes} bytes")
            pieces = [
                piece
                for name, tensor in plain.tensors.items()
                if name in names
                for piece in gathering.whole(name, tensor)
            ]
            end = plan.Piece[Take](plain.size, plain.size, lambda chunks: None)
            reader.feed(stream, plain.data_start, [*pieces, *([end] if pieces else [])])
            if pieces and stream.read(1):
                raise FormatError(
                    "a safetensors file goes on after its last tensor", path=resource.address
                )
            if isinstance(stream, SummedStream) and part.sha256 is not None:
                self._context.sums[part] = stream.check(part.sha256, resource.address)

    def _named(self, part: Mirror, file: FileHeader) -> FileHeader:
        """The header with the tensors under the names of the state."""
        names = self._naming(part, file.tensors)
        return replace(file, tensors={name: file.tensors[old] for name, old in names.items()})
