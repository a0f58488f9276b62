"""The parts of an adoption: its request, its counters, its report."""

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
from mlstate.stores.save_request import SaveRequest

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
    """The objects of a folder: to be asked before anything comes, for later nobody can tell."""
    return set() if folder is None else set(folder.digests())


def spared_of(state: StateObject, having: Collection[Digest]) -> int:
    """The bytes of a state's tensors that were there already, each object counted once."""
    sizes = {ref.digest: ref.spec.nbytes for ref in state.refs.values() if ref.digest in having}
    return sum(sizes.values())


class Arrivals:
    """A counter of the bytes that came (`nbytes`), which passes all progress on."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self.nbytes = 0

    def __call__(self, progress: Progress) -> None:
        """Count, and pass on; see `OnProgress`."""
        if progress.ended:
            self.nbytes += progress.done
        if self._on_progress is not None:
            self._on_progress(progress)

    @contextmanager
    def meter(self, key: StateKey) -> Iterator[Meter]:
        """A meter for what is read of one state."""
        meter = Meter(str(key), self)
        try:
            yield meter
        finally:
            meter.end()


@dataclass(frozen=True)
class Told:
    """A tensor that tells a meter when it has been read; see `TensorSource`."""

    name: str
    spec: TensorSpec
    memory: Hashable
    source: TensorSource
    meter: Meter

    @classmethod
    def of(cls, source: TensorSource, meter: Meter) -> Told:
        """The same tensor, with a meter."""
        return cls(source.name, source.spec, source.memory, source, meter)

    @contextmanager
    def data(self) -> Iterator[Bytes]:
        """Its bytes; see `TensorSource.data`."""
        with self.source.data() as data:
            yield data
        self.meter.add(self.spec.nbytes)


@dataclass(frozen=True)
class Adoption:
    """The request for an adoption.

    Attributes:
        key: The key for the state.
        source: The weights.
        request: Files and meta, and whether to replace another state.
        by_caller: Whether the files are those of the caller, and not those of the source.
        arrivals: The counter of what comes.
    """

    key: StateKey
    source: WeightSource
    request: SaveRequest
    by_caller: bool
    arrivals: Arrivals

    def report(
        self, digest: Digest, size: int, files: Iterable[str], *, spared: int, existed: bool
    ) -> AdoptReport:
        """The report, with these values."""
        names = tuple(sorted(files))
        nbytes = self.arrivals.nbytes
        return AdoptReport(self.key, digest, size, nbytes, spared, existed, names)
