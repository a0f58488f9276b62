"""States in the releases of a GitHub repository."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from mlstate import settings
from mlstate.errors import (
    AccessError,
    FormatError,
    ManifestError,
    ReadOnlyStoreError,
    StateNotFoundError,
    TransportError,
    concerning,
)
from mlstate.fetch import OnProgress
from mlstate.format.encode import EncodedState, TensorSource, check_sources, encode_state
from mlstate.manifests import StateEntry
from mlstate.phrases import OVERWRITE, Phrase
from mlstate.states import StateKey, StateType
from mlstate.stores.absent import not_found
from mlstate.stores.abstract import check_key, check_state_type
from mlstate.stores.cache import CacheLike, make_fetcher, open_cache
from mlstate.stores.github.api import GitHub, GitHubApi
from mlstate.stores.github.assets import LEGACY, POINTER, key_of, listings, make_plan
from mlstate.stores.github.publish import ReleaseSaving, Shelf
from mlstate.stores.github.releases import UPLOADED, Release, Releases, immutable
from mlstate.stores.github.web import ReleaseWeb
from mlstate.stores.read import Found, Listing
from mlstate.stores.remote import RemoteView
from mlstate.stores.request import (
    FROM_COPY,
    Saves,
    Wish,
    case_variant_exists,
    is_same,
    other_exists,
    warn_of_meta,
)

__all__ = ["GitHUBReleaseStore", "GitHubReleaseStore"]

ASSET_LIMIT = (1 << 31) - 1  # an asset is to be smaller than 2 GiB
MOST_ASSETS = 1000  # of a release
_OWNER = re.compile(r"[A-Za-z0-9_-]{1,100}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_PREFIX = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


class GitHubReleaseStore(Saves, RemoteView):
    """States in the releases of a GitHub repository: one release for each type of state.

    A release is tagged ``{prefix}.{backend}.{architecture}``. A state is a plain ``.safetensors``
    file that any tool reads, its state object and its files, and a small ``.toml``, its pointer.
    Old states (``.state.gzip``) list and load, too.

    A public state loads without a token and without a request to the API, through the cache: of a
    fine-tune of something that is there only what differs is downloaded. Listing and saving use
    the API, with the token of GH_TOKEN or GITHUB_TOKEN, or the login of GH_API_BASIC_AUTH. Of an
    Enterprise server GITHUB_API_URL gives the address.

    Args:
        repository_owner: Who the repository belongs to.
        repository_name: The repository.
        branch_name: The branch on which new releases put their tags.
        release_name_prefix: What the tags of all releases of this store begin with.
        cache: Where fetched bytes go; as for `ManifestStore`.
        offline: Open no socket. By default as MLSTATE_OFFLINE says.
        progress: As for `ManifestStore`.

    Raises:
        FormatError: A name is none that GitHub has, or the cache is no store.
    """

    def __init__(
        self,
        repository_owner: str,
        repository_name: str,
        branch_name: str = "model-store",
        release_name_prefix: str = "state",
        *,
        cache: CacheLike | None = None,
        offline: bool | None = None,
        progress: OnProgress | bool | None = None,
    ) -> None:
        _check("repository_owner", repository_owner, _OWNER)
        _check("repository_name", repository_name, _NAME)
        _check("release_name_prefix", release_name_prefix, _PREFIX)
        self.repository = f"{repository_owner}/{repository_name}"
        self.branch_name = branch_name
        self.release_name_prefix = release_name_prefix
        self.asset_limit = ASSET_LIMIT
        self.most_assets = MOST_ASSETS
        self._offline = settings.offline() if offline is None else offline
        super().__init__(make_fetcher(open_cache(cache), offline=offline, progress=progress))
        self._place = GitHub.from_environment()
        downloads = f"{self._place.server}/{self.repository}/releases/download"
        self._web = ReleaseWeb(
            self._fetcher, lambda key: f"{downloads}/{self._tag(key.state_type)}"
        )

    def __repr__(self) -> str:
        place = f"{self._place.server}/{self.repository}"
        return Phrase(f"GitHubReleaseStore({place})", place)

    def get_state_keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The states that are compatible with a type, or all, sorted by fields. Uses the API.

        Raises:
            AccessError: There is no such repository, or it is not for this caller.
            RateLimitError: GitHub allows no more requests for now; `reset` says until when.
            OfflineError: Sockets are not allowed.
        """
        if state_type is not None:
            check_state_type(state_type)
        return sorted({listing.key for listing in self._listings(state_type)})

    def listing(self) -> Iterator[Listing]:
        """All states with what listing them tells: their bytes in the release, and since when."""
        return self._listings(None)

    def exists(self, state_key: StateKey) -> bool:
        """Whether a state is in this store."""
        check_key(state_key)
        return self._web.pointed(state_key) is not None or self._web.has_legacy(state_key)

    def look(self, key: StateKey) -> Found | None:
        """Find a state by its pointer, or a checkpoint of the predecessor. Needs no API.

        A checkpoint has no digest until it has been read: it is downloaded and unpickled as plain
        tensors only, once for each store object.
        """
        entry = self._web.pointed(key) or self._web.legacy(key)
        return None if entry is None else Found(entry, self.objects)

    def recorded(self, key: StateKey) -> StateEntry | None:
        """What the pointer says; see `StateView.recorded`."""
        return self._web.pointed(key)

    def get(self, key: StateKey) -> Found:
        """Find a state that is to be there; see `StateView.get`."""
        check_key(key)
        found = self.find(key)
        if found is not None:
            return found
        near: list[StateKey] = []
        # The API may be out of reach; the state is not there all the same.
        with suppress(TransportError, AccessError):
            near = self.get_state_keys(key.state_type)
        if key in near:
            raise AccessError(
                "this state is there, and cannot be downloaded",
                key=key,
                path=self._web.url(key, POINTER),
                remedy="states load from public repositories; was it saved just now, try again",
            )
        raise not_found(key, self, near)

    def raw_bytes(self, key: StateKey) -> bytes | None:
        """The content of a checkpoint of the predecessor, for a model that reads it itself."""
        if self.is_known(key):
            return None
        if entry := self._web.pointed(key):
            self.remember(Found(entry, self.objects))
            return None
        return self._web.legacy_bytes(key)

    def delete(self, key: StateKey) -> None:
        """Remove a state, and its data.

        Raises:
            StateNotFoundError: There is no such state.
            ReadOnlyStoreError: A checkpoint of the predecessor has this key, or the release is
                immutable.
            AccessError: The token is missing, wrong, or may not write.
        """
        check_key(key)
        with concerning(key), self._releases() as releases:
            release = releases.find(self._tag(key.state_type))
            if release is not None:
                saving = ReleaseSaving(releases, release, key)
                shelf = saving.look()
                if shelf.legacy is not None:
                    raise ReadOnlyStoreError(
                        "a checkpoint of the older layout has this key, and mlstate does not "
                        "delete it",
                        path=self._web.url(key, LEGACY),
                        remedy="delete the asset",
                    )
                if shelf.current is not None:
                    if saving.delete(shelf):
                        return
                    raise StateNotFoundError("another process deleted this state first")
            raise not_found(key, self, self.get_state_keys(key.state_type))

    def _save(self, key: StateKey, sources: list[TensorSource], wish: Wish) -> StateKey:
        with concerning(key), self._releases() as releases:
            wanted = wish.entry(key)
            check_sources(sources)
            releases.need_credential("saving")
            settled = self._put(releases, encode_state(sources), wanted, wish)
            if settled is not None and wish.other_meta(settled, wanted):
                warn_of_meta(key)
        return key

    def _receive(self, encoded: EncodedState, wanted: StateEntry, wish: Wish) -> bool:
        with concerning(wanted.key), self._releases() as releases:
            releases.need_credential("saving")
            settled = self._put(releases, encoded, wanted, wish)
            if settled is not None and wish.other_meta(settled, wanted):
                warn_of_meta(wanted.key, stacklevel=FROM_COPY)
        return settled is None

    def _put(
        self, releases: Releases, encoded: EncodedState, wanted: StateEntry, wish: Wish
    ) -> StateEntry | None:
        """Upload a state, unless it is there; what is said of it if it is, and stays so."""
        key = wanted.key
        plan = make_plan(encoded, wanted, wish.files, self._web.folder_of(key), self.asset_limit)
        release = releases.find(self._tag(key.state_type))
        if release is None:
            self._refuse_variant(key, self._all_keys(releases))
            release = releases.create(self._tag(key.state_type), self.branch_name)
        saving = ReleaseSaving(releases, release, key)
        shelf, existing = self._existing(saving, overwrite=wish.overwrite)
        if existing is not None:
            other_meta = wish.other_meta(existing, wanted)
            renew = wish.overwrite and (other_meta or shelf.current is None)
            if is_same(existing, encoded.digest, wanted) and not renew:
                if shelf.current is not None:
                    saving.keep(plan, shelf, existing, self.most_assets, verify=wish.verify)
                return existing
            if not wish.overwrite:
                raise other_exists(existing, encoded.digest, wanted)
        elif shelf.current is None:
            tag = release.tag.removeprefix(f"{self.release_name_prefix}.")
            self._refuse_variant(key, (key_of(tag, name) for name in shelf.names))
        if release.immutable:
            raise immutable(release.tag, None)
        saving.save(plan, shelf, self.most_assets, overwrite=wish.overwrite)
        return None

    def _existing(
        self, saving: ReleaseSaving, *, overwrite: bool
    ) -> tuple[Shelf, StateEntry | None]:
        """What the release has of a key, and what the state is that is to be compared."""
        for shelf in saving.looks():
            if shelf.current is None:
                found = self.find(saving.key) if shelf.legacy and not overwrite else None
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

    # What is where.

    def _tag(self, state_type: StateType) -> str:
        return f"{self.release_name_prefix}.{state_type.backend}.{state_type.architecture}"

    @contextmanager
    def _releases(self) -> Iterator[Releases]:
        retries = self._fetcher.retries
        with GitHubApi(self._place, offline=self._offline, retries=retries) as api:
            yield Releases(api, self.repository)

    def _listings(self, state_type: StateType | None) -> Iterator[Listing]:
        with self._releases() as releases:
            for release in self._listed(releases, state_type):
                tag = release.tag.removeprefix(f"{self.release_name_prefix}.")
                assets = (a for a in releases.assets(release) if a.state == UPLOADED)
                yield from listings(tag, assets)

    def _listed(self, releases: Releases, state_type: StateType | None) -> Iterator[Release]:
        """The release of a type, or all of this store; an unknown repository is an error."""
        if state_type is None:
            prefix = f"{self.release_name_prefix}."
            yield from (release for release in releases.all() if release.tag.startswith(prefix))
        elif release := releases.find(self._tag(state_type)):
            yield release
        else:
            next(releases.all(), None)

    def _all_keys(self, releases: Releases) -> Iterator[StateKey]:
        for release in self._listed(releases, None):
            tag = release.tag.removeprefix(f"{self.release_name_prefix}.")
            keys = (key_of(tag, asset.name) for asset in releases.assets(release))
            yield from (key for key in keys if key is not None)


GitHUBReleaseStore = GitHubReleaseStore


def _check(name: str, value: object, pattern: re.Pattern[str]) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value) or value in (".", ".."):
        raise FormatError(f"not a valid {name}", expected=pattern.pattern, found=repr(value))
