"""`Transports`: the one place where addresses are opened, and where offline is decided."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from mlstate.errors import FormatError, OfflineError, TransportError
from mlstate.locations import check_url
from mlstate.transport.hub import Hub, HubListing, HubResource, parse_hub_address
from mlstate.transport.interface import Limits, Resource, Stream
from mlstate.transport.local import LocalResource, file_path
from mlstate.transport.urls import Url

if TYPE_CHECKING:
    from mlstate.buckets.client import BucketClient
    from mlstate.transport.bucket import Buckets
    from mlstate.transport.http import Web

__all__ = ["OfflineResource", "Transports"]


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

    Nothing is connected to, and nothing slow is imported, before something is opened.

    Args:
        offline: Whatever needs a socket raises `mlstate.errors.OfflineError`.
        connections: See `Limits`, as for the four that follow.
        connect_timeout: See `Limits`.
        read_timeout: See `Limits`.
        low_speed: See `Limits`.
        low_speed_seconds: See `Limits`.
        buckets: Buckets that are open already, with credentials of their own, by address
            (``s3://bucket``); all others are reached as the environment says.
    """

    def __init__(
        self,
        *,
        offline: bool = False,
        connections: int = 16,
        connect_timeout: float = 10.0,
        read_timeout: float = 30.0,
        low_speed: float = 1024.0,
        low_speed_seconds: float = 60.0,
        buckets: Mapping[str, BucketClient] | None = None,
    ) -> None:
        self._offline = offline
        self._limits = Limits(
            connections, connect_timeout, read_timeout, low_speed, low_speed_seconds
        )
        self._lock = threading.Lock()
        self._web: Web | None = None
        self._known_buckets = dict(buckets or {})
        self._buckets: Buckets | None = None
        self._hub = Hub(self._connect, offline=offline)
        self._closed = False

    def open(self, address: str, *, base: Path | None = None) -> Resource:
        """The resource at an address. Whether it is there shows when it is read.

        Args:
            address: An http, https, file, s3, gs, az or hf address; or a path, which is taken as
                it is.
            base: The folder that a relative path is relative to; by default the current one.

        Raises:
            FormatError: The address is malformed, or has a password in it.
            TransportError: This version does not read such addresses, or not without a package
                that is missing.
        """
        reason = check_url(address)
        scheme = address.partition("://")[0].lower() if "://" in address else ""
        if reason is not None:
            raise TransportError(reason, found=f"{scheme}://...")
        match scheme:
            case "http" | "https":
                return self._connect(address)
            case "s3" | "gs" | "az":
                if self._offline:
                    return OfflineResource(address)
                return self._open_buckets().open(f"{scheme}{address[len(scheme) :]}")
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

        Args:
            address: ``hf://org/repo`` or ``hf://org/repo@revision``, without a path.

        Raises:
            FormatError: It is not such an address.
            TransportError: The hub does not say.
            OfflineError: Sockets are not allowed.
        """
        where = parse_hub_address(address)
        if where.path is not None:
            raise FormatError("a repository is needed, and this is a file", path=where)
        return self._hub.listing(where)

    def close(self) -> None:
        """Close all connections. Nothing is read from the network after this."""
        with self._lock:
            self._closed = True
            web, self._web = self._web, None
            self._buckets = None
        if web is not None:
            web.close()

    def __enter__(self) -> Transports:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open_buckets(self) -> Buckets:
        from mlstate.buckets.open import BucketOptions
        from mlstate.transport.bucket import Buckets

        limits = self._limits
        with self._lock:
            self._check_open()
            if self._buckets is None:
                options = BucketOptions(
                    offline=self._offline,
                    attempts=1,  # who reads tries again: both would, each time of the other
                    connect_timeout=limits.connect_timeout,
                    read_timeout=limits.read_timeout,
                    low_speed=limits.low_speed,
                    low_speed_seconds=limits.low_speed_seconds,
                )
                self._buckets = Buckets(self._known_buckets, options)
            return self._buckets

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("these transports are closed")

    def _connect(self, text: str, address: str | None = None) -> Resource:
        url = Url.parse(text)
        if self._offline:
            return OfflineResource(url.shown if address is None else address)
        from mlstate.transport.http import HttpResource, Web

        with self._lock:
            self._check_open()
            if self._web is None:
                self._web = Web(self._limits)
            return HttpResource(self._web, url, address)
