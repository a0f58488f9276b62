"""Reading objects to the last byte: each once in each place, and what is wrong with them.

What is remembered of an object that is right is its digest, and what tensor it should be; who
needs it is found out again when something is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock

from mlstate.digests import Digest
from mlstate.errors import FormatError, MlstateError, ObjectNotFoundError
from mlstate.fetch.progress import Meter
from mlstate.format import tensor_object
from mlstate.format.state_object import StateObject
from mlstate.format.tensor_object import TensorCheck, TensorSpec
from mlstate.objects import ListedObjectStore, ObjectStore
from mlstate.objects.verified import digest_of, is_disk_error, pieces_of
from mlstate.operations.verify.report import Kind
from mlstate.parallel import for_each

__all__ = ["Inspection", "Problem"]

_Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Problem:
    """What is wrong with an object in one place.

    Attributes:
        place: The object store.
        kind: As in `Finding`.
        path: Where it is.
        expected: What should be there.
        found: What is there.
        spec: The tensor that it is not; None if it is wrong whatever it should be.
    """

    place: ObjectStore
    kind: Kind
    path: str
    expected: str | None
    found: str | None
    spec: TensorSpec | None = None


@dataclass
class _Seen:
    """What an object turned out to be."""

    check: TensorCheck
    whole: bytearray | None = None


class Inspection:
    """Looks at objects.

    Args:
        places: The stores that may have them; each is looked at.
        threads: How many objects to read at once.
        meter: Counts the bytes that are read.

    Attributes:
        problems: What is wrong, by object.
        missing: The objects that no place has.
        sizes: The bytes of tensor data of each state whose state object is right.
        objects: How many objects were read.
        nbytes: How many bytes of them.
    """

    def __init__(self, places: Sequence[ObjectStore], threads: int, meter: Meter) -> None:
        self._places = places
        self._threads = threads
        self._meter = meter
        self._lock = Lock()
        self._wanted: dict[Digest, _Specs] = {}
        self._read: set[Digest] = set()
        self._counted: set[Digest] = set()
        self._same: dict[_Specs, _Specs] = {}
        self.problems: dict[Digest, list[Problem]] = {}
        self.missing: set[Digest] = set()
        self.sizes: dict[Digest, int] = {}
        self.objects = 0
        self.nbytes = 0

    def read_states(self, limits: Mapping[Digest, int]) -> None:
        """Read state objects, and note what they refer to.

        Args:
            limits: The digest of each, with the most bytes that it may have.
        """
        for_each(lambda item: self._look(item[0], limit=item[1]), limits.items(), self._threads)

    def want(self, digest: Digest, spec: TensorSpec | None = None) -> None:
        """Note that an object is needed: the one of a tensor, or a file."""
        with self._lock:
            self._want(digest, spec)

    def read_wanted(self) -> None:
        """Read everything that was noted and is not read yet."""
        unread = [digest for digest in self._wanted if digest not in self._read]
        self._meter.expect(sum(self._sizes_of(unread)))
        # The largest first, so that the threads end together.
        unread.sort(key=lambda digest: -_nbytes(self._wanted[digest]))
        for_each(self._look, unread, self._threads)

    def read_others(self, place: ListedObjectStore) -> None:
        """Read the objects of a place that were not read yet, since nothing needs them."""
        others = (digest for digest in place.digests() if digest not in self._read)

        def look(digest: Digest) -> None:
            with suppress(ObjectNotFoundError):  # pruning was at work
                self._look_in(place, digest, (), None)

        for_each(look, others, self._threads)

    def is_right(self, digest: Digest, place: ObjectStore) -> bool:
        """Whether a place has an object, with the right bytes, now."""
        try:
            return digest_of(place, digest) == digest
        except OSError:
            return False

    def refs_of(self, digest: Digest) -> Mapping[str, tuple[Digest, TensorSpec]]:
        """What a state refers to, by name; nothing if its state object is not right."""
        if digest in self.sizes:
            for place in self._places:
                with suppress(MlstateError, OSError):
                    data = _see(place, digest, (), bytearray()).whole or b""
                    if Digest.of(data) == digest:
                        refs = StateObject.parse(bytes(data)).refs
                        return {name: (ref.digest, ref.spec) for name, ref in refs.items()}
        return {}

    def forget(self, digest: Digest) -> None:
        """Forget what was wrong with an object, which is to be read again."""
        if digest not in self.missing:
            self._counted.add(digest)
        self.problems.pop(digest, None)
        self.missing.discard(digest)
        self._read.discard(digest)

    def _look(self, digest: Digest, *, limit: int | None = None) -> None:
        specs = () if limit is not None else self._wanted[digest]
        there = False
        for place in self._places:
            with suppress(ObjectNotFoundError):
                self._look_in(place, digest, specs, limit)
                there = True
        with self._lock:
            self._read.add(digest)
            if not there:
                self.missing.add(digest)

    def _look_in(
        self, place: ObjectStore, digest: Digest, specs: _Specs, limit: int | None
    ) -> None:
        try:
            problems = self._problems(place, digest, specs, limit)
        except OSError as error:
            if isinstance(error, MlstateError):
                raise
            kind: Kind = "damaged" if is_disk_error(error) else "unreadable"
            path = place.locate(digest)
            problems = [Problem(place, kind, path, str(digest), error.strerror or str(error))]
        if problems:
            with self._lock:
                self.problems.setdefault(digest, []).extend(problems)

    def _problems(
        self, place: ObjectStore, digest: Digest, specs: _Specs, limit: int | None
    ) -> list[Problem]:
        whole = None
        if limit is not None and (place.size(digest) or 0) <= limit:
            whole = bytearray()
        seen = _see(place, digest, specs, whole, self._meter)
        if digest not in self._counted:
            with self._lock:
                self.objects += 1
                self.nbytes += seen.check.size
        if seen.check.digest() != digest:
            # Once more: the bytes may have changed on their way here, or been mended since.
            seen = _see(place, digest, specs, None if whole is None else bytearray())
        found, path = seen.check.digest(), place.locate(digest)
        if found != digest:
            sizes = {tensor_object.object_size(spec) for spec in specs}
            if sizes and seen.check.size not in sizes:
                wanted, had = f"{min(sizes)} bytes", f"{seen.check.size} bytes"
            else:
                wanted, had = str(digest), str(found)
            return [Problem(place, "damaged", path, wanted, had)]
        if limit is None:
            return [p for spec in specs if (p := _other_tensor(place, path, seen, spec))]
        if seen.whole is None:
            wanted, had = f"at most {limit} bytes", f"{seen.check.size} bytes"
            return [Problem(place, "unreadable", path, wanted, had)]
        return self._parse(place, digest, bytes(seen.whole), path)

    def _parse(self, place: ObjectStore, digest: Digest, data: bytes, path: str) -> list[Problem]:
        try:
            state = StateObject.parse(data)
        except FormatError as error:
            expected = None if error.expected is None else str(error.expected)
            return [Problem(place, "unreadable", path, expected, _said(error))]
        with self._lock:
            self.sizes[digest] = state.nbytes
            for ref in state.refs.values():
                self._want(ref.digest, ref.spec)
        return []

    def _want(self, digest: Digest, spec: TensorSpec | None) -> None:
        known = self._wanted.get(digest, ())
        if spec is not None and spec not in known:
            known = (*known, spec)
        # Many tensors have the same type and shape: one tuple does for all of them.
        self._wanted[digest] = self._same.setdefault(known, known)

    def _sizes_of(self, digests: Iterable[Digest]) -> Iterator[int]:
        for digest in digests:
            specs = self._wanted[digest]
            yield tensor_object.object_size(specs[0]) if specs else 0


def _see(
    place: ObjectStore,
    digest: Digest,
    specs: _Specs,
    whole: bytearray | None,
    meter: Meter | None = None,
) -> _Seen:
    seen = _Seen(TensorCheck(next((spec for spec in specs if spec.dtype == "BOOL"), None)), whole)
    for piece in pieces_of(place, digest):
        seen.check.update(piece)
        if whole is not None:
            whole += piece
        if meter is not None:
            meter.add(len(piece))
    return seen


def _other_tensor(place: ObjectStore, path: str, seen: _Seen, spec: TensorSpec) -> Problem | None:
    """Right bytes, which are not the tensor that a state says they are."""
    problem = seen.check.problem(spec)
    if problem is None:
        return None
    expected = str(problem.expected or f"values of {spec.dtype}")
    return Problem(place, "unreadable", path, expected, str(problem.found or problem.message), spec)


def _nbytes(specs: _Specs) -> int:
    return specs[0].nbytes if specs else 0


def _said(error: FormatError) -> str:
    return error.message if error.tensor is None else f"{error.message}: {error.tensor!r}"
