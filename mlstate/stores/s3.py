"""States in a bucket of S3, or of what speaks its language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlstate import settings
from mlstate.buckets.open import BucketOptions, open_bucket, parse_bucket_address
from mlstate.errors import FormatError
from mlstate.fetch import OnProgress
from mlstate.locations import check_url, parse_mirror
from mlstate.manifests import StateEntry
from mlstate.objects.bucket import BucketObjectStore
from mlstate.objects.chain import ChainObjectStore
from mlstate.objects.folder import GRACE_SECONDS
from mlstate.objects.prefix import BucketPlace
from mlstate.phrases import Phrase
from mlstate.states import StateKey, StateType
from mlstate.stores.bucket_legacy import LegacyPrefix
from mlstate.stores.bucket_prune import prune_bucket
from mlstate.stores.bucket_states import BucketStateFiles
from mlstate.stores.cache import CacheLike, make_fetcher, open_cache
from mlstate.stores.prune_base import PruneReport
from mlstate.stores.read import Found
from mlstate.stores.remote import RemoteView, without_local_places
from mlstate.stores.statefiles import parse_state_file
from mlstate.stores.withlegacy import SavingBesideLegacy

__all__ = ["S3StateStore"]


class S3StateStore(RemoteView, SavingBesideLegacy):
    """A bucket of states: the same layout as a `LocalStateStore` has, under a prefix.

    What ``aws s3 sync`` makes of a `LocalStateStore` is one of these, and the other way round.
    States load by way of the local cache: what is there is not asked for again, and with
    ``digest=`` the bucket is asked for nothing at all. Several processes may save, load and
    delete at once. Checkpoints of the predecessor
    (``backend/architecture.extra.training_id.pt``) list and load too.

    Needs ``pip install 'mlstate[s3]'``. Not for use on both sides of a fork: a process that is
    forked makes a store of its own.

    Args:
        bucket: The name of the bucket. It must exist.
        session_kwargs: What ``boto3.session.Session`` takes: ``profile_name``, ``region_name``,
            keys. By default as the environment says.
        s3_endpoint_url: The URL of a service other than AWS that speaks S3. By default as
            AWS_ENDPOINT_URL or the profile says.
        base_path: The prefix; by default the whole bucket is the store.
        cache: Where what is loaded goes; as for `ManifestStore`.
        offline: Open no socket. By default as MLSTATE_OFFLINE says.
        progress: As for `ManifestStore`.

    Raises:
        FormatError: A name is none that S3 has, or the cache is no store.
        TransportError: obstore is not installed.
    """

    threads = 16
    checkpoints: LegacyPrefix

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
    ) -> None:
        address = f"s3://{bucket}"
        base = _check(address, base_path, s3_endpoint_url)
        forbidden = settings.offline() if offline is None else offline
        options = BucketOptions(session_kwargs or {}, s3_endpoint_url, offline=forbidden)
        client = open_bucket(address, options)
        self._place = BucketPlace(client, base)
        self.checkpoints = LegacyPrefix(self._place)
        self._pinned: dict[tuple[StateKey, str | None], StateEntry] = {}
        self._state_files = BucketStateFiles(self._place)
        self._bucket_objects = BucketObjectStore(self._place)
        SavingBesideLegacy.__init__(self, self._state_files, self._bucket_objects)
        fetcher = make_fetcher(
            open_cache(cache), offline=forbidden, progress=progress, buckets={address: client}
        )
        RemoteView.__init__(self, fetcher)

    def __repr__(self) -> str:
        return Phrase(f"S3StateStore({self._place.address!r})", self._place.address)

    def get_state_keys(self, state_type: StateType | None = None) -> list[StateKey]:
        """The states that are compatible with a type, or all, sorted by fields.

        Of one type, only what is below its own prefix is listed.

        Raises:
            BucketError: The bucket cannot be asked: no such bucket, no permission, no network.
            OfflineError: Sockets are not allowed.
        """
        return super().get_state_keys(state_type)

    def look(self, key: StateKey) -> Found | None:
        """Find a state by its state file, or a checkpoint of the predecessor.

        A checkpoint has no digest until it has been read: it is downloaded and unpickled as plain
        tensors only, once for each store object.
        """
        data = self.states.read(key)
        if data is None:
            return self._look_legacy(key)
        entry = without_local_places(parse_state_file(data, key, self.states.locate(key)))
        return Found(replace(entry, objects=(self._place.address, *entry.objects)), self.objects)

    def raw_bytes(self, key: StateKey) -> bytes | None:
        """The content of a checkpoint of the predecessor, or None if a key has none."""
        if self.states.read(key) is not None:
            return None
        return self.checkpoints.read(key, self._fetcher.max_size)

    def prune(self, *, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False) -> PruneReport:
        """Take away objects that no state names; safe while others save and load.

        What is taken away is copied to trash/ first; the next pruning deletes it. Objects of a
        state that was deleted within the grace period are spared. Uploads that were never finished
        are given up after it. A load of a state that is saved at the very moment when its objects
        are taken away may find one missing; a moment later it is back.

        Args:
            grace_seconds: What is younger is spared. 14 days by default; shorten it only if no
                save beside it takes longer.
            dry_run: Change nothing, say what would be done.

        Returns:
            What was done.

        Raises:
            MlstateError: The bucket cannot be asked, or a state cannot be read, so nobody knows
                what it needs: restore or delete it first. Nothing was removed.
        """
        return prune_bucket(
            self._state_files,
            self._bucket_objects,
            grace_seconds=grace_seconds,
            dry_run=dry_run,
            threads=self.threads,
        )

    def _look_legacy(self, key: StateKey) -> Found | None:
        item = self.checkpoints.item(key)
        if item is None:
            return None
        known = (key, item.etag)
        if known not in self._pinned:
            url = self.checkpoints.locate(key)
            mirror = parse_mirror({"url": url, "format": "torch"})
            entry = StateEntry(key, None, mirrors=(mirror,), origin=url)
            self._pinned[known] = self._fetcher.pin(entry)
        # Not the cache itself: that would say that the state is saved here already.
        return Found(self._pinned[known], ChainObjectStore([self.objects]))


def _check(address: str, base_path: str, endpoint: str | None) -> str:
    """The prefix, without slashes around it.

    Raises:
        FormatError: A name is none that a bucket, a prefix or an endpoint has.
    """
    if parse_bucket_address(address)[2]:
        raise FormatError(
            "a bucket has a name without slashes",
            found=address,
            remedy="give the rest as base_path",
        )
    if endpoint is not None:
        reason = check_url(endpoint)
        if reason is not None or not endpoint.lower().startswith(("http://", "https://")):
            raise FormatError("an endpoint is a URL of http or https", found=reason)
    base = base_path.strip("/")
    if base and any(part in ("", ".", "..") for part in base.split("/")):
        raise FormatError("not a prefix of a bucket", expected="models/vision", found=base_path)
    return base
