"""States that manifests list, and `Store()`, the default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

from mlstate import settings
from mlstate.digests import Digest
from mlstate.errors import ObjectNotFoundError, ReadOnlyStoreError, StateNotFoundError
from mlstate.locations import local_path
from mlstate.manifests import Manifest
from mlstate.models import state_type_of
from mlstate.objects import ChainObjectStore, FolderObjectStore, ObjectStore
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import check_key, check_state_type
from mlstate.stores.view import Found, StateView

__all__ = ["ManifestStore", "Store", "load_pretrained_model"]

_Model = TypeVar("_Model")
_PathLike = str | os.PathLike[str]
_CacheLike = _PathLike | StateView | ObjectStore


class ManifestStore(StateView):
    """A read-only view over the states that a manifest lists.

    The manifest says which state a key is, by digest; the bytes come from the cache.

    Args:
        path: A manifest, or a folder of manifests.
        cache: Where the bytes are: the folder of a store or cache, a store, or an object store.
            By default the folders of MLSTATE_READONLY_CACHES and then MLSTATE_CACHE.

    Raises:
        ManifestError: A manifest cannot be read, or two contradict each other.
        FormatError: The cache is no store, or one of a newer version.
    """

    def __init__(self, path: _PathLike, cache: _CacheLike | None = None) -> None:
        self._init(Manifest.read(path), cache, f"ManifestStore({str(path)!r})")

    def _init(self, manifest: Manifest, cache: _CacheLike | None, name: str) -> None:
        self.manifest = manifest
        self.objects = _open_cache(cache)
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def get_state_keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The states that are compatible with a type, or all, sorted; unpinned ones too."""
        if state_type is not None:
            check_state_type(state_type)
        return sorted(
            key
            for key in self.manifest.states
            if state_type is None or key.state_type.is_compatible_with(state_type)
        )

    def exists(self, state_key: StateKey) -> bool:
        """Whether the manifest lists a state."""
        check_key(state_key)
        return state_key in self.manifest.states

    def find(self, key: StateKey) -> Found | None:
        """Find a state; see `StateView.find`."""
        entry = self.manifest.states.get(key)
        return None if entry is None else Found(entry, self.objects)

    def save(self, model: Any, training_id: str) -> NoReturn:
        """Not possible here.

        Raises:
            ReadOnlyStoreError: Always.
        """
        raise ReadOnlyStoreError(
            "a manifest is a read-only view", path=self, remedy="save into a LocalStateStore"
        )


class Store(ManifestStore):
    """The default store: the manifests that mlstate ships and those of MLSTATE_MANIFESTS.

    Args:
        cache: As for `ManifestStore`.

    Raises:
        ManifestError: A manifest cannot be read, or two contradict each other.
    """

    def __init__(self, cache: _CacheLike | None = None) -> None:
        manifest = Manifest.read(_shipped_manifests(), *settings.extra_manifests())
        self._init(manifest, cache, "Store()")

    def get(self, key: StateKey) -> Found:
        """Find a state that is to be there; see `StateView.get`."""
        try:
            return super().get(key)
        except StateNotFoundError as error:
            error.remedy = (
                f"{error.remedy}; Store() knows the manifests that come with mlstate and those "
                "that MLSTATE_MANIFESTS names"
            )
            raise


def load_pretrained_model(model: _Model, training_id: str = "imagenet") -> _Model:
    """Load a state from `Store()` into a model.

    Args:
        model: The model; its ``state_type`` and the training id make the key.
        training_id: Which state.

    Returns:
        The same model.

    Raises:
        StateNotFoundError: The default store has no such state.
    """
    Store().load(model, StateKey(state_type_of(model), training_id))
    return model


def _shipped_manifests() -> Path:
    package = Path(__file__).parents[1]
    installed = package / "_manifests"
    return installed if installed.is_dir() else package.parent / "manifests"  # a source checkout


class _Cache(ChainObjectStore):
    """Where a manifest's states are looked for; what is not there is said to be not cached."""

    def open(self, digest: Digest) -> BinaryIO:
        try:
            return super().open(digest)
        except ObjectNotFoundError as error:
            error.message = "an object is not in the cache"
            error.remedy = (
                "save or copy the state into the cache, or give cache= (or MLSTATE_CACHE, "
                "MLSTATE_READONLY_CACHES) a folder that has it; this version does not fetch"
            )
            raise


def _open_cache(cache: _CacheLike | None) -> ObjectStore:
    if isinstance(cache, str | os.PathLike):
        return _Cache([FolderObjectStore(local_path(cache))])
    if cache is not None:
        return _Cache([cache.objects if isinstance(cache, StateView) else cache])
    folders = [*settings.readonly_caches(), settings.cache_folder()]
    return _Cache([FolderObjectStore(folder) for folder in folders])
