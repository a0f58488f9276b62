"""The weights that `diff` compares: states of stores, and files."""

from __future__ import annotations

import abc
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError, concerning
from mlstate.format.encode import EncodedState, TensorSource, encode_state
from mlstate.format.state_object import StateObject
from mlstate.models import BytesModel, TensorModel
from mlstate.phrases import Phrase
from mlstate.reading import Only, read_state, tensor_pieces
from mlstate.states import StateKey, check_key
from mlstate.stores.abstract import AnyStore
from mlstate.stores.custom import state_store
from mlstate.stores.manifest import Store
from mlstate.stores.read import StateStore
from mlstate.stores.save import sources_of_model
from mlstate.weights.files import sources_of_file
from mlstate.weights.opened import TensorInFile

__all__ = ["ComparedWeights", "StateOrFile", "open_weights"]

StateOrFile = (
    tuple[AnyStore, StateKey]
    | StateKey
    | str
    | os.PathLike[str]
    | Mapping[str, Any]
    | TensorModel
    | BytesModel
)
"""A state of a store, the path of a file of weights, or weights in memory: see `diff`."""


class ComparedWeights(abc.ABC):
    """One of the two sets of tensors that are compared."""

    files: Mapping[str, Digest] | None = None
    """The digests of the files of a state of a store; None for a file of weights."""

    @property
    @abc.abstractmethod
    def digest(self) -> Digest:
        """The state digest."""

    @property
    @abc.abstractmethod
    def state(self) -> StateObject:
        """The names, types and digests of the tensors."""

    def bring(self, names: list[str]) -> None:
        """Make sure that these tensors can be read."""
        del names  # in a file they always can

    def mend(self) -> bool:
        """Replace damaged objects; return whether there were any."""
        return False

    def pieces(self, name: str) -> Generator[Bytes, None, None]:
        """The data of a tensor, which are right if this ends without an error."""
        if name in self.state.inline:
            yield self.state.inline[name].data
        else:
            with self._concerning(name):
                yield from self._pieces(name)

    @abc.abstractmethod
    def _pieces(self, name: str) -> Iterator[Bytes]:
        """The data of a tensor that is not in the state object."""

    @abc.abstractmethod
    def _concerning(self, name: str | None = None) -> AbstractContextManager[None]:
        """A context that tells errors which weights they are about."""


class _StoredWeights(ComparedWeights):
    """A state of a store."""

    def __init__(self, store: StateStore, key: StateKey) -> None:
        self._store, self._key = store, key
        self._found = store.get_pinned(key)
        self.files = {name: file.digest for name, file in self._found.entry.files.items()}

    @property
    def digest(self) -> Digest:
        return self._found.entry.pinned_digest

    @cached_property
    def state(self) -> StateObject:
        with self._concerning():
            self._store.access.bring(self._found.entry, Only.STATE_OBJECT, files=False)
            return read_state(*self._found)

    def bring(self, names: list[str]) -> None:
        with self._concerning():
            self._store.access.bring(self._found.entry, names, files=False)

    def mend(self) -> bool:
        return self._store.access.mend(self._found.entry)

    def _pieces(self, name: str) -> Iterator[Bytes]:
        return tensor_pieces(self._found.objects, self.state.refs[name])

    def _concerning(self, name: str | None = None) -> AbstractContextManager[None]:
        return concerning(self._key, tensor=name)


class _SourceWeights(ComparedWeights):
    """The tensors of a file of weights, of several that belong together, or in memory."""

    def __init__(self, path: str | os.PathLike[str] | None, sources: list[TensorSource]) -> None:
        self._path = path
        self._sources = {source.name: source for source in sources}

    @property
    def digest(self) -> Digest:
        return self._encoded.digest

    @property
    def state(self) -> StateObject:
        return self._encoded.state

    @cached_property
    def _encoded(self) -> EncodedState:
        with self._concerning():
            return encode_state(self._sources.values())

    def _pieces(self, name: str) -> Iterator[Bytes]:
        source = self._sources[name]
        if isinstance(source, TensorInFile):
            yield from source.pieces()
        else:
            with source.data() as data:
                yield data

    def _concerning(self, name: str | None = None) -> AbstractContextManager[None]:
        return concerning(path=self._path, tensor=name)


@contextmanager
def open_weights(
    given: StateOrFile, select: str | None = None, max_size: int | str | None = None
) -> Iterator[ComparedWeights]:
    """Open weights to compare them; they are good within the context.

    Raises a `FormatError` for what has no weights, and a `StateNotFoundError`.
    """
    if isinstance(given, str | os.PathLike):
        if str(given).endswith(".toml"):
            raise FormatError(
                "this is the name of a manifest, and no file of weights",
                path=given,
                remedy="compare two manifests, "
                + Phrase("mlstate.diff_manifests(old, new)", "mlstate diff OLD.toml NEW.toml")
                + "; or give a state of it, "
                + Phrase("(ManifestStore(path), key)", "mlstate diff KEY KEY --store FILE.toml"),
            )
        # One of two files may be of a container in which nothing can be selected.
        plain = str(given).endswith((".safetensors", ".json", ".npz"))
        chosen = None if plain else select
        with sources_of_file(given, select=chosen, max_size=max_size) as sources:
            yield _SourceWeights(given, sources)
        return
    if isinstance(given, Mapping):
        from mlstate.tensors import tensor_sources

        yield _SourceWeights(None, tensor_sources(given))
        return
    if isinstance(given, TensorModel | BytesModel):
        yield _SourceWeights(None, sources_of_model(given))
        return
    yield _stored(given)


def _stored(given: object) -> ComparedWeights:
    """A state of a store; of a key alone, in the default store."""
    if isinstance(given, StateKey):
        given = (Store(), given)
    if not isinstance(given, tuple) or len(given) != 2 or isinstance(given[0], str | StateKey):
        raise FormatError(
            "this cannot be compared",
            expected="(store, key), the path of a file of weights, a model, or a state dict",
            found=repr(given),
        )
    check_key(given[1])
    return _StoredWeights(state_store(given[0]), given[1])
