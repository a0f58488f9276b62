"""The store of states in a bucket of S3, or of another service that speaks its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlstate import settings
from mlstate.buckets.open import BucketOptions, endpoint_variable, open_bucket, parse_bucket_address
from mlstate.errors import FormatError
from mlstate.fetch import Fetcher, OnProgress
from mlstate.format import layout
from mlstate.locations import check_url
from mlstate.manifests.required import RequiredSignature, SigningKey, state_signatures
from mlstate.objects.bucket import BucketObjectStore
from mlstate.objects.folder import GRACE_SECONDS
from mlstate.objects.prefix import BucketPlace
from mlstate.phrases import Phrase
from mlstate.stores.abstract import RemotePlace
from mlstate.stores.access import Access
from mlstate.stores.arguments import refuse_positional
from mlstate.stores.bucket_catalog import BucketCheckpoints, BucketStateFiles
from mlstate.stores.bucket_trash import BucketTrash
from mlstate.stores.cache import CacheLike, make_fetcher, open_cache
from mlstate.stores.checkpoints import WithCheckpoints
from mlstate.stores.prune import PruneReport
from mlstate.stores.prune_bucket import prune_bucket
from mlstate.stores.save import SavingStore
from mlstate.stores.state_saver import StateSaver

__all__ = ["S3StateStore"]


class S3StateStore(SavingStore):
    """A bucket of states: the same layout as a `LocalStateStore` has, under a prefix.

    ``aws s3 sync`` makes one of a `LocalStateStore`, and the other way round. States load by way
    of the local cache: objects that are there are not requested again, and with ``digest=`` the
    bucket is not asked at all. Several processes may save, load and delete at once. Checkpoints of
    MLModule (``backend/architecture.extra.training_id.pt``) list and load too.

    Needs ``pip install 'mlstate[s3]'``. In a process that was forked from one that has used a
    bucket, a bucket cannot be asked: what is in the cache loads there, with ``digest=``, and all
    else raises a `BucketError`. Processes that are spawned can be sent the store.

    Args:
        bucket: The name of the bucket. It must exist.
        session_kwargs: Arguments of ``boto3.session.Session``: ``profile_name``,
            ``region_name``, keys. By default those of the environment.
        s3_endpoint_url: The URL of a service other than AWS that speaks S3. By default as
            AWS_ENDPOINT_URL or the profile says.
        base_path: The prefix; by default the whole bucket is the store.
        cache: The cache for fetched objects; as for `ManifestStore`.
        offline: Open no socket. By default as MLSTATE_OFFLINE says.
        progress: As for `ManifestStore`.
        require_signature: As for `LocalStateStore`, as is ``signing_key``.

    Raises:
        FormatError: A name is not valid in S3, or the cache is no store.
        TransportError: obstore is not installed.
    """

    threads = 16
    fetcher: Fetcher

    def __init__(
        self,
        bucket: str,
        session_kwargs: Mapping[str, Any] | None = None,
        s3_endpoint_url: str | None = None,
        base_path: str = "",
        *,
        cache: CacheLike | None = None,
        offline: bool | None = None,
        progress: OnProgress | bool | None = None,
        require_signature: RequiredSignature = None,
        signing_key: SigningKey = None,
    ) -> None:
        if session_kwargs is not None and not isinstance(session_kwargs, Mapping):
            refuse_positional((session_kwargs,), "session_kwargs", "a prefix is base_path=...")
        if "://" in bucket:
            raise FormatError(
                "a bucket has a name, and this is an address",
                found=bucket,
                remedy=f"mlstate.open_store({bucket!r})",
            )
        address = f"s3://{bucket}"
        base = _check(address, base_path, s3_endpoint_url)
        forbidden = settings.offline() if offline is None else offline
        options = BucketOptions(session_kwargs or {}, s3_endpoint_url, offline=forbidden)
        client = open_bucket(address, options)
        self.clients = {address: client}
        fetcher = make_fetcher(
            open_cache(cache), offline=forbidden, progress=progress, buckets=self.clients
        )
        self._place = BucketPlace(client, base)
        self.places = (self._place.address,)
        signatures = state_signatures(require_signature, signing_key, *self.places)
        service = s3_endpoint_url or endpoint_variable()
        self._files = BucketStateFiles(self._place, signatures, service)
        self._objects = BucketObjectStore(self._place)
        catalog = WithCheckpoints(self._files, BucketCheckpoints(self._place, fetcher))
        saver = StateSaver(self._files, self._objects, catalog, self.threads)
        super().__init__(catalog, fetcher.cache, saver, fetcher)
        self.access = Access(fetcher, BucketTrash(self._objects, fetcher.cache))
        self.own = self._objects
        settings_address = f"{self._place.address}/{layout.SETTINGS}"
        self.place = RemotePlace(client.address, settings_address, "no store is there yet")

    @property
    def phrase(self) -> Phrase:
        """See `StateStore.phrase`."""
        return Phrase(f"S3StateStore({self._place.address!r})", self._place.address)

    def prune(self, *, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False) -> PruneReport:
        """Remove objects that no state names; other processes may save and load meanwhile.

        Objects are copied to trash/ first; the next pruning deletes them. Objects of a state that
        was deleted within the grace period are spared; unfinished uploads are given up after it. A
        load finds what is in trash/ for a moment.

        Args:
            grace_seconds: As for `LocalStateStore.prune`.
            dry_run: Change nothing, and report what would be done.

        Returns:
            The objects that were moved, deleted or put back.

        Raises:
            MlstateError: The bucket cannot be asked, or a state cannot be read, so that its
                objects are unknown: restore or delete it first. Nothing was removed.
        """
        return prune_bucket(
            self._files,
            self._objects,
            grace_seconds=grace_seconds,
            dry_run=dry_run,
            threads=self.threads,
        )


def _check(address: str, base_path: str, endpoint: str | None) -> str:
    """Check the names of a bucket, a prefix and an endpoint; the prefix, without outer slashes."""
    if parse_bucket_address(address)[2]:
        raise FormatError(
            "a bucket has a name without slashes",
            found=address,
            remedy=Phrase("give the rest as base_path=", "write s3://bucket/prefix"),
        )
    if endpoint is not None:
        reason = check_url(endpoint)
        if reason is not None or not endpoint.lower().startswith(("http://", "https://")):
            raise FormatError("an endpoint is a URL of http or https", found=reason)
    base = base_path.strip("/")
    if base and any(part in ("", ".", "..") for part in base.split("/")):
        raise FormatError("not a prefix of a bucket", expected="models/vision", found=base_path)
    return base
