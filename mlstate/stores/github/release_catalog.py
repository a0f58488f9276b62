"""The catalog of the states in the releases of a repository.

GitHub's API lists them. The address of an asset follows from its name, so that a public state is
loaded without a token and without a request to the API.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from mlstate.errors import AccessError, FormatError, MlstateError, OfflineError, TransportError
from mlstate.fetch import Fetcher
from mlstate.fetch.reader import read_exactly
from mlstate.format.layout import SIGNATURE_SUFFIX
from mlstate.locations import parse_mirror
from mlstate.manifests import StateEntry
from mlstate.manifests.parse import parse_state_file
from mlstate.pickled.gzipped import unpacks_to
from mlstate.signatures.sshsig import MAX_SIGNATURE
from mlstate.states import StateKey, StateType
from mlstate.stores.abstract import Found, Listing
from mlstate.stores.arguments import not_found
from mlstate.stores.catalog import Catalog
from mlstate.stores.checkpoints import unsigned_checkpoint
from mlstate.stores.github.api import GitHub, GitHubApi
from mlstate.stores.github.assets import (
    LEGACY,
    MAX_POINTER,
    OLD,
    POINTER,
    check_pointer_size,
    key_of,
    listings,
    stem_of,
)
from mlstate.stores.github.releases import UPLOADED, Release, Releases
from mlstate.stores.remote_entries import from_elsewhere
from mlstate.transport import Resource, retrying

if TYPE_CHECKING:
    from mlstate.manifests.state_signatures import StateSignatures, StateText

__all__ = ["ReleaseCatalog", "ReleasePlace"]

_CHUNK = 1 << 20
_T = TypeVar("_T")


@dataclass(frozen=True)
class ReleasePlace:
    """The server, the repository, and the prefix of the tags of a store's releases.

    New releases put their tags on the branch. No socket is opened if `offline` is set.
    """

    github: GitHub
    repository: str
    branch: str
    prefix: str
    offline: bool

    def tag(self, state_type: StateType) -> str:
        """The tag of the release that has the states of a type."""
        return f"{self.prefix}.{state_type.backend}.{state_type.architecture}"

    def type_of(self, release: Release) -> str:
        """The tag of a release without the prefix: ``backend.architecture``."""
        return release.tag.removeprefix(f"{self.prefix}.")

    def folder(self, key: StateKey) -> str:
        """The address in front of the names of all assets of a key's release."""
        tag = self.tag(key.state_type)
        return f"{self.github.server}/{self.repository}/releases/download/{tag}"

    def url(self, key: StateKey, suffix: str) -> str:
        """The address of an asset of a state."""
        return f"{self.folder(key)}/{quote(stem_of(key) + suffix)}"


