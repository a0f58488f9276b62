"""The two kinds of weights that can be compared: states of stores, and files."""

from __future__ import annotations

import abc
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError, concerning
from mlstate.format.encode import EncodedState, TensorSource, encode_state
from mlstate.format.state_object import StateObject
from mlstate.reading import Only, read_state, tensor_pieces
from mlstate.states import StateKey, check_key
from mlstate.stores.abstract import AnyStore
from mlstate.stores.custom import state_store
from mlstate.stores.read import StateStore
from mlstate.weights.checkpoints import TensorInCheckpoint
from mlstate.weights.files import LocalTensor, sources_of_file

__all__ = ["OpenedSide", "Side", "opened"]

Side = tuple[AnyStore, StateKey] | str | os.PathLike[str]
"""A state of a store, or the path of a file of weights."""


class OpenedSide(abc.ABC):
    """One side of a comparison."""

    files: Mapping[str, Digest] | None = None
    """The digests of the files of a state of a store."""

    @property
    @abc.abstractmethod
    def digest(self) -> Digest:
        """The state digest."""

    @property
    @abc.abstractmethod
    def state(self) -> StateObject:
        """The tensors that there are."""

    def bring(self, names: list[str]) -> None:
        """Make sure that these tensors can be read."""
        del names  # what lies in a file is there

    def mend(self) -> bool:
        """Replace damaged objects; return whether there were any."""
        return False

    def pieces(self, name: str) -> Generator[Bytes, None, None]:
        """The data of a tensor. They are right if this ends without an error."""
        if name in self.state.inline:
            yield self.state.inline[name].data
        else:
            with self.concerned(name):
                yield from self.large(name)

    @abc.abstractmethod
    def large(self, name: str) -> Iterator[Bytes]:
        """The data of a tensor that is not in the state object."""

    @abc.abstractmethod
    def concerned(self, name: str | None = None) -> AbstractContextManager[None]:
        """A context that tells errors what they are about."""


class _Stored(OpenedSide):
    """A state of a store."""

    def __init__(self, store: StateStore, key: StateKey) -> None:
        self._store, self._key = store, key
        self._found = store.get(key)
        self.files = {name: file.digest for name, file in self._found.entry.files.items()}

    @property
    def digest(self) -> Digest:
        return self._found.entry.pinned_digest

    @cached_property
    def state(self) -> StateObject:
        with self.concerned():
            self._store.access.bring(self._found.entry, Only.STATE_OBJECT, files=False)
            return read_state(*self._found)

    def bring(self, names: list[str]) -> None:
        with self.concerned():
            self._store.access.bring(self._found.entry, names, files=False)

    def mend(self) -> bool:
        return self._store.access.mend(self._found.entry)

    def large(self, name: str) -> Iterator[Bytes]:
        return tensor_pieces(self._found.objects, self.state.refs[name])

    def concerned(self, name: str | None = None) -> AbstractContextManager[None]:
        return concerning(self._key, tensor=name)


class _InFile(OpenedSide):
    """A file of weights, or several together."""

    def __init__(self, path: str | os.PathLike[str], sources: list[TensorSource]) -> None:
        self._path = path
        self._sources = {source.name: source for source in sources}

    @cached_property
    def _encoded(self) -> EncodedState:
        with self.concerned():
            return encode_state(self._sources.values())

    @property
    def digest(self) -> Digest:
        return self._encoded.digest

    @property
    def state(self) -> StateObject:
        return self._encoded.state

    def large(self, name: str) -> Iterator[Bytes]:
        source = self._sources[name]
        if isinstance(source, LocalTensor | TensorInCheckpoint):
            yield from source.pieces()
        else:
            with source.data() as data:
                yield data

    def concerned(self, name: str | None = None) -> AbstractContextManager[None]:
        return concerning(path=self._path, tensor=name)


@contextmanager
def opened(side: Side, select: str | None = None) -> Iterator[OpenedSide]:
    """Look at a side; it is good within the context.

    Raises:
        FormatError: It is neither a state of a store nor a file of weights.
        StateNotFoundError: There is no such state.
    """
    if isinstance(side, str | os.PathLike):
        with sources_of_file(side, select=_applicable(select, side)) as sources:
            yield _InFile(side, sources)
        return
    if not (isinstance(side, tuple) and len(side) == 2 and not isinstance(side[0], str | StateKey)):
        raise FormatError(
            "this cannot be compared",
            expected="(store, key), or the path of a file of weights",
            found=repr(side),
        )
    check_key(side[1])
    yield _Stored(state_store(side[0]), side[1])


def _applicable(select: str | None, path: str | os.PathLike[str]) -> str | None:
    """The selection for a file: none in a safetensors file, which may be one of the two."""
    return None if str(path).endswith((".safetensors", ".json")) else select
