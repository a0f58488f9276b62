"""Mirrors in the store layout that have encoded objects: fewer bytes travel, plain objects arrive.

What a mirror has encoded is in a small index of the state, which is asked for once. It is a hint,
and so is all that comes: what is decoded is held against its digest before it gets its name.
Whatever is wrong with an encoded object leaves it to come as it is.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import BoundedSemaphore, Lock

from mlstate.digests import Bytes, Digest
from mlstate.encoded.pieces import decoded_pieces
from mlstate.errors import FormatError, IntegrityError, NoRangesError, TransportError
from mlstate.fetch.attempts import Context
from mlstate.fetch.encoded_choice import EncodedChoice
from mlstate.fetch.object_mirror import GONE, ObjectMirror
from mlstate.fetch.plan import LARGE, DamagedPartialError, Piece, Segments, Take
from mlstate.format import layout, tensor_object
from mlstate.format.encoded_index import EncodedForm
from mlstate.format.encoded_object import HEAD_SIZE, Head
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import TensorSpec
from mlstate.objects import ObjectStore
from mlstate.objects.durable import NewFile
from mlstate.objects.mapped import write_all
from mlstate.objects.partial import Partial
from mlstate.objects.verified import digest_of, open_tensor
from mlstate.parallel import THREADS
from mlstate.system import pread

__all__ = ["EncodedMirror"]


@dataclass(frozen=True)
class _File:
    """An encoded object in an open file: see `mlstate.encoded.Source`."""

    descriptor: int
    size: int

    def read(self, start: int, size: int) -> bytes:
        parts = []
        while size and (piece := pread(self.descriptor, size, start)):
            parts.append(piece)
            start, size = start + len(piece), size - len(piece)
        if size:
            raise FormatError("an encoded object is cut short", found=f"{size} bytes fewer")
        return b"".join(parts)


class EncodedMirror:
    """Brings objects from one mirror in encoded form, and writes the plain ones into the cache.

    Attributes:
        failed: What could not be had so, or was wrong, by the address of the encoded object.
        damaged: Objects of the cache that are no good as bases, by where they are.

    Args:
        address: The mirror's.
        context: Of the attempt at it.
        cache: Where bases are.
        specs: The type and shape of each object that may come.
    """

    def __init__(
        self,
        address: str,
        context: Context,
        cache: ObjectStore,
        specs: Mapping[Digest, TensorSpec],
    ) -> None:
        self._address = address.rstrip("/")
        self._context = context
        self._cache = cache
        self._specs = specs
        self._segments = Segments(context.receiver)
        self._decoding = BoundedSemaphore(THREADS)
        self._lock = Lock()
        self.failed: dict[str, str] = {}
        self.damaged: dict[str, str] = {}

    def gather(self, choice: EncodedChoice) -> None:
        """Bring what was chosen to come encoded, and the bases for it.

        Raises a `TransportError` if something cannot be read for another reason than that it is not
        there.
        """
        reader = self._context.reader
        if choice.bases:
            ObjectMirror(self._address, self._context).gather(choice.bases)
        left = dict(choice.encoded)
        reader.meter.expect(choice.nbytes - sum(choice.bases.values()))
        try:
            while ready := {d: form for d, form in left.items() if self._is_ready(d, form)}:
                reader.all(self._requests(ready))
                for digest in ready:
                    del left[digest]
        finally:
            self._segments.close()
            self._context.receiver.claims.give_all()

    def _is_ready(self, digest: Digest, form: EncodedForm) -> bool:
        size = tensor_object.object_size(self._specs[digest])
        return form.base is None or self._cache.size(form.base) == size

    def _requests(self, ready: Mapping[Digest, EncodedForm]) -> Iterator[Callable[[], None]]:
        for digest, form in sorted(ready.items(), key=lambda item: -item[1].size):
            if form.size >= LARGE and not self._context.whole:
                yield from self._large(digest, form)
            else:
                yield partial(self._bring, digest, form)

    def _bring(self, digest: Digest, form: EncodedForm) -> None:
        """Bring an encoded object from front to back, into a file that nobody else sees."""
        path = self._context.receiver.temporaries / uuid.uuid4().hex
        if not self._claim(digest, form):
            return
        resource, reader = self._context.open(self._address_of(digest)), self._context.reader
        with self._unless_wrong(digest), NewFile(path, private=True) as file:
            with resource.read() as stream:
                if stream.total not in (None, form.size):
                    raise _wrong_size(form.size, f"{stream.total} bytes")
                size = 0
                for chunk in reader.some(stream, form.size + 1):
                    write_all(file.descriptor, memoryview(chunk))
                    size += len(chunk)
            if size != form.size:
                raise _wrong_size(form.size, f"{size} bytes or more")
            self._decode(digest, _File(file.descriptor, size))
        self._context.receiver.claims.give(digest)

    def _claim(self, digest: Digest, form: EncodedForm) -> bool:
        size = tensor_object.object_size(self._specs[digest])
        return self._context.claim(digest, size, travels=form.size)

    def _large(self, digest: Digest, form: EncodedForm) -> Iterator[Callable[[], None]]:
        """The requests for a large one, with which a later run goes on."""
        resource, reader = self._context.open(self._address_of(digest)), self._context.reader
        if not self._claim(digest, form):
            return

        def complete(whole: Partial) -> None:
            try:
                self._decode(digest, _File(whole.descriptor, whole.size))
            except (FormatError, IntegrityError):
                if whole.resumed:
                    raise DamagedPartialError from None
                raise
            finally:
                whole.discard()
                self._context.receiver.claims.give(digest)

        def fetch(piece: Piece[Take]) -> None:
            with self._lock:
                if self._address_of(digest) in self.failed:
                    return
            with self._unless_wrong(digest):
                reader.read_run(resource, (piece,))
                return
            self._segments.discard(name)

        name = Digest.of(f"encoded\n{digest}\n{form}".encode())
        left = form.size
        for piece in self._segments.pieces(name, form.size, complete, span=reader.span):
            left -= piece.stop - piece.start
            yield partial(fetch, piece)
        reader.meter.spare(left)

    def _decode(self, digest: Digest, source: _File) -> None:
        """Write the plain object of an encoded one into the cache, if it is the right one."""
        spec = self._specs[digest]
        base = Head.parse(source.read(0, min(HEAD_SIZE, source.size)), spec).base
        with self._decoding:
            try:
                if base is None:
                    self._write(digest, decoded_pieces(source, spec))
                    return
                with open_tensor(self._cache, TensorRef(spec, base)) as file:
                    file.seek(tensor_object.DATA_OFFSET)
                    self._write(digest, decoded_pieces(source, spec, file.read))
            except IntegrityError:
                if base is not None and digest_of(self._cache, base) != base:
                    with self._lock:
                        self.damaged[self._cache.locate(base)] = "its bytes are not its digest's"
                raise

    def _write(self, digest: Digest, pieces: Iterator[Bytes]) -> None:
        with self._context.receiver.arriving() as arriving:
            arriving.write(tensor_object.header(self._specs[digest]))
            arriving.fill(pieces)
            arriving.publish(digest)

    def _address_of(self, digest: Digest) -> str:
        return f"{self._address}/{layout.encoded_path(digest)}"

    @contextmanager
    def _unless_wrong(self, digest: Digest) -> Iterator[None]:
        """Note what is wrong with an encoded object, or that it is not there: it comes plain."""
        try:
            yield
        except (FormatError, IntegrityError, TransportError) as error:
            wrong = not isinstance(error, TransportError) or isinstance(error, NoRangesError)
            if not wrong and getattr(error, "status", None) not in GONE:
                raise
            said = f"; found: {error.found}" if error.found else ""
            with self._lock:
                self.failed.setdefault(self._address_of(digest), f"{error.message}{said}")


def _wrong_size(expected: int, found: str) -> FormatError:
    return FormatError(
        "an encoded object of a mirror has the wrong length",
        expected=f"{expected} bytes",
        found=found,
    )
