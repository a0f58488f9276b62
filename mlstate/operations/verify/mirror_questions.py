"""What one mirror of a state is asked: is it all there, in the right size, with the right bytes?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock

from mlstate.digests import Digest, Hasher
from mlstate.errors import (
    FetchError,
    FormatError,
    IntegrityError,
    MlstateError,
    NoRangesError,
    TransportError,
)
from mlstate.fetch import Fetcher
from mlstate.fetch.addresses import addresses_of
from mlstate.fetch.attempts import Context
from mlstate.fetch.header import HeaderRoom, fetch_header
from mlstate.fetch.names import translate_all
from mlstate.fetch.object_mirror import ObjectMirror, read_state_object
from mlstate.format import tensor_object
from mlstate.format.state_object import StateObject
from mlstate.format.tensor_object import TensorSpec
from mlstate.locations import Mirror
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import Cache
from mlstate.operations.verify.servers import Servers
from mlstate.parallel import for_each
from mlstate.reading import state_object_limit
from mlstate.transport import Resource

__all__ = ["Answer", "Questions", "reason_of", "sizes_of"]

AT_ONCE = 4
"""Objects of one state that are asked for at once."""
_EMPTY = Digest.of(b"")
_HEADER = 64 << 10
"""How much of a file of weights is asked for first, in bytes: nearly all headers are shorter."""
_PIECE = 1 << 20
_FAULTS = (TransportError, FormatError, IntegrityError)


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

    Nothing is stored: with ``deep`` every byte is read. ``fetcher`` says how patiently.
    """

    def __init__(self, fetcher: Fetcher, servers: Servers, *, deep: bool) -> None:
        self._fetcher = fetcher
        self._servers = servers
        self._deep = deep
        self._lock = Lock()
        self._asked: dict[str, Future[int | str]] = {}

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
        mirror = ObjectMirror(address, context)
        found: dict[Digest, int | str] = {}

        def ask(digest: Digest) -> None:
            at = mirror.address_of(digest)
            found[digest] = self._once(
                f"{context.base}\n{at}", lambda: self._file(at, context, digest, wanted[digest])
            )

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

    def weights(
        self, entry: StateEntry, mirror: Mirror, state: StateObject | None, context: Context
    ) -> Answer:
        """Ask for the files that have the tensors of a state.

        Which tensors they hold is looked at where it is cheap to know: in headers of safetensors.
        """
        size = entry.size if state is None else state.nbytes
        room, specs = HeaderRoom(size), dict[str, TensorSpec]()
        files = nbytes = 0
        is_told = True  # whether all files say which tensors they hold
        for part in mirror.parts or (mirror,):
            for address in self._addresses(part, context, room):
                look = partial(_look, address, part, room, context)
                found = self._servers.ask(address, look)
                files, nbytes = files + 1, nbytes + (found.size or 0)
                is_told &= found.specs is not None
                specs.update(found.specs or {})
        reason = _compare(state, size, specs) if is_told else None
        if reason is None and state is not None and _is_plain(mirror) and nbytes:
            reason = _too_short(state, nbytes)
        if reason is None and self._deep:
            return Answer(files, *self._read_all(entry, mirror, state))
        return Answer(files, nbytes, reason)

    def _addresses(self, part: Mirror, context: Context, room: HeaderRoom) -> list[str]:
        return self._servers.ask(part.urls[0], lambda: addresses_of(part, context, room.most))

    def _read_all(
        self, entry: StateEntry, mirror: Mirror, state: StateObject | None
    ) -> tuple[int, str | None]:
        """Fetch a state from this mirror alone into a folder that is removed; bytes, and why not.

        What a fetch takes for right is right: nothing else knows all kinds of files.
        """
        alone = replace(entry, mirrors=(replace(mirror, state=None),), objects=(), files={})
        with tempfile.TemporaryDirectory(prefix="mlstate-verify-") as folder:
            objects = FolderObjectStore(folder)
            if state is not None:
                objects.writer().put(entry.pinned_digest, [state.encode()])
            fetcher = Fetcher(
                Cache([objects]),
                self._fetcher.transports,
                retries=self._fetcher.retries,
                connections=self._fetcher.connections,
                durable=False,
                max_size=self._fetcher.max_size,
            )
            try:
                if entry.digest is not None:
                    return fetcher.fetch(alone).fetched, None
                return fetcher.pin(alone).size or 0, None
            except (FetchError, *_FAULTS) as error:
                return 0, reason_of(error)

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
        except _FAULTS as error:
            return reason_of(error)
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


@dataclass(frozen=True)
class _Looked:
    """A file of weights: its size, and the tensors it holds, if it says so cheaply."""

    size: int | None
    specs: Mapping[str, TensorSpec] | None


def _look(address: str, part: Mirror, room: HeaderRoom, context: Context) -> _Looked:
    resource = context.open(address)
    if part.format == "safetensors":
        try:
            header = fetch_header(resource, _HEADER, room)
        except NoRangesError:
            pass
        else:
            specs = {n: header.tensors[old].spec for n, old in _ours(part, header.tensors)}
            return _Looked(header.size, specs)
    size = resource.size()
    if size == 0:
        raise FormatError("the file is empty", path=resource.address)
    return _Looked(size, None)


def _ours(part: Mirror, names: Iterable[str]) -> Iterable[tuple[str, str]]:
    return translate_all(part, names).items()


def _is_plain(mirror: Mirror) -> bool:
    """Whether its files have the bytes of the tensors as they are."""
    return all(part.format != "torch-gzip" for part in mirror.parts or (mirror,))


def _compare(
    state: StateObject | None, size: int | None, found: Mapping[str, TensorSpec]
) -> str | None:
    """What is wrong with the tensors that files say they hold; None if nothing is."""
    if state is None:
        total = sum(spec.nbytes for spec in found.values())
        if size in (None, total):
            return None
        return f"it is another state; expected: {size} bytes of tensors; found: {total} bytes"
    having = {ref.digest for name, ref in state.refs.items() if name in found}
    lacking = sorted(name for name, ref in state.refs.items() if ref.digest not in having)
    if lacking:
        more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
        return f"it lacks tensor {lacking[0]!r}{more}"
    for name, spec in sorted(state.specs.items()):
        if found.get(name, spec) != spec:
            return f"tensor {name!r} is another; expected: {spec}; found: {found[name]}"
    return None


def _too_short(state: StateObject, nbytes: int) -> str | None:
    """What is wrong with files that are too small for the tensors of a state."""
    least = sum({ref.digest: ref.spec.nbytes for ref in state.refs.values()}.values())
    if nbytes >= least:
        return None
    return f"it is cut short; expected: at least {least} bytes; found: {nbytes} bytes"


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