class ReleaseCatalog(Catalog):
    """The states in the releases of a repository, downloaded by the fetcher into its cache."""

    remote = True

    def __init__(
        self,
        place: ReleasePlace,
        fetcher: Fetcher,
        signatures: StateSignatures | None = None,
    ) -> None:
        self.place = place
        self.signatures = signatures
        self._fetcher = fetcher
        self._pinned: dict[StateKey, StateEntry] = {}

    @contextmanager
    def releases(self) -> Iterator[Releases]:
        """The releases, by way of the API, within the context."""
        place, retries = self.place, self._fetcher.retries
        with GitHubApi(place.github, offline=place.offline, retries=retries) as api:
            yield Releases(api, place.repository)

    def keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The keys that are compatible with a type, or all. Uses the API."""
        return sorted({listing.key for listing in self._listings(state_type)})

    def listing(self) -> Iterator[Listing]:
        """All states, each with its size in the release and its time. Uses the API."""
        return self._listings(None)

    def exists(self, key: StateKey) -> bool:
        """Whether there is a pointer, or a checkpoint of MLModule."""
        return self.recorded(key) is not None or self._has_checkpoint(key)

    def recorded(self, key: StateKey) -> StateEntry | None:
        """The entry of the pointer, or of the old one while a new one is uploaded."""
        found = self._pointer(key)
        return None if found is None else from_elsewhere(self.read_entry(key, *found), found[1])

    def text(self, key: StateKey) -> StateText | None:
        """The pointer as it is; None without one."""
        found = self._pointer(key)
        return None if found is None else self._text(key, *found)

    def read_entry(self, key: StateKey, data: bytes, url: str | None = None) -> StateEntry:
        """The entry of a pointer with this content, if it is signed where it has to be.

        Raises:
            SignatureError: It has no good signature, and needs one.
            ManifestError: It cannot be read, or is too large.
        """
        url = url or self.place.url(key, POINTER)
        check_pointer_size(data, url)
        if self.signatures is None:
            return parse_state_file(data, key, url)
        return self.signatures.entry(self._text(key, data, url))

    def signed_text(self, entry: StateEntry, before: bytes | None) -> bytes | None:
        """The content of a new pointer if this store signs, else None.

        `before` is that of the pointer that it replaces.
        """
        if self.signatures is None or self.signatures.key is None:
            return None
        return self.signatures.written(entry, self.place.url(entry.key, POINTER), before)

    def _text(self, key: StateKey, data: bytes, url: str) -> StateText:
        from mlstate.manifests.state_signatures import StateText

        # A pointer that is about to be replaced is the same pointer under another name.
        beside = partial(self._read, url + SIGNATURE_SUFFIX, MAX_SIGNATURE)
        return StateText(data, key, url, self.place.url(key, POINTER), beside)

    def _pointer(self, key: StateKey) -> tuple[bytes, str] | None:
        """The content of the pointer, and its address."""
        for suffix in (POINTER, OLD, POINTER):  # it may be replaced between the first two requests
            url = self.place.url(key, suffix)
            data = self._read(url, MAX_POINTER)
            if data is not None:
                return data, url
        return None

    def checkpoint(self, key: StateKey) -> Found | None:
        """A checkpoint of MLModule, downloaded once for each store object."""
        url = self.place.url(key, LEGACY)
        if self.requires_signature and self._has_checkpoint(key):
            raise unsigned_checkpoint(key, url)
        if key not in self._pinned:
            if not self._has_checkpoint(key):
                return None
            mirror = parse_mirror({"url": url, "format": "torch-gzip"})
            entry = StateEntry(key, None, None, (mirror,), origin=url)
            self._pinned[key] = self._fetcher.pin(entry)
        return Found(self._pinned[key], self._fetcher.cache)

    def checkpoint_bytes(self, key: StateKey) -> bytes | None:
        """The content of a checkpoint of MLModule, unpacked; None without one."""
        url, most = self.place.url(key, LEGACY), self._fetcher.max_size
        data = self._read(url, most)
        if data is None:
            return None
        if self.requires_signature:
            raise unsigned_checkpoint(key, url)
        most = min(most, unpacks_to(len(data)))
        try:
            content = bytearray()
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                while len(content) <= most and (chunk := file.read(_CHUNK)):
                    content += chunk
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise FormatError("this checkpoint is damaged", path=url, found=error) from None
        if max(len(data), len(content)) > most:
            raise FormatError(
                "this is larger than what may be fetched",
                path=url,
                expected=f"at most {most} bytes",
            )
        return bytes(content)

    def absent(self, key: StateKey, store: object) -> MlstateError:
        """The error that a state is not there, or is there and cannot be downloaded."""
        near: list[StateKey] = []
        # The API may be out of reach; the state is not there all the same.
        with suppress(TransportError, AccessError):
            near = self.keys(key.state_type)
        if key in near:
            return AccessError(
                "this state is there, and cannot be downloaded",
                key=key,
                path=self.place.url(key, POINTER),
                remedy="states load from public repositories; was it saved just now, try again",
            )
        return not_found(key, store, near)

    def all_keys(self, releases: Releases) -> Iterator[StateKey]:
        """The keys of all releases of the store, those without data too."""
        for release in self._releases_of(releases, None):
            tag = self.place.type_of(release)
            keys = (key_of(tag, asset.name) for asset in releases.assets(release))
            yield from (key for key in keys if key is not None)

    def _listings(self, state_type: StateType | None) -> Iterator[Listing]:
        with self.releases() as releases:
            for release in self._releases_of(releases, state_type):
                assets = (a for a in releases.assets(release) if a.state == UPLOADED)
                yield from listings(self.place.type_of(release), assets)

    def _releases_of(self, releases: Releases, state_type: StateType | None) -> Iterator[Release]:
        """The release of a type, or all of this store; an unknown repository is an error."""
        if state_type is None:
            prefix = f"{self.place.prefix}."
            yield from (release for release in releases.all() if release.tag.startswith(prefix))
        elif release := releases.find(self.place.tag(state_type)):
            yield release
        else:
            next(releases.all(), None)

    def _has_checkpoint(self, key: StateKey) -> bool:
        def ask(resource: Resource) -> bool:
            resource.size()
            return True

        return self._asked(self.place.url(key, LEGACY), ask) is not None

    def _read(self, url: str, most: int) -> bytes | None:
        """The first `most` + 1 bytes of a file, or None if there is none."""

        def read(resource: Resource) -> bytes:
            with resource.read() as stream:
                return read_exactly(stream, most + 1)

        return self._asked(url, read)

    def _asked(self, url: str, ask: Callable[[Resource], _T]) -> _T | None:
        """The result of a request for a file, or None if there is no such file."""
        try:
            with self._fetcher.transports() as transports:
                return ask(retrying(transports.open(url), self._fetcher.retries))
        except OfflineError as error:
            error.remedy = "unset MLSTATE_OFFLINE, or load by digest= or through a manifest"
            raise
        except TransportError as error:
            if error.status != 404:
                raise
            return None
