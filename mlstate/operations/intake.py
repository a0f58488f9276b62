"""What an adoption is made of: what was asked for, what it counts, what it did."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlstate.digests import Bytes, Digest
from mlstate.fetch.progress import Meter, OnProgress, Progress
from mlstate.format.encode import TensorSource
from mlstate.format.state_object import StateObject
from mlstate.format.tensor_object import TensorSpec
from mlstate.objects import FolderObjectStore
from mlstate.operations.sources import WeightSource
from mlstate.states import StateKey
from mlstate.stores.request import SaveRequest

__all__ = ["AdoptReport", "Adoption", "Arrivals", "Told", "digests_in", "spared_of"]


@dataclass(frozen=True)
class AdoptReport:
    """What an adoption did.

    Attributes:
        key: The key of the state.
        digest: Its state digest.
        size: The bytes of its tensors, every name counted.
        fetched: The bytes of it that were read from the source.
        spared: The bytes of its tensors that were where they belong already, each counted once
            (of those of 16 KiB and more); all, if the state was there.
        existed: Whether the same state was there under this key, and nothing was done.
        files: The names of its files.
    """

    key: StateKey
    digest: Digest
    size: int
    fetched: int
    spared: int
    existed: bool
    files: tuple[str, ...]


def digests_in(folder: FolderObjectStore | None) -> set[Digest]:
    """What a folder has, before anything comes: afterwards nobody can tell what was there."""
    return set() if folder is None else set(folder.digests())


def spared_of(state: StateObject, having: Collection[Digest]) -> int:
    """The bytes of a state's tensors that were there already, each object counted once."""
    sizes = {ref.digest: ref.spec.nbytes for ref in state.refs.values() if ref.digest in having}
    return sum(sizes.values())


class Arrivals:
    """Passes on how far everything is, and counts what came.

    Args:
        on_progress: Whom to tell.

    Attributes:
        nbytes: The bytes that came.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self.nbytes = 0

    def __call__(self, progress: Progress) -> None:
        """Take note; see `OnProgress`."""
        if progress.ended:
            self.nbytes += progress.done
        if self._on_progress is not None:
            self._on_progress(progress)

    @contextmanager
    def meter(self, key: StateKey) -> Iterator[Meter]:
        """Counts what is read of one state."""
        meter = Meter(str(key), self)
        try:
            yield meter
        finally:
            meter.end()


@dataclass(frozen=True)
class Told:
    """A tensor that tells a meter when it has been read; see `TensorSource`."""

    source: TensorSource
    meter: Meter

    @property
    def name(self) -> str:
        """Its name in the state."""
        return self.source.name

    @property
    def spec(self) -> TensorSpec:
        """Its element type and shape."""
        return self.source.spec

    @property
    def memory(self) -> Hashable:
        """As of the tensor itself."""
        return self.source.memory

    @contextmanager
    def data(self) -> Iterator[Bytes]:
        """Its bytes; see `TensorSource.data`."""
        with self.source.data() as data:
            yield data
        self.meter.add(self.spec.nbytes)


@dataclass(frozen=True)
class Adoption:
    """What was asked for.

    Attributes:
        key: The key for the state.
        source: Where the weights are.
        request: Files and meta, and whether to replace another state.
        by_caller: Whether the caller said which files; else those of the source count.
        arrivals: Counts what comes.
    """

    key: StateKey
    source: WeightSource
    request: SaveRequest
    by_caller: bool
    arrivals: Arrivals

    def report(
        self, digest: Digest, size: int, files: Iterable[str], *, spared: int, existed: bool
    ) -> AdoptReport:
        """What was done; the arguments are those of the report."""
        names = tuple(sorted(files))
        nbytes = self.arrivals.nbytes
        return AdoptReport(self.key, digest, size, nbytes, spared, existed, names)
