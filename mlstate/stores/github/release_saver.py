"""Saves states into the releases of a repository."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mlstate.errors import ManifestError, ReadOnlyStoreError, StateNotFoundError, concerning
from mlstate.fetch import Fetcher
from mlstate.format.encode import EncodedState, TensorSource, check_sources, encode_state
from mlstate.manifests import StateEntry
from mlstate.phrases import OVERWRITE
from mlstate.states import StateKey
from mlstate.stores.github.assets import LEGACY, key_of, make_plan
from mlstate.stores.github.release_catalog import ReleaseCatalog, ReleasePlace
from mlstate.stores.github.releases import Releases, immutable
from mlstate.stores.github.state_writer import StateAssets, StateWriter
from mlstate.stores.save_request import (
    SaveRequest,
    case_variant_exists,
    is_same,
    other_exists,
    warn_of_meta,
)

__all__ = ["ReleaseSaver"]

ASSET_LIMIT = (1 << 31) - 1  # an asset is to be smaller than 2 GiB
MOST_ASSETS = 1000  # of a release


class ReleaseSaver:
    """Saves and deletes states of releases; see `Saver`.

    Args:
        place: Where the releases are.
        catalog: What they hold.
        fetcher: Says how often and how patiently to try again what may pass.

    Attributes:
        asset_limit: The most bytes of an asset.
        most_assets: The most assets of a release.
    """

    def __init__(self, place: ReleasePlace, catalog: ReleaseCatalog, fetcher: Fetcher) -> None:
        self._place = place
        self._catalog = catalog
        self._fetcher = fetcher
        self.asset_limit = ASSET_LIMIT
        self.most_assets = MOST_ASSETS

    def save(self, key: StateKey, sources: list[TensorSource], request: SaveRequest) -> None:
        """Save a state; see `Saver.save`."""
        with concerning(key):
            wanted = request.entry(key)
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
        with concerning(key), self._place.releases(self._fetcher.retries) as releases:
            release = releases.find(self._place.tag(key.state_type))
            if release is not None:
                saving = StateWriter(releases, release, key)
                shelf = saving.look()
                if shelf.legacy is not None:
                    raise ReadOnlyStoreError(
                        "a checkpoint of the older layout has this key, and mlstate does not "
                        "delete it",
                        path=self._place.url(key, LEGACY),
                        remedy="delete the asset",
                    )
                if shelf.current is not None:
                    if saving.delete(shelf):
                        return True
                    raise StateNotFoundError("another process deleted this state first")
        return False

    def _upload(
        self, wanted: StateEntry, request: SaveRequest, encode: Callable[[], EncodedState]
    ) -> bool:
        """Upload a state, unless it is there; whether it was uploaded."""
        with self._place.releases(self._fetcher.retries) as releases:
            releases.need_credential("saving")
            settled = self._put(releases, encode(), wanted, request)
        if settled is not None and request.other_meta(settled, wanted):
            warn_of_meta(wanted.key)
        return settled is None

    def _put(
        self, releases: Releases, encoded: EncodedState, wanted: StateEntry, request: SaveRequest
    ) -> StateEntry | None:
        """Upload a state, unless it is there; what is said of it if it is, and stays so."""
        key = wanted.key
        plan = make_plan(encoded, wanted, request.files, self._place.folder(key), self.asset_limit)
        release = releases.find(self._place.tag(key.state_type))
        if release is None:
            self._refuse_variant(key, self._catalog.all_keys(releases))
            release = releases.create(self._place.tag(key.state_type), self._place.branch)
        saving = StateWriter(releases, release, key)
        shelf, existing = self._existing(saving, overwrite=request.overwrite)
        if existing is not None:
            other_meta = request.other_meta(existing, wanted)
            renew = request.overwrite and (other_meta or shelf.current is None)
            if is_same(existing, encoded.digest, wanted) and not renew:
                if shelf.current is not None:
                    saving.keep(plan, shelf, existing, self.most_assets, verify=request.verify)
                return existing
            if not request.overwrite:
                raise other_exists(existing, encoded.digest, wanted)
        elif shelf.current is None:
            tag = self._place.type_of(release)
            self._refuse_variant(key, (key_of(tag, name) for name in shelf.names))
        if release.immutable:
            raise immutable(release.tag, None)
        saving.save(plan, shelf, self.most_assets, overwrite=request.overwrite)
        return None

    def _existing(
        self, saving: StateWriter, *, overwrite: bool
    ) -> tuple[StateAssets, StateEntry | None]:
        """What the release has of a key, and what the state is that is to be compared."""
        for shelf in saving.looks():
            if shelf.current is None:
                found = (
                    self._catalog.checkpoint(saving.key) if shelf.legacy and not overwrite else None
                )
                return shelf, None if found is None else found.entry
            try:
                if entry := saving.read(shelf.current):
                    return shelf, entry
            except ManifestError as error:
                if overwrite:
                    return shelf, None  # what cannot be read is replaced
                error.remedy = "save with " + OVERWRITE + " to replace it"
                raise
        raise AssertionError  # `looks` does not end so

    def _refuse_variant(self, key: StateKey, others: Iterable[StateKey | None]) -> None:
        for other in others:
            if other is not None and other != key and str(other).lower() == str(key).lower():
                raise case_variant_exists(other)
