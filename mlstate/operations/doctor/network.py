"""Places are asked, all at once and briefly, whether they can be reached."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from mlstate.buckets.client import BucketClient
from mlstate.buckets.open import BucketOptions, open_bucket, parse_bucket_address
from mlstate.errors import AccessError, MlstateError, NoRangesError, OfflineError, TransportError
from mlstate.fetch.addresses import hub_weights
from mlstate.limits import Limits
from mlstate.operations.doctor.check import Check, failed
from mlstate.operations.doctor.places import GITHUB, Place
from mlstate.parallel import for_each
from mlstate.transport import Resource, Retries, Transports, retrying
from mlstate.transport.credentials import Credentials, hub_endpoint
from mlstate.transport.hub import parse_hub_address
from mlstate.transport.urls import Url
from mlstate.units import format_size

__all__ = ["ask_all"]

MOST_PLACES = 64
SECONDS = 8.0
"""After so long nobody is waited for."""
_THREADS = 16
_CONNECT, _READ = 3.0, 3.0
_RETRIES = Retries(2, first=0.2, most=0.5)


def ask_all(
    places: Sequence[Place],
    *,
    offline: bool,
    buckets: Mapping[str, BucketClient] | None = None,
    seconds: float | None = None,
) -> list[Check]:
    """Ask every place, up to `MOST_PLACES`, for the size of something that it is to have.

    Offline only places on this machine are looked at. `buckets` are open already, by address
    (``s3://bucket``). An answer after so many seconds does not count.
    """
    seconds = SECONDS if seconds is None else seconds
    asked = places[:MOST_PLACES]
    checks: dict[Place, Check] = {}
    defects: list[BaseException] = []
    late = threading.Event()
    with Transports(connect_timeout=_CONNECT, read_timeout=_READ, offline=offline) as transports:
        client = _Client(transports, buckets or {}, late.is_set)

        def ask(place: Place) -> None:
            try:
                checks[place] = client.check(place, offline=offline)
            except BaseException as error:  # also a panic, which obstore's are
                defects.append(error)

        # In a thread of its own, since nothing else can be left alone when it takes too long.
        all_ = partial(for_each, ask, asked, min(_THREADS, len(asked) or 1))
        waiter = threading.Thread(target=all_, daemon=True)
        try:
            waiter.start()
        except RuntimeError:  # there can be no more threads
            all_()
        else:
            waiter.join(seconds)
        late.set()
    if defects:
        raise defects[0]
    too_late = Check("", False, f"no answer within {seconds:.0f} s", "check the network")
    found = [checks.get(place, replace(too_late, name=place.name)) for place in asked]
    if len(places) > len(asked):
        more = f"{len(places) - len(asked):,} more"
        found.append(Check("other places", None, f"{more}: not asked"))
    return found


@dataclass(frozen=True)
class _Client:
    """The means to ask places, one and all."""

    transports: Transports
    buckets: Mapping[str, BucketClient]
    stop: Callable[[], bool]
    credentials: Credentials = field(default_factory=Credentials)

    def check(self, place: Place, *, offline: bool) -> Check:
        """Ask a place."""
        if offline and not place.is_local:
            return Check(place.name, None, "not asked: offline")
        begun = time.perf_counter()
        try:
            if place.is_local:
                return _look(place)
            if place.address.startswith(GITHUB):
                found = _ask_github(place.address.removeprefix(GITHUB))
            else:
                found = self._ask(place)
        except OfflineError:  # HF_HUB_OFFLINE
            return Check(place.name, None, "not asked: offline")
        except TransportError as error:
            missing = error.status == 404 and getattr(error, "code", None) != "NoSuchBucket"
            if place.lacking is None or not missing:
                return failed(place.name, error)
            return Check(place.name, None, f"answers; {place.lacking}")
        except (MlstateError, OSError) as error:
            return failed(place.name, error)
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            # How obstore takes an endpoint that is no URL.
            remedy = "look at AWS_ENDPOINT_URL and the other settings for buckets"
            return Check(place.name, False, f"the client for buckets broke down: {error}", remedy)
        passed = (time.perf_counter() - begun) * 1000
        return Check(place.name, True, f"{found}, {passed:.0f} ms")

    def _ask(self, place: Place) -> str:
        scheme = place.address.partition("://")[0].lower()
        if scheme in ("s3", "gs", "az"):
            resource, who = self._bucket(place.address)
        elif scheme == "hf":
            resource, who = self._hub(place), self._who(Url.parse(hub_endpoint()))
        else:
            resource = self.transports.open(place.address)
            who = self._who(Url.parse(place.address))
        size, ranges = _size(retrying(resource, _RETRIES, self.stop))
        offered = "a file of unknown size" if size is None else format_size(size)
        return f"{offered} offered, ranges: {'yes' if ranges else 'no'}, {who}"

    def _who(self, url: Url) -> str:
        """Whether a server is told who asks; never what it is told."""
        header = self.credentials.authorization(url)
        if header is None:
            return "no token"
        return "with a token" if header.startswith("Bearer ") else "with a login"

    def _bucket(self, address: str) -> tuple[Resource, str]:
        from mlstate.transport.bucket import BucketResource

        scheme, name, path = parse_bucket_address(address)
        bucket = f"{scheme}://{name}"
        client = self.buckets.get(bucket)
        if client is None:  # less patient than one for weights is
            limits = Limits(connect_timeout=_CONNECT, read_timeout=_READ)
            options = BucketOptions(attempts=1, limits=limits)
            client = open_bucket(bucket, options)
        if scheme != "s3":
            who = "credentials as the environment says"
        else:
            who = "no credentials" if client.anonymous else "with credentials"
        return BucketResource(client, path), who

    def _hub(self, place: Place) -> Resource:
        where = parse_hub_address(place.address)
        address = place.address
        if where.path is None:
            listing = self.transports.hub_files(address)
            name = hub_weights(listing.files, place.form, address)[0]
            address = f"hf://{where.repo}@{listing.commit}/{name}"
        return self.transports.open(address)


def _size(resource: Resource) -> tuple[int | None, bool]:
    """The size of a resource, and whether ranges of it can be had; one request, if that does."""
    try:
        with resource.read(0, 1) as stream:
            stream.read(1)
            return stream.total, True
    except NoRangesError:
        return resource.size(), False


def _look(place: Place) -> Check:
    """Look at a place on this machine."""
    if not os.path.exists(place.address):
        return Check(place.name, False, f"{place.address} is not there", "correct the manifest")
    if not os.access(place.address, os.R_OK):
        return Check(place.name, False, f"{place.address} cannot be read", "make it readable")
    return Check(place.name, True, "can be read")


def _ask_github(repository: str) -> str:
    from mlstate.stores.github.api import GitHub, GitHubApi

    with GitHubApi(GitHub.from_environment(), offline=False, retries=_RETRIES) as api:
        try:
            api.need_credential("writing")
            who = "with a token"
        except AccessError:
            who = "no token: reads only"
        api.get(f"/repos/{repository}/releases?per_page=1")
    return f"the API answers, {who}"
