"""Views of the stores that users write themselves, for the operations of mlstate.

A store has three methods: `get_state_keys`, `load` and `save`. Operations use others where they are
there: `load_state_dict(key)` to read a state, `digest(key)` to identify it without reading it, and
`save_state_dict(state_dict, key)` to copy into the store.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

from mlstate.digests import Digest
from mlstate.errors import (
    IntegrityError,
    ReadOnlyStoreError,
    StateExistsError,
    UnsupportedStoreError,
)
from mlstate.format import tensor_object
from mlstate.format.encode import EncodedState, TensorSource, encode_state
from mlstate.manifests import FileEntry, StateEntry
from mlstate.objects import MemoryObjectStore, ObjectStore
from mlstate.phrases import ANY_STORE, OVERWRITE, Phrase
from mlstate.states import StateKey, StateType, listed_keys
from mlstate.stores.abstract import AbstractStateStore, Found
from mlstate.stores.catalog import Catalog
from mlstate.stores.read import StateStore
from mlstate.stores.save import Saver, SavingStore
from mlstate.stores.save_request import SaveRequest, content_of

__all__ = ["saver_of", "state_store", "unsupported"]


_LISTED = "what get_state_keys returns"


def state_store(store: object) -> StateStore:
    """A store of mlstate, or a view of a user's own store that operations can use like one.

    The view loads states by the store's `load_state_dict`, and encodes them in memory.

    Raises:
        UnsupportedStoreError: The store has neither `load_state_dict` nor `digest`.
    """
    if isinstance(store, StateStore):
        return store
    if not (hasattr(store, "load_state_dict") or hasattr(store, "digest")):
        raise unsupported(store, "load_state_dict(key)")
    return _CustomStore(store)


def saver_of(store: object) -> Saver:
    """The saver of a store of mlstate, or one that calls `save_state_dict` of a user's own store.

    Raises:
        ReadOnlyStoreError: The store does not save, or has no such method; `expected` names it.
    """
    if isinstance(store, SavingStore):
        return store.saver
    if not isinstance(store, StateStore) and hasattr(store, "save_state_dict"):
        return _CustomSaver(store)
    raise ReadOnlyStoreError(
        "nothing can be copied into this store",
        path=store,
        expected=ANY_STORE + Phrase("; or a store with save_state_dict(state_dict, key)", ""),
        remedy=_remedy(store, "") if isinstance(store, str | os.PathLike) else None,
    )


def unsupported(store: object, method: str) -> UnsupportedStoreError:
    """The error that a store lacks a method, which is given as it would be called."""
    name = type(store).__name__
    return UnsupportedStoreError(
        f"{name} has no {method.partition('(')[0]}, which this needs",
        expected=f"a store with {method}",
        found=name,
        remedy=_remedy(store, name),
    )


def _remedy(store: object, name: str) -> str:
    if isinstance(store, str | os.PathLike):
        return f"open it: mlstate.open_store({os.fspath(store)!r})"
    return (
        f"give {name} this method, or load each state into a model and save that into a "
        "LocalStateStore"
    )


class _CustomStore(StateStore):
    """A view of a user's own store."""

    def __init__(self, store: Any) -> None:
        super().__init__(_CustomCatalog(store), _NoObjects(store))
        self._store = store

    @property
    def phrase(self) -> Phrase:
        return Phrase(repr(self._store), str(self._store))

    def save(self, model: Any, training_id: str) -> StateKey:
        key: StateKey = self._store.save(model, training_id)
        return key


