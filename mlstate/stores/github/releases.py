"""The releases of a repository on GitHub, and their assets: how to find, read and change them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote

from mlstate.digests import Bytes
from mlstate.errors import AccessError, ReadOnlyStoreError, TransportError
from mlstate.limits import read_limited
from mlstate.stores.github.api import GitHubApi
from mlstate.stores.github.api_errors import TOKEN_REMEDY, GitHubError
from mlstate.transport import retried

__all__ = ["UPLOADED", "Asset", "Release", "Releases", "immutable", "sha256_of"]

UPLOADED = "uploaded"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Release:
    """A release: its id, its tag, and where its assets are uploaded to."""

    id: int
    tag: str
    upload_url: str
    immutable: bool


@dataclass(frozen=True)
class Asset:
    """A file of a release. Its state is ``"uploaded"`` once it is complete.

    The SHA-256 is None where GitHub gives none; the time is in seconds since the epoch.
    """

    id: int
    name: str
    size: int
    state: str
    sha256: str | None
    created: float


class Releases:
    """The releases of a repository ``owner/name``; its methods also raise what `GitHubApi` does."""

    def __init__(self, api: GitHubApi, repository: str) -> None:
        self._api = api
        self.retries = api.retries
        self._path = f"/repos/{repository}/releases"
        self.repository = repository

    def need_credential(self, what: str) -> None:
        """See `GitHubApi.need_credential`."""
        self._api.need_credential(what)

    def find(self, tag: str) -> Release | None:
        """The published release of a tag, or None."""
        said = self._or_none(lambda: self._api.get(f"{self._path}/tags/{quote(tag, safe='')}"))
        return None if said is None else _release(said)

    def all(self) -> Iterator[Release]:
        """All releases, a page at a time; an AccessError if the repository is not found."""
        try:
            for said in self._api.pages(self._path):
                yield _release(said)
        except GitHubError as error:
            if error.status != 404:
                raise
            raise AccessError(
                "there is no such repository, or it is private and the token may not read it",
                path=error.path,
                found=error.found,
                remedy="check owner and repository; " + TOKEN_REMEDY,
            ) from None

    def create(self, tag: str, branch: str) -> Release:
        """Make a release, with its tag on a branch; another may make it at the same time."""
        self.need_credential("making a release")
        body = {"tag_name": tag, "target_commitish": branch, "name": tag, "make_latest": "false"}
        try:
            return _release(self._api.send("POST", self._path, body))
        except GitHubError as error:
            if "already_exists" in error.codes and (found := self.find(tag)):
                return found
            if error.status != 422:
                raise
            if "immutable" in error.said:
                raise immutable(tag, error.found) from None
            raise AccessError(
                "GitHub does not make this release",
                path=f"{self.repository}, tag {tag}",
                found=error.found,
                remedy=f"make the branch {branch!r}, with at least one commit, or give another "
                "as branch_name= of GitHubReleaseStore; a draft or a protected tag of this "
                "name has to go",
            ) from None

    def assets(self, release: Release) -> list[Asset]:
        """The assets of a release, all pages of them."""
        return [_asset(said) for said in self._api.pages(f"{self._path}/{release.id}/assets")]

    def named(self, release: Release, name: str) -> Asset | None:
        """The asset of a name, or None."""
        return next((asset for asset in self.assets(release) if asset.name == name), None)

    def read(self, asset: Asset, most: int) -> bytes | None:
        """The first `most` + 1 bytes of an asset; None if it is gone."""
        return self._download(asset, lambda chunks: read_limited(chunks, most))

    def holds(self, asset: Asset, size: int, sha256: str) -> bool:
        """Whether an asset has these bytes: GitHub gives their SHA-256, or they are read."""
        if asset.state != UPLOADED or asset.size != size:
            return False
        if asset.sha256 is not None:
            return asset.sha256 == sha256
        return self._download(asset, sha256_of) == sha256

    def send(self, release: Release, name: str, size: int, parts: Iterable[Bytes]) -> Asset:
        """Upload an asset, once. After a GitHubError it may be there all the same."""
        self.need_credential("uploading")
        address = f"{release.upload_url.partition('{')[0]}?name={quote(name)}"
        kind = "application/toml" if name.endswith(".toml") else "application/octet-stream"
        return _asset(self._api.upload(address, size, kind, parts))

    def rename(self, asset: Asset, name: str) -> bool:
        """Rename an asset; False if it is gone, or the name is taken."""
        try:
            return self._change(asset, "PATCH", {"name": name})
        except GitHubError as error:
            if "already_exists" in error.codes:
                return False
            raise

    def delete(self, asset: Asset) -> bool:
        """Remove an asset; False if it was gone."""
        return self._change(asset, "DELETE")

    def _change(self, asset: Asset, method: str, body: Mapping[str, Any] | None = None) -> bool:
        """Change an asset; False if it is gone."""
        self.need_credential("changing an asset")
        path = f"{self._path}/assets/{asset.id}"
        try:
            self._api.send(method, path, body)
        except GitHubError as error:
            if error.status == 422 and "immutable" in error.said:
                raise immutable(asset.name, error.found) from None
            if error.status != 404:
                raise
            if self._or_none(lambda: self._api.get(path)) is None:
                return False
            raise AccessError(
                "GitHub does not let this token change an asset",
                path=f"{self.repository}, {asset.name}",
                found=error.found,
                remedy=TOKEN_REMEDY,
            ) from None
        return True

    def _download(self, asset: Asset, read: Callable[[Iterator[Bytes]], _T]) -> _T | None:
        """Read an asset, again from its start after an interruption; None if it is gone."""
        path = f"{self._path}/assets/{asset.id}"
        return self._or_none(lambda: retried(lambda: read(self._api.download(path)), self.retries))

    def _or_none(self, ask: Callable[[], _T]) -> _T | None:
        try:
            return ask()
        except GitHubError as error:
            if error.status != 404:
                raise
            return None


def sha256_of(chunks: Iterable[Bytes]) -> str:
    """The SHA-256 of some bytes, in hex digits."""
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.hexdigest()


def _release(said: Any) -> Release:
    return Release(
        id=_field(said, "id", int),
        tag=_field(said, "tag_name", str),
        upload_url=_field(said, "upload_url", str),
        immutable=bool(said.get("immutable", False)),
    )


def _asset(said: Any) -> Asset:
    digest = said.get("digest") if isinstance(said, dict) else None
    sha256 = digest.lower() if isinstance(digest, str) and digest.startswith("sha256:") else None
    try:
        created = datetime.fromisoformat(_field(said, "created_at", str)).timestamp()
    except ValueError:
        created = time.time()
    return Asset(
        id=_field(said, "id", int),
        name=_field(said, "name", str),
        size=_field(said, "size", int),
        state=_field(said, "state", str),
        sha256=None if sha256 is None else sha256.removeprefix("sha256:"),
        created=created,
    )


def _field(said: Any, name: str, kind: type[_T]) -> _T:
    value = said.get(name) if isinstance(said, dict) else None
    if type(value) is not kind:
        raise TransportError("a reply of GitHub makes no sense", expected=name, found=value)
    return value


def immutable(where: str, found: object) -> ReadOnlyStoreError:
    """The error that a release cannot be changed."""
    return ReadOnlyStoreError(
        "this release is immutable: GitHub lets nobody change its assets",
        path=where,
        found=found,
        remedy="switch off immutable releases in the settings of the repository, and save under "
        "another release_name_prefix= of GitHubReleaseStore: what is immutable stays so",
    )
