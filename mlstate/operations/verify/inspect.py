"""Objects read to the last byte, each once in each place, and what is wrong with them.

What is remembered of an object that is right is its digest, and what tensor it should be; the
states that need it are looked up again when something is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from sys import maxsize
from threading import Lock

from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError, MlstateError, ObjectNotFoundError
from mlstate.fetch.progress import Meter
from mlstate.format import tensor_object
from mlstate.format.state_object import StateObject
from mlstate.format.tensor_object import TensorCheck, TensorSpec
from mlstate.objects import ListedObjectStore, ObjectStore
from mlstate.objects.verified import digest_of, is_disk_error, pieces_of
from mlstate.operations.verify.report import Kind
from mlstate.parallel import for_each
from mlstate.reading import read_state_object

__all__ = ["Inspection", "Problem"]

_Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Problem:
    """What is wrong with an object in one place; most members are as in `Finding`."""

    place: ObjectStore
    kind: Kind
    path: str
    expected: str | None
    found: str | None
    spec: TensorSpec | None = None  # None if it is wrong whatever it should be


class Inspection:
    """Reads objects in every place that may have them, several at once.

    With ``trash`` those count, too, that a pruning has moved to trash/: it may put them back.

    `missing` are those that no place has; `sizes` are the bytes of tensor data of each state whose
    state object is right; `objects` and `nbytes` say how much was read.
    """

    def __init__(
        self,
        places: Sequence[ObjectStore],
        threads: int,
        meter: Meter,
        *,
        trash: bool = True,
    ) -> None:
        self._places = places
        self._threads = threads
        self._meter = meter
        self._reads_trash = trash
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
        """Read state objects, given with the most bytes of each; note what they refer to."""
        for_each(lambda item: self._read_object(*item), limits.items(), self._threads)

    def want(self, digest: Digest, spec: TensorSpec | None = None) -> None:
        """Note that an object is needed: the one of a tensor, or a file."""
        with self._lock:
            known = self._wanted.get(digest, ())
            if spec is not None and spec not in known:
                known = (*known, spec)
            # Many tensors have the same type and shape: one tuple does for all of them.
            self._wanted[digest] = self._same.setdefault(known, known)

    def read_wanted(self) -> None:
        """Read everything that was noted and is not read yet."""
        unread = [digest for digest in self._wanted if digest not in self._read]
        first_specs = (self._wanted[digest][0] for digest in unread if self._wanted[digest])
        self._meter.expect(sum(map(tensor_object.object_size, first_specs)))
        # The largest first, so that the threads end together.
        unread.sort(key=lambda digest: -_nbytes(self._wanted[digest]))
        for_each(self._read_object, unread, self._threads)

    def read_others(self, place: ListedObjectStore) -> None:
        """Read the objects of a place that were not read yet, since nothing needs them."""
        others = (digest for digest in place.digests() if digest not in self._read)

        def read(digest: Digest) -> None:
            with suppress(ObjectNotFoundError):  # pruning was at work
                self._read_in(place, digest, (), None)

        for_each(read, others, self._threads)

    def is_right(self, digest: Digest, place: ObjectStore) -> bool:
        """Whether a place has an object, with the right bytes, now."""
        spec = next(iter(self._wanted.get(digest, ())), None)
        try:
            return digest_of(place, digest, spec) == digest
        except (OSError, IntegrityError):
            return False

    def refs_of(self, digest: Digest) -> Mapping[str, tuple[Digest, TensorSpec]]:
        """What a state refers to, by name; nothing if its state object is not right."""
        for place in self._places if digest in self.sizes else ():
            with suppress(MlstateError, OSError):
                refs = read_state_object(digest, place, maxsize).refs
                return {name: (ref.digest, ref.spec) for name, ref in refs.items()}
        return {}

    def forget(self, digest: Digest) -> None:
        """Forget what was wrong with an object, which is to be read again."""
        if digest not in self.missing:
            self._counted.add(digest)
        self.problems.pop(digest, None)
        self.missing.discard(digest)
        self._read.discard(digest)

    def _read_object(self, digest: Digest, limit: int | None = None) -> None:
        """Read an object everywhere: a state object, if the most bytes of it are given."""
        specs = () if limit is not None else self._wanted[digest]
        is_there = False
        for place in self._places:
            with suppress(ObjectNotFoundError):
                self._read_in(place, digest, specs, limit)
                is_there = True
        with self._lock:
            self._read.add(digest)
            if not is_there:
                self.missing.add(digest)

    def _read_in(
        self, place: ObjectStore, digest: Digest, specs: _Specs, limit: int | None
    ) -> None:
        kind: Kind
        try:
            problems = self._problems(place, digest, specs, limit)
        except IntegrityError as error:  # of one in encoded form, which names what is damaged
            is_other = isinstance(error, ObjectNotFoundError)
            if is_other and error.expected == digest:
                raise
            kind = "missing" if is_other else "damaged"
            problems = [_problem(place, kind, error)]
        except FormatError as error:  # likewise; right bytes that are another tensor
            problems = [_problem(place, "unreadable", error, specs[0])]
        except OSError as error:
            if isinstance(error, MlstateError):
                raise
            kind = "damaged" if is_disk_error(error) else "unreadable"
            path = place.locate(digest)
            problems = [Problem(place, kind, path, str(digest), error.strerror or str(error))]
        if problems:
            with self._lock:
                self.problems.setdefault(digest, []).extend(problems)

    def _problems(
        self, place: ObjectStore, digest: Digest, specs: _Specs, limit: int | None
    ) -> list[Problem]:
        if not self._reads_trash and place.size(digest) is None:
            path = place.locate(digest)
            raise ObjectNotFoundError("an object is missing", path=path, expected=digest)
        is_short = limit is not None and (place.size(digest) or 0) <= limit
        data = bytearray() if is_short else None
        check = _read(place, digest, specs, data, self._meter)
        if digest not in self._counted:
            with self._lock:
                self.objects += 1
                self.nbytes += check.size
        if check.digest() != digest:
            # Once more: the bytes may have changed on their way here, or been mended since.
            data = bytearray() if is_short else None
            check = _read(place, digest, specs, data)
        found, path = check.digest(), place.locate(digest)
        if found != digest:
            sizes = {tensor_object.object_size(spec) for spec in specs}
            if sizes and check.size not in sizes:
                wanted, had = f"{min(sizes)} bytes", f"{check.size} bytes"
            else:
                wanted, had = str(digest), str(found)
            return [Problem(place, "damaged", path, wanted, had)]
        if limit is None:
            return [p for spec in specs if (p := _other_tensor(place, path, check, spec))]
        if data is None:
            wanted, had = f"at most {limit} bytes", f"{check.size} bytes"
            return [Problem(place, "unreadable", path, wanted, had)]
        return self._parse(place, digest, bytes(data), path)

    def _parse(self, place: ObjectStore, digest: Digest, data: bytes, path: str) -> list[Problem]:
        """Note what a state object refers to."""
        try:
            state = StateObject.parse(data)
        except FormatError as error:
            expected = None if error.expected is None else str(error.expected)
            tensor = "" if error.tensor is None else f": {error.tensor!r}"
            return [Problem(place, "unreadable", path, expected, f"{error.message}{tensor}")]
        self.sizes[digest] = state.nbytes
        for ref in state.refs.values():
            self.want(ref.digest, ref.spec)
        return []


def _read(
    place: ObjectStore,
    digest: Digest,
    specs: _Specs,
    data: bytearray | None,
    meter: Meter | None = None,
) -> TensorCheck:
    """Read an object to its end; its bytes are added to `data`.

    One in encoded form is decoded as the tensor that a state says it is; of several, as the first
    that it is.
    """
    for spec in specs[:-1]:
        with suppress(IntegrityError):
            return _read_as(place, digest, (specs, spec), data, meter)
    return _read_as(place, digest, (specs, specs[-1] if specs else None), data, meter)


def _read_as(
    place: ObjectStore,
    digest: Digest,
    said: tuple[_Specs, TensorSpec | None],
    data: bytearray | None,
    meter: Meter | None,
) -> TensorCheck:
    specs, spec = said
    check = TensorCheck(next((one for one in specs if one.dtype == "BOOL"), None))
    for piece in pieces_of(place, digest, spec):
        check.update(piece)
        if data is not None:
            data += piece
        if meter is not None:
            meter.add(len(piece))
    return check


def _problem(
    place: ObjectStore, kind: Kind, error: MlstateError, spec: TensorSpec | None = None
) -> Problem:
    """The problem that an error tells."""
    expected = None if error.expected is None else str(error.expected)
    found = error.message if error.found is None else str(error.found)
    return Problem(place, kind, str(error.path), expected, found, spec)


def _other_tensor(
    place: ObjectStore, path: str, check: TensorCheck, spec: TensorSpec
) -> Problem | None:
    """The problem of right bytes that are not the tensor which a state says they are."""
    problem = check.problem(spec)
    if problem is None:
        return None
    expected = str(problem.expected or f"values of {spec.dtype}")
    return Problem(place, "unreadable", path, expected, str(problem.found or problem.message), spec)


def _nbytes(specs: _Specs) -> int:
    return specs[0].nbytes if specs else 0
