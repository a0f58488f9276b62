"""Where the tensors of a state go as they arrive.

`KnownGathering` has the state object: it knows the digest of every tensor, and each is published
as soon as it is whole and right. `mlstate.fetch.unsized` is for states without one.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterable, Iterator, Mapping
from threading import Lock

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError, concerning
from mlstate.fetch.header import FileTensor
from mlstate.fetch.plan import Piece
from mlstate.fetch.segments import LARGE, Segments, Take
from mlstate.format import tensor_object
from mlstate.format.encode import TensorSource
from mlstate.format.state_object import (
    TensorRef,
)
from mlstate.format.tensor_object import TensorSpec
from mlstate.objects.partial import Partial
from mlstate.objects.receiving import Arriving, Receiver

__all__ = ["Gathering", "KnownGathering", "fill", "values"]

_BOOLS = bytes([0, *[1] * 255])


class Gathering(abc.ABC):
    """Takes tensors by name, from files and from memory. Used by several threads."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._segments = Segments(receiver)
        self._reused = False
        self._lock = Lock()

    @abc.abstractmethod
    def expect(self, specs: Mapping[str, TensorSpec], where: str) -> list[str]:
        """Look at what a file holds, before its data comes.

        Args:
            specs: What it holds, under the names of the state.
            where: What it is, for errors.

        Returns:
            The names whose data is wanted.

        Raises:
            FormatError: It cannot be the state.
        """

    @abc.abstractmethod
    def knows(self, name: str) -> bool:
        """Whether something of this name may be wanted; what is not may be anything."""

    def pieces(self, name: str, tensor: FileTensor) -> Iterator[Piece[Take]]:
        """What is wanted of a tensor in a file that can be read in any order.

        A large one is opened when the first of its pieces is asked for.
        """
        if tensor.spec.nbytes < LARGE:
            yield from self.whole(name, tensor)
            return
        yield from self._segments.pieces(
            self._identity_of(name, tensor.spec),
            tensor_object.object_size(tensor.spec),
            lambda partial: self._take_partial(name, tensor.spec, partial),
            head=tensor_object.header(tensor.spec),
            start=tensor.start,
            convert=lambda chunks: values(tensor.spec, chunks),
        )

    def whole(self, name: str, tensor: FileTensor) -> Iterator[Piece[Take]]:
        """What is wanted of a tensor in a file that is read from front to back: all at once."""
        yield Piece(
            tensor.start,
            tensor.start + tensor.spec.nbytes,
            lambda chunks: self._take_whole(name, tensor.spec, chunks),
        )

    def take(self, source: TensorSource) -> None:
        """Take a tensor that is here already."""
        with source.data() as data:
            self._take_whole(source.name, source.spec, iter([data]))

    @abc.abstractmethod
    def complete(self) -> None:
        """All files of a mirror were read: decide.

        Raises:
            IntegrityError: What came is not the state; nothing of it was kept.
        """

    def distrust(self) -> None:
        """Something that an earlier run left goes into it: damage may be due to that."""
        self._reused = True

    def close(self) -> None:
        """Let go of what is not finished; a later run may go on."""
        self._segments.close()

    @abc.abstractmethod
    def _take_whole(self, name: str, spec: TensorSpec, chunks: Iterator[Bytes]) -> None: ...

    @abc.abstractmethod
    def _take_partial(self, name: str, spec: TensorSpec, partial: Partial) -> None: ...

    @abc.abstractmethod
    def _identity_of(self, name: str, spec: TensorSpec) -> Digest:
        """By what a later run finds what is here of a tensor."""


class KnownGathering(Gathering):
    """Tensors whose digests are known.

    Args:
        receiver: Where they go.
        refs: The tensors of the state that are missing, by name.
    """

    def __init__(self, receiver: Receiver, refs: Mapping[str, TensorRef]) -> None:
        super().__init__(receiver)
        self._refs = refs
        self.missing: set[Digest] = {ref.digest for ref in refs.values()}

    def expect(self, specs: Mapping[str, TensorSpec], where: str) -> list[str]:
        """The first name of each missing tensor that the file has; see `Gathering.expect`."""
        wanted: dict[Digest, str] = {}
        for name, ref in self._refs.items():
            if name in specs and ref.digest in self.missing and ref.digest not in wanted:
                if specs[name] != ref.spec:
                    raise FormatError(
                        "this file has another tensor under a name of the state",
                        path=where,
                        tensor=name,
                        expected=ref.spec,
                        found=specs[name],
                    )
                wanted[ref.digest] = name
        return list(wanted.values())

    def knows(self, name: str) -> bool:
        """Whether a missing tensor has this name."""
        return name in self._refs

    def complete(self) -> None:
        """Nothing to decide: each tensor was published when it was right."""

    def _take_whole(self, name: str, spec: TensorSpec, chunks: Iterator[Bytes]) -> None:
        digest = self._refs[name].digest
        with concerning(tensor=name), self.receiver.arriving() as arriving:
            fill(arriving, spec, chunks)
            arriving.publish(digest)
        self._came(digest)

    def _take_partial(self, name: str, spec: TensorSpec, partial: Partial) -> None:
        digest = self._refs[name].digest
        with concerning(tensor=name):
            self._segments.publish(partial, digest)
        self._came(digest)

    def _identity_of(self, name: str, spec: TensorSpec) -> Digest:
        return self._refs[name].digest

    def _came(self, digest: Digest) -> None:
        with self._lock:
            self.missing.discard(digest)


def values(spec: TensorSpec, chunks: Iterable[Bytes]) -> Iterator[Bytes]:
    """The bytes that stand for the values: of BOOL, 1 for whatever is not 0."""
    if spec.dtype != "BOOL":
        yield from chunks
    else:
        for chunk in chunks:
            yield bytes(chunk).translate(_BOOLS)


def fill(arriving: Arriving, spec: TensorSpec, chunks: Iterator[Bytes]) -> None:
    """Write a tensor object of these values."""
    for chunk in itertools.chain([tensor_object.header(spec)], values(spec, chunks)):
        arriving.write(chunk)
