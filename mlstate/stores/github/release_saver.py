"""Saves states into the releases of a repository."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mlstate.errors import (
    ManifestError,
    ReadOnlyStoreError,
    SignatureError,
    StateNotFoundError,
    concerning,
)
from mlstate.format.encode import (
    EncodedState,
    TensorSource,
    check_not_empty,
    check_sources,
    encode_state,
)
from mlstate.manifests import StateEntry
from mlstate.phrases import OVERWRITE
from mlstate.states import StateKey
from mlstate.stores.github.assets import LEGACY, MAX_POINTER, key_of, make_plan, pointer_of
from mlstate.stores.github.release_catalog import ReleaseCatalog
from mlstate.stores.github.releases import Releases, immutable
from mlstate.stores.github.state_writer import StateAssets, StateWriter
from mlstate.stores.save_request import SaveRequest, case_variant_exists

__all__ = ["ReleaseSaver"]

ASSET_LIMIT = (1 << 31) - 1  # an asset is to be smaller than 2 GiB
MOST_ASSETS = 1000  # of a release


class ReleaseSaver:
    """Saves and deletes states of releases; see `Saver`.

    Attributes:
        asset_limit: The most bytes of an asset.
        most_assets: The most assets of a release.
    """

    asset_limit = ASSET_LIMIT
    most_assets = MOST_ASSETS

    def __init__(self, catalog: ReleaseCatalog) -> None:
        self._catalog = catalog
        self._place = catalog.place

    def save(self, key: StateKey, sources: list[TensorSource], request: SaveRequest) -> None:
        """Save a state; see `Saver.save`."""
        with concerning(key):
            wanted = request.entry(key)
            check_not_empty(sources)
            check_sources(sources)
            self._upload(wanted, request, lambda: encode_state(sources))

    def receive(self, encoded: EncodedState, wanted: StateEntry, request: SaveRequest) -> bool:
        """Save a state of another store; see `Saver.receive`."""
        with concerning(wanted.key):
            return self._upload(wanted, request, lambda: encoded)

    def is_taken(self, key: StateKey) -> bool:
        """Whether the key is taken; see `Saver.is_taken`."""
        return self._catalog.exists(key)

    def delete(self, key: StateKey) -> bool:
        """Remove a state, and its data; see `Saver.delete`."""
        with concerning(key), self._catalog.releases() as releases:
            release = releases.find(self._place.tag(key.state_type))
            if release is None:
                return False
            writer = StateWriter(releases, release, key, self.most_assets)
            assets = writer.list_assets()
            if assets.legacy is not None:
                raise ReadOnlyStoreError(
                    "a checkpoint of the older layout has this key, and mlstate does not delete it",
                    path=self._place.url(key, LEGACY),
                    remedy="delete the asset",
                )
            if assets.current is None:
                return False
            if not writer.delete(assets, assets.current):
                raise StateNotFoundError("another process deleted this state first")
            return True

    def change(self, key: StateKey, old: bytes, new: bytes) -> bool:
        """Replace a pointer of exactly this content; see `Saver.change`."""
        with concerning(key), self._catalog.releases() as releases:
            releases.need_credential("signing")
            release = releases.find(self._place.tag(key.state_type))
            if release is None:
                return False
            writer = StateWriter(releases, release, key, self.most_assets)
            return writer.change(writer.list_assets(), old, pointer_of(key, new, MAX_POINTER))

    def _upload(
        self, wanted: StateEntry, request: SaveRequest, encode: Callable[[], EncodedState]
    ) -> bool:
        """Upload a state, unless it is there; whether it was uploaded."""
        with self._catalog.releases() as releases:
            releases.need_credential("saving")
            stored = self._save(releases, encode(), wanted, request)
        if stored is not None:
            request.warn_of_other_meta(stored, wanted)
        return stored is None

    def _save(
        self, releases: Releases, encoded: EncodedState, wanted: StateEntry, request: SaveRequest
    ) -> StateEntry | None:
        """Upload a state; returns the stored entry instead if the state is there and stays."""
        key = wanted.key
        plan = make_plan(encoded, wanted, request.files, self._place.folder(key), self.asset_limit)
        release = releases.find(self._place.tag(key.state_type))
        if release is None:
            _refuse_case_variant(key, self._catalog.all_keys(releases))
            release = releases.create(self._place.tag(key.state_type), self._place.branch)
        writer = StateWriter(releases, release, key, self.most_assets, self._catalog.signed_text)
        assets, existing = self._existing(writer, overwrite=request.overwrite)
        is_saved = assets.current is not None
        if existing is not None:
            if request.stays(existing, encoded.digest, wanted, is_saved=is_saved):
                if is_saved:
                    writer.repair(plan, assets, existing, verify=request.verify)
                return existing
        elif not is_saved:
            tag = self._place.type_of(release)
            _refuse_case_variant(key, (key_of(tag, name) for name in assets.names))
        if release.immutable:
            raise immutable(release.tag, None)
        writer.save(plan, assets, overwrite=request.overwrite)
        return None

    def _existing(
        self, writer: StateWriter, *, overwrite: bool
    ) -> tuple[StateAssets, StateEntry | None]:
        """The assets of a key, and the entry of the state or checkpoint that is there."""
        for assets in writer.poll_assets():
            if assets.current is None:
                reads = assets.legacy is not None and not overwrite
                found = self._catalog.checkpoint(writer.key) if reads else None
                return assets, None if found is None else found.entry
            try:
                if entry := writer.read_pointer(assets.current):
                    if self._catalog.requires_signature and writer.text is not None:
                        entry = self._catalog.read_entry(writer.key, writer.text)
                    return assets, entry
            except (ManifestError, SignatureError) as error:
                if overwrite:
                    return assets, None  # what cannot be read is replaced
                error.remedy = "save with " + OVERWRITE + " to replace it"
                raise
        raise AssertionError  # `poll_assets` ends with an error


def _refuse_case_variant(key: StateKey, others: Iterable[StateKey | None]) -> None:
    for other in others:
        if other is not None and other != key and str(other).lower() == str(key).lower():
            raise case_variant_exists(other)
