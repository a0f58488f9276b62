"""`Transports`: the one place where addresses are opened, and where offline is decided."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlstate.errors import FormatError, OfflineError, TransportError
from mlstate.limits import Limits
from mlstate.locations import check_url
from mlstate.log import debug
from mlstate.retries import Patience
from mlstate.transport.credentials import Credentials, NoCredentials
from mlstate.transport.hub import Hub, HubListing, HubResource, parse_hub_address
from mlstate.transport.interface import Resource, Stream
from mlstate.transport.local import LocalResource, file_path
from mlstate.transport.reach import OWN, Permission, Reach
from mlstate.transport.urls import Url
from mlstate.transport.zones import ZoneOf, zone_of

if TYPE_CHECKING:
    from mlstate.buckets.client import BucketClient
    from mlstate.transport.client import Session

__all__ = ["OfflineResource", "Transports"]


_ANY = Permission()


class OfflineResource:
    """A resource on the network that may not be used: every method raises an `OfflineError`.

    It stands in before anything is imported that could open a socket: urllib3 probes for IPv6 with
    one when it is imported.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def size(self) -> int | None:
        """See `Resource.size`."""
        raise self._error()

    def read(self, start: int = 0, stop: int | None = None) -> AbstractContextManager[Stream]:
        """See `Resource.read`."""
        raise self._error()

    def _error(self) -> OfflineError:
        return OfflineError(
            "the network is needed, and may not be used",
            path=self.address,
            remedy="allow the network (unset MLSTATE_OFFLINE), or put it into the cache before",
        )


class Transports:
    """Opens addresses. Use one for a whole job: it keeps connections, from which all threads draw.

    Nothing is connected to, and nothing slow is imported, before something is opened. With
    ``offline`` whatever needs a socket raises an `OfflineError`. ``buckets`` are open already, with
    credentials of their own, by address (``s3://bucket``); all others are reached as the
    environment says. ``classify`` says which network an address is in, and ``limits`` are the
    fields of `Limits`: how long servers may take.
    """

    def __init__(
        self,
        *,
        offline: bool = False,
        buckets: Mapping[str, BucketClient] | None = None,
        classify: ZoneOf = zone_of,
        **limits: Any,
    ) -> None:
        self._offline = offline
        self._limits = Limits(**limits)
        self._classify = classify
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._credentials, self._no_credentials = Credentials(), NoCredentials()
        self._buckets = dict(buckets or {})
        self._public_buckets: dict[str, BucketClient] = {}  # asked without credentials
        self._hub_opened: Hub | None = None
        self._closed = False
        self._connect_timeout = self._limits.connect_timeout

    @property
    def _hub(self) -> Hub:
        """The hub, which most jobs do not need: one, so that all know what one has found out."""
        with self._lock:
            if self._hub_opened is None:
                self._hub_opened = Hub(self._connect, offline=self._offline)
            return self._hub_opened

    def open(self, address: str, *, base: Path | None = None, reach: Reach = OWN) -> Resource:
        """The resource at an address. Whether it is there shows when it is read.

        The address is an http, https, file, s3, gs, az or hf address, or a path, which is taken as
        it is and, if relative, below ``base`` or else the current folder. Raises a `FormatError` if
        it is malformed or has a password in it, and a `TransportError` if this version does not
        read such addresses, or not without a package that is missing, or if ``reach`` does not go
        there.
        """
        debug("open %s", address)
        reason = check_url(address)
        scheme = address.partition("://")[0].lower() if "://" in address else ""
        if reason is not None:
            raise TransportError(reason, found=f"{scheme}://...")
        permission = reach.permission(address, base)
        match scheme:
            case "http" | "https":
                return self._connect(address, permission=permission)
            case "s3" | "gs" | "az":
                if self._offline:
                    return OfflineResource(address)
                named = f"{scheme}{address[len(scheme) :]}"
                return self._open_bucket(named, credentials=permission.credentials)
            case "hf":
                where = parse_hub_address(address)
                if where.path is None:
                    raise FormatError("a file is needed, and this is a repository", path=where)
                return HubResource(self._hub, where)
            case "file":
                return LocalResource(file_path(address, base), address)
        return LocalResource(file_path(address, base))

    def hub_files(self, address: str) -> HubListing:
        """The commit of a repository on the hub at a revision, and its files. Asked once.

        The address is ``hf://org/repo`` or ``hf://org/repo@revision``; another raises a
        `FormatError`. Raises a `TransportError` if the hub does not say, and an `OfflineError`.
        """
        where = parse_hub_address(address)
        if where.path is not None:
            raise FormatError("a repository is needed, and this is a file", path=where)
        return self._hub.listing(where)

    def hub_copy(self, sha256: str) -> Resource | None:
        """The file with this SHA-256 in the cache of the hub's client, if it is there."""
        copy = self._hub.copies.with_sum(sha256)
        return None if copy is None else LocalResource(copy)

    def patience(self) -> Patience:
        """The patience, as yet unspent, with one server."""
        return Patience(self._limits.patience, self._limits.low_speed)

    def connect_within(self, seconds: float | None) -> None:
        """Give web servers so many seconds from now on to accept a connection.

        That is at most what the limits say, and by default as much.
        """
        most = self._limits.connect_timeout
        with self._lock:
            self._connect_timeout = most if seconds is None else min(seconds, most)
            if self._session is not None:
                self._session.connect_timeout = self._connect_timeout

    def check_copies(self) -> None:
        """Compare copies in the hub's own cache with their names before they are read.

        For what nobody knows the digest of: nothing else would tell that a copy is damaged.
        """
        self._hub.copies.checked = True

    def pass_over_copies(self) -> tuple[list[Path], bool]:
        """Read no copy in the hub's own cache again that was read and may be damaged.

        Returns:
            These copies, and whether the hub may be asked in their place. If not, they stay.
        """
        if self._hub_opened is None:
            return [], False
        offline = self._hub.offline
        return self._hub.copies.wrong(pass_over=not offline), not offline

    def close(self) -> None:
        """Close all connections. Nothing is read from the network after this."""
        with self._lock:
            self._closed = True
            session, self._session = self._session, None
            self._buckets, self._public_buckets = {}, {}
        if session is not None:
            session.close()

    def __enter__(self) -> Transports:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open_bucket(self, address: str, *, credentials: bool) -> Resource:
        from mlstate.buckets.open import BucketOptions, open_bucket, parse_bucket_address
        from mlstate.transport.bucket import BucketResource

        scheme, bucket, path = parse_bucket_address(address)
        name = f"{scheme}://{bucket}"
        with self._lock:
            self._check_open()
            buckets = self._buckets if credentials else self._public_buckets
            if name not in buckets:
                options = BucketOptions(
                    offline=self._offline,
                    attempts=1,  # readers try again by themselves: the attempts would multiply
                    limits=self._limits,
                    anonymous=not credentials,
                )
                buckets[name] = open_bucket(name, options)
            return BucketResource(buckets[name], path)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("these transports are closed")

    def _connect(
        self, text: str, address: str | None = None, permission: Permission = _ANY
    ) -> Resource:
        url = Url.parse(text)
        if self._offline:
            return OfflineResource(url.shown if address is None else address)
        from mlstate.transport.client import Session
        from mlstate.transport.http import HttpResource

        with self._lock:
            self._check_open()
            if self._session is None:
                self._session = Session(self._limits, self._classify)
                self._session.connect_timeout = self._connect_timeout
            credentials = self._credentials if permission.credentials else self._no_credentials
            return HttpResource(self._session, credentials, url, address, permission.confined)
