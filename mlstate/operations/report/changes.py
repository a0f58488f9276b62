"""By how much tensors changed: read and compared once, and looked up the next time."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from mlstate.digests import Bytes, Digest
from mlstate.errors import IntegrityError, MlstateError
from mlstate.fetch.progress import Meter, OnProgress
from mlstate.format.state_object import InlineTensor, TensorRef
from mlstate.format.tensor_object import object_size
from mlstate.objects import ObjectStore
from mlstate.operations.diff import comparable, content_of
from mlstate.operations.report.statistics import ChangeStatistics, Numbers
from mlstate.parallel import for_each
from mlstate.reading import tensor_pieces

__all__ = ["Changes", "HeldTensor"]


@dataclass(frozen=True)
class HeldTensor:
    """A tensor of a state, and the object store that has its bytes."""

    tensor: InlineTensor | TensorRef
    objects: ObjectStore

    @property
    def content(self) -> tuple[object, ...]:
        """A value that equal tensors have in common."""
        return content_of(self.tensor)

    @property
    def digest(self) -> Digest:
        """A digest of the tensor: that of its object, or of what a small one has in its place."""
        if isinstance(self.tensor, TensorRef):
            return self.tensor.digest
        return Digest.of(repr(self.tensor.spec).encode(), self.tensor.data)

    @property
    def is_here(self) -> bool:
        """Whether its bytes can be read without fetching any."""
        if isinstance(self.tensor, InlineTensor):
            return True
        return self.objects.size(self.tensor.digest) == object_size(self.tensor.spec)

    def pieces(self) -> Iterator[Bytes]:
        """Its data, which are right if this ends without an error."""
        if isinstance(self.tensor, InlineTensor):
            yield self.tensor.data
        else:
            yield from tensor_pieces(self.objects, self.tensor)


_Pair = tuple[HeldTensor, HeldTensor]


class Changes:
    """The numbers of pairs of tensors, an older and a newer one; nothing is fetched for them."""

    def __init__(self) -> None:
        self._kept = ChangeStatistics()
        self._found: dict[tuple[Digest, Digest], Numbers] = {}
        self._unread: set[tuple[Digest, Digest]] = set()

    def numbers(self, pair: _Pair) -> Numbers | None:
        """The numbers of a pair; None where there are none."""
        return self._found.get(_name_of(pair))

    def is_unread(self, pair: _Pair) -> bool:
        """Whether the bytes of one of them are damaged or missing."""
        return _name_of(pair) in self._unread

    def compare(self, pairs: Iterable[_Pair], progress: OnProgress | None) -> None:
        """Compare pairs, each once; what was computed is kept, also if this is stopped."""
        left: dict[tuple[Digest, Digest], _Pair] = {}
        for pair in pairs:
            if not comparable(pair[0].tensor.spec, pair[1].tensor.spec):
                continue
            if kept := self._kept.get(*_name_of(pair)):
                self._found[_name_of(pair)] = kept
            elif all(held.is_here for held in pair):
                left.setdefault(_name_of(pair), pair)
            else:
                self._unread.add(_name_of(pair))
        if not left:
            return
        meter = Meter("comparing tensors", progress)
        meter.expect(sum(2 * older.tensor.spec.nbytes for older, _ in left.values()))
        largest_first = sorted(left.values(), key=lambda pair: -pair[0].tensor.spec.nbytes)
        try:
            for_each(lambda pair: self._compare(pair, meter), largest_first)
        finally:
            self._kept.save()
            meter.end()

    def _compare(self, pair: _Pair, meter: Meter) -> None:
        from mlstate.tensors.difference import compare_tensors

        older, newer = (held.tensor for held in pair)
        try:
            # Closed at once, also if the other side turns out to be damaged.
            with (
                closing(_counted(pair[0], meter)) as mine,
                closing(_counted(pair[1], meter)) as its,
            ):
                found = compare_tensors(older.spec, mine, newer.spec, its)
        except (IntegrityError, OSError):
            self._unread.add(_name_of(pair))
            return
        except MlstateError:  # this torch lacks the element type
            return
        numbers = Numbers(found.differing, found.nonfinite, found.max_abs, found.relative)
        self._found[_name_of(pair)] = numbers
        self._kept.put(*_name_of(pair), numbers)


def _name_of(pair: _Pair) -> tuple[Digest, Digest]:
    return pair[0].digest, pair[1].digest


def _counted(held: HeldTensor, meter: Meter) -> Generator[Bytes, None, None]:
    for piece in held.pieces():
        yield piece
        meter.add(len(piece))
