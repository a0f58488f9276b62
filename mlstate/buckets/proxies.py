"""Proxies on the way to a bucket: none sees a credential, nor what is signed with one, in clear."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from mlstate.errors import BucketError

__all__ = [
    "check_no_plain_proxy",
    "hides_metadata",
    "is_this_machine",
    "plain_proxy",
    "without_proxy",
]

_METADATA = "http://169.254.169.254/"


def plain_proxy(address: str) -> str | None:
    """The proxy that the environment gives for an address without TLS, or None."""
    if not address.lower().startswith("http://"):
        return None
    from requests.utils import get_environ_proxies, select_proxy

    return select_proxy(address, get_environ_proxies(address))


def is_this_machine(address: str) -> bool:
    """Whether an address is of this machine for certain, which no proxy reaches."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def without_proxy(address: str) -> dict[str, Any]:
    """The options with which a client of obstore uses no proxy for an address."""
    if plain_proxy(address) is None:
        return {}
    # One that is given takes the place of the environment's; it is used for no host that is asked.
    return {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": urlsplit(address).hostname}


def check_no_plain_proxy(bucket: str, endpoint: str) -> None:
    """Refuse to ask a service without TLS, by way of a proxy, with credentials.

    Raises:
        BucketError: It would be so.
    """
    if not is_this_machine(endpoint) and plain_proxy(endpoint) is not None:
        raise BucketError(
            "a credential would go through a proxy in clear",
            bucket=bucket,
            operation="open",
            path=bucket,
            remedy="give the service's https address, or name its host in NO_PROXY",
        )


def hides_metadata() -> bool:
    """Whether a proxy is between this machine and what gives it credentials, which is beside it."""
    return plain_proxy(_METADATA) is not None
