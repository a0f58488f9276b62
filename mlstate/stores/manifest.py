"""Stores of the states that manifests list, `Store()` among them, which is the default."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Never, TypeVar

from mlstate import settings
from mlstate.errors import ReadOnlyStoreError
from mlstate.fetch import Fetcher, OnProgress
from mlstate.locations import anchored
from mlstate.manifests import Manifest
from mlstate.manifests.pins import Pins
from mlstate.manifests.required import (
    RequiredSignature,
    read_required,
    refuse_unsigned,
    signature_is_required,
)
from mlstate.models import state_type_of
from mlstate.phrases import Phrase
from mlstate.states import StateKey, check_keys
from mlstate.stores.abstract import AnyStore
from mlstate.stores.arguments import check_list, refuse_positional
from mlstate.stores.cache import CacheLike, PathLike, make_fetcher, open_cache
from mlstate.stores.catalog import ManifestCatalog
from mlstate.stores.custom import state_store
from mlstate.stores.first_use import FirstUse
from mlstate.stores.prune_cache import CachePruneReport, prune_cache
from mlstate.stores.read import StateStore

__all__ = [
    "ManifestStore",
    "PinsMode",
    "Store",
    "load_pretrained_model",
    "manifest_of",
    "shipped_manifests",
]

_Model = TypeVar("_Model")
PinsMode = Literal["first-use", "strict"]
"""What becomes of states without a digest: their first use pins them, or they are refused."""

_DEFAULT = Phrase("Store()", "the default store")
_SEVERAL = "for several manifests: ManifestStore(Manifest.read(first, second))"
_ELSEWHERE = "for a store of your own: open_store(path)"


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
        pins: ``"first-use"``: a state without a digest, of whose files its publisher gives the
            SHA-256 or eight or more digits of it, is fetched, compared with that, and pinned in the
            user's pins file; its digest is required ever after. ``"strict"``: it is refused. By
            default as MLSTATE_PINS says. Where a signature is required it is refused in any case.

    Raises:
        ArgumentError: There is more than a path that is not given by its name.
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
        *others: Never,
        cache: CacheLike | None = None,
        offline: bool | None = None,
        progress: OnProgress | bool | None = None,
        require_signature: RequiredSignature = None,
        pins: PinsMode | None = None,
    ) -> None:
        refuse_positional(others, "cache", _SEVERAL)
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
        paths = [] if isinstance(path, Manifest) else [path]
        self._allow_first_use(pins, paths, require_signature)

    def _allow_first_use(
        self,
        pins: PinsMode | None,
        paths: list[PathLike],
        required: RequiredSignature,
        *,
        hint: str = "",
        shipped: Path | None = None,
    ) -> None:
        """Let the first use of a state without a digest pin it, where that may be."""
        strict = settings.pins(pins) == "strict"
        whole = all(entry.digest is not None for entry in self.manifest.states.values())
        # Who asks for signatures believes no server, and nobody has signed what it sends.
        if strict or whole or signature_is_required(paths, required):
            return
        own = Pins.of_user(shipped)
        self.catalog = ManifestCatalog(self.manifest, hint, own)
        self.first_use = FirstUse(own, self.fetcher)

    @property
    def phrase(self) -> Phrase:
        """See `StateStore.phrase`."""
        return self._name

    def prune(
        self,
        *,
        max_size: int | None = None,
        older_than: float | None = None,
        grace_seconds: float | None = None,
        dry_run: bool = False,
    ) -> CachePruneReport:
        """Make room in the cache: whole states, those first that were not used for longest.

        Removed states are fetched again when they are needed, as long as a mirror has them. States
        that were saved in the folder, by `mlstate.unbundle` say, stay, and so do their objects.
        Folders that frameworks opened states from (`mlstate.integrations`) go in the same way.

        Args:
            max_size: The bytes that the states and the folders that stay may need in all, saved
                states among them. No limit by default.
            older_than: The seconds since its last use after which a state goes. No limit by
                default.
            grace_seconds: A state or a folder that was used within so many seconds stays, whatever
                the limits, and so does what is younger: an hour by default, and 14 days for objects
                of a cache in which states were saved. A fetch beside a shorter one may fetch
                something twice.
            dry_run: Change nothing, and report what would be done.

        Returns:
            The states, objects and folders that were removed, and what stays against the limits,
            and why.

        Raises:
            ReadOnlyStoreError: The cache is no folder.
            MlstateError: A state that was saved in the folder cannot be read, so that its objects
                are unknown. Nothing was removed.
        """
        own = self.fetcher.cache.own
        if own is None:
            raise ReadOnlyStoreError("this cache is no folder that can be pruned", path=self)
        return prune_cache(
            own,
            max_size=max_size,
            older_than=older_than,
            grace_seconds=grace_seconds,
            dry_run=dry_run,
        )


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
    """The default store: manifests of one's own, those that mlstate ships, and of libraries.

    Mirrors that the former give for a state of the latter are asked first. Libraries register
    their manifests by entry points of the group `mlstate.manifests`; one whose manifests cannot be
    read is passed over, with a warning.

    Args:
        cache: As for `ManifestStore`.
        manifests: Manifests, and folders of some, that are read in front of the others. By default
            those of MLSTATE_MANIFESTS.
        offline: As for `ManifestStore`.
        progress: As for `ManifestStore`.
        require_signature: As for `ManifestStore`. The manifests that mlstate ships need none: they
            are a part of the program.
        pins: As for `ManifestStore`.

    Raises:
        SignatureError: A manifest has no good signature, or is older than one that was seen.
        ManifestError: A manifest cannot be read, or two contradict each other; of two libraries
            the error names both.
    """

    def __init__(
        self,
        *paths: Never,
        cache: CacheLike | None = None,
        manifests: Sequence[PathLike] | None = None,
        offline: bool | None = None,
        progress: OnProgress | bool | None = None,
        require_signature: RequiredSignature = None,
        pins: PinsMode | None = None,
    ) -> None:
        refuse_positional(paths, "cache", _ELSEWHERE)
        # Which looks through all that is installed: other stores need none of it.
        from mlstate.manifests.registered import registered, with_libraries

        if isinstance(manifests, os.PathLike):
            manifests = os.fspath(manifests)
        check_list(manifests, "manifests", "paths")  # type: ignore[arg-type]
        own = settings.extra_manifests() if manifests is None else manifests
        listed: list[PathLike] = [*map(anchored, own)]
        shipped = shipped_manifests()
        manifest = read_required(listed, require_signature, shipped=shipped)
        manifest = with_libraries(manifest, registered(require_signature))
        super().__init__(
            manifest,
            cache=cache,
            offline=offline,
            progress=progress,
            require_signature=False,
            pins="strict",  # until it is known which files need a signature
        )
        hint = (
            " knows the manifests that come with mlstate and other libraries, and those that "
            "MLSTATE_MANIFESTS names"
        )
        self.catalog = ManifestCatalog(manifest, _DEFAULT + hint)
        self._name = _DEFAULT
        self._allow_first_use(
            pins, listed, require_signature, hint=_DEFAULT + hint, shipped=shipped
        )


def load_pretrained_model(model: _Model, training_id: str = "imagenet") -> _Model:
    """Load a state from `Store()` into a model.

    Args:
        model: The model; its ``state_type`` and the training id make the key.
        training_id: Which state.

    Returns:
        The same model.

    Raises:
        StateNotFoundError: The default store has no such state.
        UnpinnedStateError: It has no digest, and MLSTATE_PINS is strict, say.
    """
    Store().load(model, StateKey(state_type_of(model), training_id))
    return model


def shipped_manifests() -> Path:
    """The folder of the manifests that come with mlstate."""
    package = Path(__file__).parents[1]
    installed = package / "_manifests"
    return installed if installed.is_dir() else package.parent / "manifests"  # a source checkout
