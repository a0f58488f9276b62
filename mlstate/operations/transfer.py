"""A state on its way from the store that has it to the store that takes it in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

from mlstate.digests import Bytes, Digest
from mlstate.errors import IntegrityError, ObjectNotFoundError, concerning
from mlstate.fetch import OnProgress
from mlstate.fetch.progress import Meter
from mlstate.format import tensor_object
from mlstate.format.encode import EncodedState, TensorSource
from mlstate.format.tensor_object import TensorSpec
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore
from mlstate.objects.decoded import DecodedObject
from mlstate.objects.mapped import view_of
from mlstate.objects.verified import check_digest, check_size, digest_of, open_object
from mlstate.reading import Only, read_state
from mlstate.states import StateKey
from mlstate.stores.abstract import Found
from mlstate.stores.read import StateStore
from mlstate.stores.save import Saver
from mlstate.stores.save_request import SaveRequest

__all__ = ["ObjectCounter", "StateTransfer"]

_WHAT = "a tensor object"


class ObjectCounter:
    """Counts the objects of one state, each once, and tells of its progress."""

    def __init__(self, key: StateKey, on_progress: OnProgress | None) -> None:
        self.meter = Meter(str(key), on_progress)
        self._passed: set[Digest] = set()
        self._read: dict[Digest, int] = {}

    @property
    def nbytes(self) -> int:
        """The bytes of the objects that were read."""
        return sum(self._read.values())

    def passed(self, digest: Digest, size: int) -> None:
        """Count an object that has been stored, or was there."""
        if digest not in self._passed:
            self._passed.add(digest)
            self.meter.add(size)

    def read(self, digest: Digest, size: int) -> None:
        """Count an object that was read from the source."""
        self._read[digest] = size
        self.passed(digest, size)


class StateTransfer:
    """A state that another store takes in; see `mlstate.stores.save_request.Source`.

    The sources of `encoded` read from the store when their bytes are asked for. Raises an
    `MlstateError` if the state object cannot be had or is damaged.
    """

    def __init__(self, store: StateStore, found: Found, counter: ObjectCounter) -> None:
        self._store = store
        self._entry, self._objects = found
        self._counter = counter
        self._lock = threading.Lock()
        self._brought = False
        store.access.bring(self._entry, Only.STATE_OBJECT, files=False)
        state = read_state(self._entry, self._objects)
        self._names = {ref.digest: name for name, ref in state.refs.items()}
        self._specs = {ref.digest: ref.spec for ref in state.refs.values()}
        sources: dict[Digest, TensorSource] = {
            ref.digest: _StoredTensor(name, ref.spec, ref.digest, self)
            for name, ref in state.refs.items()
        }
        self.encoded = EncodedState(state, state.encode(), self._entry.pinned_digest, sources)
        counter.meter.expect(sum(tensor_object.object_size(s.spec) for s in sources.values()))

    def save_into(self, target: Saver, wanted: StateEntry, request: SaveRequest) -> bool:
        """Save the state by another store's saver; return whether it was not there.

        The saver sees only that bytes are not what they should be. If it is the source that is
        damaged, the error is raised that says so.
        """
        try:
            return target.receive(self.encoded, wanted, replace(request, source=self))
        except ObjectNotFoundError:
            raise
        except IntegrityError as error:
            digest = error.expected
            if isinstance(digest, Digest) and digest in self._names:
                with concerning(tensor=self._names[digest]):
                    found = digest_of(self._objects, digest, self._specs[digest])
                    check_digest(self._objects, digest, found, what=_WHAT)
            raise

    @property
    def objects(self) -> ObjectStore:
        """See `Source.objects`."""
        return self._objects

    def bring(self, missing: Callable[[], Collection[Digest]]) -> None:
        """Fetch what is missing of these objects, many at once; see `Source.bring`."""
        if self._store.fetcher is None:
            return
        wanted = set(missing())
        refs = self.encoded.state.refs
        names = [name for name, ref in refs.items() if ref.digest in wanted]
        if names:
            self._store.access.bring(self._entry, names, files=False)

    def passed(self, digest: Digest, size: int) -> None:
        """Count an object; see `Source.passed`."""
        self._counter.passed(digest, size)

    def view(self, digest: Digest) -> memoryview:
        """The bytes of an object: mapped, where that is safe, so that they take no memory."""
        size = tensor_object.object_size(self._specs[digest])
        with self._open(digest) as file:
            if isinstance(file, DecodedObject):
                self._counter.read(digest, size)
                return file.memory
            check_size(self._objects, digest, size, file.seek(0, 2), what=_WHAT)
            self._counter.read(digest, size)
            return view_of(file, size)

    def _open(self, digest: Digest) -> BinaryIO:
        spec = self._specs[digest]
        try:
            return open_object(self._objects, digest, spec)
        except ObjectNotFoundError:
            with self._lock:
                if not self._brought:
                    self._store.access.bring(self._entry)
                    self._brought = True
            return open_object(self._objects, digest, spec)


@dataclass(frozen=True)
class _StoredTensor:
    """A tensor of a store; see `TensorSource`. The store that takes its bytes verifies them."""

    name: str
    spec: TensorSpec
    digest: Digest
    transfer: StateTransfer

    @property
    def memory(self) -> Hashable:
        return self.digest

    @contextmanager
    def data(self) -> Iterator[Bytes]:
        with concerning(tensor=self.name):
            yield self.transfer.view(self.digest)[tensor_object.DATA_OFFSET :]
