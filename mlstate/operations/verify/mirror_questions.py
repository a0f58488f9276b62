"""What one mirror of a state is asked: is it all there, in the right size, with the right bytes?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import Lock

from mlstate.digests import Digest, Hasher
from mlstate.errors import (
    FetchError,
    FormatError,
    IntegrityError,
    MlstateError,
    TransportError,
)
from mlstate.fetch.attempts import Context
from mlstate.fetch.object_mirror import ObjectMirror, read_state_object
from mlstate.format import tensor_object
from mlstate.format.state_object import StateObject
from mlstate.manifests import StateEntry
from mlstate.objects.bucket import BucketObjectStore
from mlstate.objects.interface import Survey
from mlstate.objects.prefix import BucketPlace
from mlstate.operations.verify.servers import Servers
from mlstate.parallel import for_each
from mlstate.reading import state_object_limit
from mlstate.transport import Resource

__all__ = ["FAULTS", "Answer", "Questions", "reason_of", "sizes_of"]

AT_ONCE = 4
"""Objects of one state that are asked for at once."""
_EMPTY = Digest.of(b"")
_PIECE = 1 << 20
FAULTS = (TransportError, FormatError, IntegrityError)
"""The errors that are the fault of a mirror."""


@dataclass(frozen=True)
class Answer:
    """What a mirror has: so many files, of so many bytes; and what is wrong, if anything is."""

    files: int = 0
    nbytes: int = 0
    reason: str | None = None


def reason_of(error: MlstateError) -> str:
    """What went wrong with a mirror, in one line."""
    if isinstance(error, FetchError) and error.attempts:
        return "; ".join(reason for _, reason in error.attempts)
    details = [("tensor", error.tensor), ("expected", error.expected), ("found", error.found)]
    told = [f"{label}: {value}" for label, value in details if value is not None]
    return "; ".join([error.message, *told])


class Questions:
    """Questions to mirrors; of objects that states share each is asked for once.

    Nothing is stored. With ``deep`` every byte is read; without it a bucket is listed.
    """

    def __init__(self, servers: Servers, *, deep: bool) -> None:
        self._servers = servers
        self._deep = deep
        self._lock = Lock()
        self._asked: dict[str, Future[int | str]] = {}
        self._surveys: dict[str, Survey | None] = {}

    def state_object(self, entry: StateEntry, address: str, context: Context) -> StateObject:
        """The state object beside a file, verified."""
        limit = state_object_limit(entry)
        read = partial(_read_beside, address, entry.pinned_digest, limit, context)
        return StateObject.parse(self._servers.ask(address, read))

    def stored_state_object(
        self, entry: StateEntry, address: str, context: Context
    ) -> StateObject | None:
        """The state object in a copy of a store, verified; None if that lacks it."""
        mirror, limit = ObjectMirror(address, context), state_object_limit(entry)
        data = self._servers.ask(address, lambda: mirror.read(entry.pinned_digest, limit))
        return None if data is None else StateObject.parse(data)

    def objects(
        self,
        address: str,
        context: Context,
        wanted: Mapping[Digest, int | None],
        what: Mapping[Digest, str],
    ) -> Answer:
        """Ask a copy of a store for objects, each with its size if that is known."""
        mirror, survey = ObjectMirror(address, context), self._survey(address, context)
        found: dict[Digest, int | str] = {}

        def ask(digest: Digest) -> None:
            at = mirror.address_of(digest)
            question = partial(self._file, at, context, digest, wanted[digest])
            if survey is not None:
                size = partial(context.reader.patiently, partial(survey.size, digest))
                question = partial(self._listed, at, size, wanted[digest])
            found[digest] = self._once(f"{context.base}\n{at}", question)

        for_each(ask, [digest for digest in wanted if digest != _EMPTY], AT_ONCE)
        faults = {digest: said for digest, said in found.items() if isinstance(said, str)}
        sizes = [size for size in found.values() if isinstance(size, int)]
        if faults and (down := self._servers.why_not(address)):
            return Answer(len(sizes), sum(sizes), down)
        if not faults:
            return Answer(len(found), sum(sizes))
        first = min(faults, key=lambda digest: what[digest])
        more = f" (and {len(faults) - 1} more)" if faults.keys() - {first} else ""
        reason = f"{len(faults)} of {len(found)} objects: {what[first]}{more}: {faults[first]}"
        return Answer(len(found), sum(sizes), reason)

    def file(self, address: str, context: Context, digest: Digest, size: int | None) -> Answer:
        """Ask for a file of a state."""
        found = self._file(address, context, digest, size)
        return Answer(1, 0, found) if isinstance(found, str) else Answer(1, found)

    def _once(self, name: str, work: Callable[[], int | str]) -> int | str:
        """The result of the first work with this name."""
        with self._lock:
            known = self._asked.get(name)
            if known is None:
                mine = self._asked[name] = Future()
        if known is not None:
            return known.result()
        try:
            mine.set_result(work())
        except BaseException as error:
            mine.set_exception(error)
            raise
        return mine.result()

    def _file(self, address: str, context: Context, digest: Digest, size: int | None) -> int | str:
        """The size of a file that should have a digest, or what is wrong with it."""
        try:
            resource = context.open(address)
            found: int | None
            if self._deep:
                found = self._servers.ask(address, partial(_hashed, resource, digest))
            else:
                found = self._servers.ask(address, resource.size)
        except FAULTS as error:
            return reason_of(error)
        return _compared(found, size)

    def _listed(self, address: str, ask: Callable[[], int | None], size: int | None) -> int | str:
        """The size of an object in a bucket, or what is wrong with it."""
        try:
            found = self._servers.ask(address, ask)
        except FAULTS as error:
            return reason_of(error)
        return "it is not there" if found is None else _compared(found, size)

    def _survey(self, address: str, context: Context) -> Survey | None:
        """What answers many questions about a copy of a store in a bucket by a list of it."""
        if self._deep or address.partition("://")[0].lower() not in ("s3", "gs", "az"):
            return None
        from mlstate.transport.bucket import BucketResource

        with self._lock:
            if address not in self._surveys:
                found = context.transports.open(address, base=context.base, reach=context.reach)
                place = found.place if isinstance(found, BucketResource) else None
                survey = None if place is None else BucketObjectStore(BucketPlace(*place)).survey()
                self._surveys[address] = survey
            return self._surveys[address]


def _compared(found: int | None, size: int | None) -> int | str:
    if size is not None and found not in (None, size):
        return f"it has another size; expected: {size} bytes; found: {found} bytes"
    return found or 0


def _hashed(resource: Resource, digest: Digest) -> int:
    """Read a file to its end; its size. An `IntegrityError` if it has another digest."""
    hasher, size = Hasher(), 0
    with resource.read() as stream:
        while piece := stream.read(_PIECE):
            hasher.update(piece)
            size += len(piece)
    found = hasher.digest()
    if found != digest:
        raise IntegrityError("it has other bytes", expected=digest, found=found)
    return size


def _read_beside(address: str, digest: Digest, limit: int, context: Context) -> bytes:
    return read_state_object(context.open(address), digest, limit)


def sizes_of(
    entry: StateEntry, state: StateObject, files: Mapping[str, int | None]
) -> tuple[dict[Digest, int | None], dict[Digest, str]]:
    """The objects of a state, each with its size if that is known, and what it is, in words."""
    wanted: dict[Digest, int | None] = {entry.pinned_digest: len(state.encode())}
    what = {entry.pinned_digest: "the state object"}
    for name, ref in state.refs.items():
        wanted[ref.digest] = tensor_object.object_size(ref.spec)
        what.setdefault(ref.digest, f"tensor {name!r}")
    for name, file in entry.files.items():
        wanted.setdefault(file.digest, files[name])
        what.setdefault(file.digest, f"the file {name!r}")
    return wanted, what
