"""Stores of the states that manifests list, `Store()` among them, which is the default."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mlstate import settings
from mlstate.errors import ReadOnlyStoreError
from mlstate.fetch import Fetcher, OnProgress
from mlstate.locations import anchored
from mlstate.manifests import Manifest
from mlstate.manifests.required import RequiredSignature, read_required, refuse_unsigned
from mlstate.models import state_type_of
from mlstate.phrases import Phrase
from mlstate.states import StateKey, check_keys
from mlstate.stores.abstract import AnyStore
from mlstate.stores.arguments import check_list
from mlstate.stores.cache import CacheLike, PathLike, make_fetcher, open_cache
from mlstate.stores.catalog import ManifestCatalog
from mlstate.stores.custom import state_store
from mlstate.stores.prune_cache import CachePruneReport, prune_cache
from mlstate.stores.read import StateStore

__all__ = ["ManifestStore", "Store", "load_pretrained_model", "manifest_of"]

_Model = TypeVar("_Model")


_DEFAULT = Phrase("Store()", "the default store")


class ManifestStore(StateStore):
    """A read-only view of the states that a manifest lists.

    The manifest gives the digest of each state. The bytes come from the cache; what is missing
    there is fetched from the mirrors that the manifest lists, once, and verified.

    Args:
        path: A manifest, or a folder of manifests; or a `Manifest` that was read or made already.
        cache: The cache that has the bytes, and takes fetched ones: a folder, a store, or an
            object store. By default the folders of MLSTATE_READONLY_CACHES, which are only read,
            and then MLSTATE_CACHE.
        offline: Open no socket, whatever is missing. By default as MLSTATE_OFFLINE says.
        progress: Called with a `mlstate.fetch.Progress` now and then while something is fetched;
            or True, for a bar on the terminal.
        require_signature: The path of an allowed-signers file, or a
            `mlstate.signatures.SignaturePolicy`: each manifest file needs a good signature of one
            of these signers. By default as MLSTATE_REQUIRE_SIGNATURE says; False: none is needed,
            whatever that says.

    Raises:
        SignatureError: A manifest has no good signature, or is older than one that was seen.
        ManifestError: A manifest cannot be read, or two contradict each other.
        FormatError: The cache is no store, or one of a newer version.
    """

    fetcher: Fetcher
    manifest: Manifest
    path: Path | None = None
    """The file or folder that was read; None for a `Manifest`, and for several together."""
    _read_only = "a manifest is a read-only view"

    def __init__(
        self,
        path: PathLike | Manifest,
        cache: CacheLike | None = None,
        *,
        offline: bool | None = None,
        progress: OnProgress | bool | None = None,
        require_signature: RequiredSignature = None,
    ) -> None:
        if isinstance(path, Manifest):
            refuse_unsigned(path, require_signature)
            self.manifest = path
            name = f"ManifestStore(<{len(path.states)} states>)"
            self._name = Phrase(name, name)
        else:
            self.path = anchored(path)
            self.manifest = read_required([path], require_signature)  # errors name what was given
            self._name = Phrase(f"ManifestStore({str(path)!r})", str(path))
        fetcher = make_fetcher(open_cache(cache), offline=offline, progress=progress)
        super().__init__(ManifestCatalog(self.manifest), fetcher.cache, fetcher)

    @property
    def phrase(self) -> Phrase:
        """See `StateStore.phrase`."""
        return self._name

    def prune(
        self,
        *,
        max_size: int | None = None,
        older_than: float | None = None,
        dry_run: bool = False,
    ) -> CachePruneReport:
        """Make room in the cache: whole states, those first that were not used for longest.

        Removed states are fetched again when they are needed, as long as a mirror has them. States
        that were saved in the folder stay, and so do their objects. Folders that frameworks opened
        states from (`mlstate.integrations`) go in the same way.

        Args:
            max_size: The bytes that the fetched states and the folders that stay may need in all.
                No limit by default.
            older_than: The seconds since its last use after which a state goes. No limit by
                default.
            dry_run: Change nothing, and report what would be done.

        Returns:
            The states, objects and folders that were removed.

        Raises:
            ReadOnlyStoreError: The cache is no folder.
            MlstateError: A state that was saved in the folder cannot be read, so that its objects
                are unknown. Nothing was removed.
        """
        own = self.fetcher.cache.own
        if own is None:
            raise ReadOnlyStoreError("this cache is no folder that can be pruned", path=self)
        return prune_cache(own, max_size=max_size, older_than=older_than, dry_run=dry_run)


def manifest_of(
    store: AnyStore, keys: Iterable[StateKey] | None = None, *, objects: Sequence[str] = ()
) -> Manifest:
    """The states of a store as a manifest, to be written, shared and committed.

    Args:
        store: Any store of mlstate, or one of your own with `digest` or `load_state_dict`.
        keys: Which; all by default.
        objects: Object mirrors for all of them: addresses under which a copy of the store's
            folder can be read. By default each state keeps the mirrors that it has.

    Returns:
        The manifest; write it with `Manifest.write`.

    Raises:
        StateNotFoundError: There is no such state.
        FormatError: A single key or address instead of a list.
        UnsupportedStoreError: The store lacks a method that this needs.

    Example:
        >>> import torch
        >>> from mlstate import MemoryStateStore
        >>> store = MemoryStateStore()
        >>> key = StateKey.parse("pytorch.linear.ones")
        >>> _ = store.save_state_dict({"weight": torch.ones(2)}, key)
        >>> manifest = manifest_of(store, objects=["https://cdn.example.org/weights"])
        >>> manifest.states[key].digest == store.digest(key)
        True
    """
    check_list(objects, "objects", "addresses")
    view = state_store(store)
    chosen = view.get_state_keys() if keys is None else check_keys(keys)
    entries = {key: view.get(key).entry for key in chosen}
    if objects:
        entries = {key: replace(e, objects=tuple(objects)) for key, e in entries.items()}
    return Manifest(entries, tuple(objects))


class Store(ManifestStore):
    """The default store: the manifests of MLSTATE_MANIFESTS, and those that mlstate ships.

    Mirrors that the former give for a state of the latter are asked first.

    Args:
        cache: As for `ManifestStore`.
        offline: As for `ManifestStore`.
        progress: As for `ManifestStore`.
        require_signature: As for `ManifestStore`. The manifests that mlstate ships need none: they
            are a part of the program.

    Raises:
        SignatureError: A manifest has no good signature, or is older than one that was seen.
        ManifestError: A manifest cannot be read, or two contradict each other.
    """

    def __init__(
        self,
        cache: CacheLike | None = None,
        *,
        offline: bool | None = None,
        progress: OnProgress | bool | None = None,
        require_signature: RequiredSignature = None,
    ) -> None:
        manifest = read_required(
            [*map(anchored, settings.extra_manifests())],
            require_signature,
            shipped=_shipped_manifests(),
        )
        super().__init__(
            manifest, cache, offline=offline, progress=progress, require_signature=False
        )
        hint = " knows the manifests that come with mlstate and those that MLSTATE_MANIFESTS names"
        self.catalog = ManifestCatalog(manifest, _DEFAULT + hint)
        self._name = _DEFAULT


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
