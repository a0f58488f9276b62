"""Uploads of assets, repeated until GitHub has exactly their bytes, or refuses them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from mlstate.digests import Bytes
from mlstate.errors import IntegrityError, LimitError, MlstateError, TransportError
from mlstate.phrases import FOLDER_OR_BUCKET
from mlstate.stores.github.api_errors import GitHubError
from mlstate.stores.github.releases import UPLOADED, Asset, Release, Releases, immutable, sha256_of

__all__ = ["Upload", "full", "upload"]

PATIENCE = 10.0  # seconds to wait for another process that uploads the same name...
_YOUNG = 600.0  # ...if it began at most so many seconds ago
_PAUSE = 0.2


@dataclass(frozen=True)
class Upload:
    """A file to upload: its name, its size, and a function that gives its bytes each time."""

    name: str
    size: int
    parts: Callable[[], Iterator[Bytes]]

    def sha256(self) -> str:
        """The SHA-256 of its bytes."""
        return sha256_of(self.parts())


def upload(releases: Releases, release: Release, file: Upload, *, replace: bool) -> Asset | None:
    """Upload a file to a release, and make sure that GitHub has exactly its bytes.

    If another process uploads the same file, its asset is as good. An incomplete asset of this name
    is removed; a complete one with other bytes, if `replace` is set.

    Returns:
        The asset; None if there is another of this name, and it stays.

    Raises:
        IntegrityError: GitHub has other bytes, after all attempts.
        ReadOnlyStoreError: The release is immutable.
        LimitError: The file is too large for GitHub, or the release is full.
    """
    failures = 0
    began = time.monotonic()
    while True:
        sha256, asset, problem = _attempt(releases, release, file)
        if asset is None:
            asset = releases.named(release, file.name)
        if asset is not None and releases.holds(asset, file.size, sha256 or file.sha256()):
            return asset
        taken = isinstance(problem, GitHubError) and "already_exists" in problem.codes
        if asset is not None and taken and asset.state == UPLOADED and not replace:
            return None
        if asset is not None and taken and _under_way(asset, began):
            time.sleep(_PAUSE)
            continue
        if asset is not None:
            releases.delete(asset)  # it is incomplete, or has wrong bytes
        failures += 1
        if failures >= releases.retries.attempts:
            raise problem or _wrong(file, asset)
        if problem is not None and not taken:
            time.sleep(releases.retries.delay(failures, problem.retry_after))


def _under_way(asset: Asset, began: float) -> bool:
    """Whether another process may still be uploading an asset, and is waited for."""
    if asset.state == UPLOADED or time.time() - asset.created > _YOUNG:
        return False
    return time.monotonic() - began < PATIENCE


def _attempt(
    releases: Releases, release: Release, file: Upload
) -> tuple[str | None, Asset | None, TransportError | None]:
    """Upload once; returns the SHA-256 if all was sent, and the asset or a transient error."""
    hasher = hashlib.sha256()
    sent = 0

    def hashed() -> Generator[Bytes, None, None]:
        nonlocal sent
        for part in file.parts():
            hasher.update(part)
            sent += len(part)
            yield part

    parts = hashed()
    try:
        asset = releases.send(release, file.name, file.size, parts)
    except TransportError as error:
        codes = error.codes if isinstance(error, GitHubError) else ()
        if "already_exists" not in codes and not error.transient:
            raise _refusal(release, file, error) from None
        return (hasher.hexdigest() if sent == file.size else None), None, error
    finally:
        parts.close()
    if asset.name != file.name:
        releases.delete(asset)
        raise IntegrityError(
            "GitHub gave an asset another name", expected=file.name, found=asset.name
        )
    return hasher.hexdigest(), asset, None


def _refusal(release: Release, file: Upload, error: TransportError) -> MlstateError:
    said = error.said if isinstance(error, GitHubError) else ""
    if "immutable" in said:
        return immutable(release.tag, error.found)
    if error.status == 413 or "size" in said:
        return LimitError(
            "GitHub does not take a file of this size as an asset",
            path=file.name,
            found=error.found,
            remedy="save into " + FOLDER_OR_BUCKET,
        )
    if "file_count" in said or "1000" in said:
        return full(release.tag, error.found)
    return error


def full(tag: str, found: object) -> LimitError:
    """The error that a release takes no more assets."""
    return LimitError(
        "a release of GitHub takes no more than 1,000 assets",
        path=tag,
        found=found,
        remedy="delete states that nobody needs, or save under another release_name_prefix= "
        "of GitHubReleaseStore",
    )


def _wrong(file: Upload, asset: Asset | None) -> IntegrityError:
    return IntegrityError(
        "GitHub stored other bytes than were uploaded, and they were removed again",
        path=file.name,
        expected=f"{file.size} bytes, sha256 {file.sha256()}",
        found=None if asset is None else f"{asset.size} bytes, sha256 {asset.sha256}",
        remedy="try again",
    )
