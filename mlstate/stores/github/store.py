"""The store of states in the releases of a GitHub repository."""

from __future__ import annotations

import re

from mlstate import settings
from mlstate.errors import FormatError
from mlstate.fetch import Fetcher, OnProgress
from mlstate.manifests.required import RequiredSignature, SigningKey, state_signatures
from mlstate.phrases import Phrase
from mlstate.stores.abstract import RemotePlace
from mlstate.stores.cache import CacheLike, make_fetcher, open_cache
from mlstate.stores.github.api import GitHub
from mlstate.stores.github.release_catalog import ReleaseCatalog, ReleasePlace
from mlstate.stores.github.release_saver import ReleaseSaver
from mlstate.stores.save import SavingStore

__all__ = ["GitHUBReleaseStore", "GitHubReleaseStore"]

_OWNER = re.compile(r"[A-Za-z0-9_-]{1,100}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_PREFIX = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


class GitHubReleaseStore(SavingStore):
    """States in the releases of a GitHub repository: one release for each type of state.

    A release is tagged ``{prefix}.{backend}.{architecture}``. A state is a plain ``.safetensors``
    file that any tool reads, its state object and its files, and a small ``.toml``, its pointer.
    Old states (``.state.gzip``) list and load, too.

    A public state loads without a token and without a request to the API, through the cache: of a
    fine-tune of a state that is there, only the difference is downloaded. Listing and saving use
    the API, with the token of GH_TOKEN or GITHUB_TOKEN, or the login of GH_API_BASIC_AUTH.
    GITHUB_API_URL gives the address of an Enterprise server.

    Args:
        repository_owner: The owner of the repository.
        repository_name: The repository.
        branch_name: The branch on which new releases put their tags.
        release_name_prefix: The beginning of the tags of all releases of this store.
        cache: The cache for fetched objects; as for `ManifestStore`.
        offline: Open no socket. By default as MLSTATE_OFFLINE says.
        progress: As for `ManifestStore`.
        require_signature: As for `LocalStateStore`, as is ``signing_key``: the signature is that of
            the pointer.

    Raises:
        FormatError: A name is not valid on GitHub, or the cache is no store.
    """

    fetcher: Fetcher
    saver: ReleaseSaver

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
        require_signature: RequiredSignature = None,
        signing_key: SigningKey = None,
    ) -> None:
        _check("repository_owner", repository_owner, _OWNER)
        _check("repository_name", repository_name, _NAME)
        _check("release_name_prefix", release_name_prefix, _PREFIX)
        self.repository = f"{repository_owner}/{repository_name}"
        forbidden = settings.offline() if offline is None else offline
        fetcher = make_fetcher(open_cache(cache), offline=forbidden, progress=progress)
        self._github = GitHub.from_environment()
        place = ReleasePlace(
            self._github, self.repository, branch_name, release_name_prefix, forbidden
        )
        self.places = (f"github:{self.repository}",)
        signatures = state_signatures(require_signature, signing_key, *self.places)
        catalog = ReleaseCatalog(place, fetcher, signatures)
        super().__init__(catalog, fetcher.cache, ReleaseSaver(catalog), fetcher)
        self.place = RemotePlace(f"github:{self.repository}", f"github:{self.repository}")

    @property
    def phrase(self) -> Phrase:
        """See `StateStore.phrase`."""
        place = f"{self._github.server}/{self.repository}"
        return Phrase(f"GitHubReleaseStore({place})", place)


GitHUBReleaseStore = GitHubReleaseStore


def _check(name: str, value: object, pattern: re.Pattern[str]) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value) or value in (".", ".."):
        whole = isinstance(value, str) and "/" in value
        raise FormatError(
            f"not a valid {name}",
            expected=pattern.pattern,
            found=repr(value),
            remedy="of owner/repo, mlstate.open_store('github:owner/repo')" if whole else None,
        )