class _CustomCatalog(Catalog):
    """The states of a user's own store.

    The entry of a state has the digest of a store that gives no tensors; otherwise the state is
    loaded and encoded in memory, as a checkpoint is.
    """

    def __init__(self, store: AbstractStateStore[Any]) -> None:
        self._store: Any = store
        self.compares = hasattr(store, "digest") and hasattr(store, "load_state_dict")

    def keys(self, state_type: StateType | None = None) -> list[StateKey]:
        if state_type is not None:
            return sorted(listed_keys(self._store.get_state_keys(state_type), _LISTED))
        listed = getattr(self._store, "available_state_keys", None)
        if listed is not None:
            return sorted(listed_keys(listed, "available_state_keys"))
        get_state_keys = getattr(self._store, "get_state_keys", None)
        if get_state_keys is None or _needs_argument(get_state_keys):
            raise UnsupportedStoreError(
                f"{type(self._store).__name__} does not list all its states",
                expected="keys=, or a store with get_state_keys() for all types",
            )
        return sorted(listed_keys(get_state_keys(), _LISTED))

    def exists(self, key: StateKey) -> bool:
        return not hasattr(self._store, "exists") or bool(self._store.exists(key))

    def recorded(self, key: StateKey) -> StateEntry | None:
        if hasattr(self._store, "load_state_dict") or not self.exists(key):
            return None
        return StateEntry(key, Digest(self._store.digest(key)))

    def checkpoint(self, key: StateKey) -> Found | None:
        if not hasattr(self._store, "load_state_dict") or not self.exists(key):
            return None
        from mlstate.tensors import encode_tensors

        objects = MemoryObjectStore()
        encoded = encode_tensors(self._store.load_state_dict(key), objects.put)
        objects.put(encoded.digest, [encoded.data])
        if hasattr(self._store, "digest") and self._store.digest(key) != encoded.digest:
            raise IntegrityError(
                "a store gives other weights than it says",
                path=self._store,
                expected=self._store.digest(key),
                found=encoded.digest,
            )
        files: dict[str, FileEntry] = {}
        if hasattr(self._store, "files"):
            for name, content in dict(self._store.files(key)).items():
                files[name] = FileEntry(Digest.of(content))
                objects.put(files[name].digest, [content])
        meta = self._store.meta(key) if hasattr(self._store, "meta") else {}
        entry = StateEntry(key, encoded.digest, encoded.state.nbytes, files=files, meta=meta)
        return Found(entry, objects)


def _needs_argument(method: Callable[..., Any]) -> bool:
    parameters = inspect.signature(method).parameters.values()
    return any(parameter.default is parameter.empty for parameter in parameters)


class _NoObjects(ObjectStore):
    """The objects of a store that gives digests and no tensors: to read one is an error."""

    def __init__(self, store: object) -> None:
        self._store = store

    def size(self, digest: Digest) -> NoReturn:
        raise unsupported(self._store, "load_state_dict(key)")

    def open(self, digest: Digest) -> BinaryIO:
        raise unsupported(self._store, "load_state_dict(key)")

    def locate(self, digest: Digest) -> str:
        return repr(self._store)


class _CustomSaver:
    """Saves into a user's own store by its `save_state_dict`; see `Saver`."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def save(self, key: StateKey, sources: list[TensorSource], request: SaveRequest) -> None:
        self.receive(encode_state(sources), request.entry(key), request)

    def receive(self, encoded: EncodedState, wanted: StateEntry, request: SaveRequest) -> bool:
        key = wanted.key
        if self._store.exists(key):
            stored = self._store.digest(key) if hasattr(self._store, "digest") else None
            if stored == encoded.digest:
                return False
            if not request.overwrite:
                raise StateExistsError(
                    "this key has a state already; nothing was changed",
                    key=key,
                    path=self._store,
                    expected=f"{encoded.digest}, yours",
                    found=f"{stored or 'a state without a digest'}, stored",
                    remedy="choose another training id, or " + OVERWRITE,
                )
        self._store.save_state_dict(_tensors_of(encoded), key, **self._options(request))
        return True

    def is_taken(self, key: StateKey) -> bool:
        return bool(self._store.exists(key))

    def delete(self, key: StateKey) -> bool:
        raise unsupported(self._store, "delete(key)")

    def change(self, key: StateKey, old: bytes, new: bytes) -> bool:
        raise unsupported(self._store, "state files")

    def _options(self, request: SaveRequest) -> dict[str, Any]:
        """The arguments of `save_state_dict`; an error if it takes no files, or no meta."""
        parameters = inspect.signature(self._store.save_state_dict).parameters
        options: dict[str, Any] = {}
        if request.files:
            options["files"] = {name: content_of(file) for name, file in request.files.items()}
        if request.meta:
            options["meta"] = request.meta
        for name in options.keys() - parameters.keys():
            raise unsupported(self._store, f"save_state_dict(state_dict, key, {name}=...)")
        if request.overwrite and "overwrite" in parameters:
            options["overwrite"] = True
        return options


def _tensors_of(encoded: EncodedState) -> dict[str, Any]:
    """The tensors of a state, verified."""
    from mlstate.tensors import places_on, read_tensors

    objects = MemoryObjectStore()
    for digest, source in encoded.sources.items():
        with source.data() as data:
            objects.put(digest, [tensor_object.header(source.spec), data])
    state = encoded.state
    return read_tensors(objects, state, None, places=places_on("cpu", state.specs))
