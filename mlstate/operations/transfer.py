"""A state on its way: what the store that takes it in gets to see of the store that has it."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from mlstate.digests import Bytes, Digest
from mlstate.errors import IntegrityError, ObjectNotFoundError, concerning
from mlstate.fetch import OnProgress
from mlstate.fetch.progress import Meter
from mlstate.format import tensor_object
from mlstate.format.encode import EncodedState, TensorSource
from mlstate.format.tensor_object import TensorSpec
from mlstate.objects.mapped import MAP_FROM, may_map
from mlstate.objects.verified import check_digest, check_size, digest_of
from mlstate.reading import Only, read_state
from mlstate.states import StateKey
from mlstate.stores.abstract import Found
from mlstate.stores.read import StateStore

__all__ = ["Count", "StateTransfer"]

_WHAT = "a tensor object"


class Count:
    """Counts the objects of one state, each once, and tells of them.

    Args:
        key: The state.
        on_progress: Whom to tell.
    """

    def __init__(self, key: StateKey, on_progress: OnProgress | None) -> None:
        self.meter = Meter(str(key), on_progress)
        self._passed: set[Digest] = set()
        self._read: dict[Digest, int] = {}

    @property
    def nbytes(self) -> int:
        """The bytes of the objects that were read."""
        return sum(self._read.values())

    def passed(self, digest: Digest, size: int) -> None:
        """An object has been stored, or was there."""
        if digest not in self._passed:
            self._passed.add(digest)
            self.meter.add(size)

    def read(self, digest: Digest, size: int) -> None:
        """An object was read from the source."""
        self._read[digest] = size
        self.passed(digest, size)


class StateTransfer:
    """A state that another store takes in; see `mlstate.stores.save_request.Source`.

    Args:
        store: The store that has it.
        found: The state.
        count: Counts what moves.

    Attributes:
        encoded: The state, whose sources read from the store when their bytes are asked for.

    Raises:
        MlstateError: The state object cannot be had, or is damaged.
    """

    def __init__(self, store: StateStore, found: Found, count: Count) -> None:
        self._store = store
        self._entry, self._objects = found
        self._count = count
        self._lock = threading.Lock()
        self._brought = False
        store.access.bring(self._entry, Only.STATE_OBJECT, files=False)
        state = read_state(self._entry, self._objects)
        self._names = {ref.digest: name for name, ref in state.refs.items()}
        sources: dict[Digest, TensorSource] = {
            ref.digest: _Source(name, ref.spec, ref.digest, self)
            for name, ref in state.refs.items()
        }
        self.encoded = EncodedState(state, state.encode(), self._entry.pinned_digest, sources)
        count.meter.expect(sum(tensor_object.object_size(s.spec) for s in sources.values()))

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
        self._count.passed(digest, size)

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Say of an error whether it is the source that is damaged.

        Who takes an object in sees only that its bytes are not what they should be.
        """
        try:
            yield
        except ObjectNotFoundError:
            raise
        except IntegrityError as error:
            name = self._names.get(error.expected) if isinstance(error.expected, Digest) else None
            if name is not None:
                digest = self.encoded.state.refs[name].digest
                with concerning(tensor=name):
                    check_digest(
                        self._objects, digest, digest_of(self._objects, digest), what=_WHAT
                    )
            raise

    def view(self, digest: Digest, size: int) -> memoryview:
        """The bytes of an object: mapped, where that is safe, so that they take no memory."""
        with self._open(digest) as file:
            check_size(self._objects, digest, size, file.seek(0, 2), what=_WHAT)
            self._count.read(digest, size)
            if size >= MAP_FROM and may_map(file):
                return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
            file.seek(0)
            return memoryview(file.read())

    def _open(self, digest: Digest) -> BinaryIO:
        try:
            return self._objects.open(digest)
        except ObjectNotFoundError:
            with self._lock:
                if not self._brought:
                    self._store.access.bring(self._entry)
                    self._brought = True
            return self._objects.open(digest)


@dataclass(frozen=True)
class _Source:
    """A tensor of a store; see `TensorSource`. Who takes its bytes verifies them."""

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
            view = self.transfer.view(self.digest, tensor_object.object_size(self.spec))
            yield view[tensor_object.DATA_OFFSET :]
