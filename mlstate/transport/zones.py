"""Zones of addresses: whether one is of the internet, of a private network, or of this machine."""

from __future__ import annotations

import enum
import ipaddress
import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address

from mlstate.transport.urls import Url

__all__ = ["Zone", "ZoneOf", "most_public", "zone_by_name", "zone_of"]


class Zone(enum.Enum):
    """Who can reach an address; the name for people is the value."""

    PUBLIC = "public"
    PRIVATE = "private"
    LINK_LOCAL = "link-local"  # where clouds give machines their credentials
    LOOPBACK = "loopback"


ZoneOf = Callable[[str], Zone]
"""Classifies a numeric address."""

_CARRIERS = tuple(
    map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96", "::/96"))
)
"""Where the last 32 bits are an IPv4 address: NAT64, of a network's own, too; IPv4-translated and
-compatible addresses."""


def zone_of(address: str) -> Zone:
    """The zone of a numeric address; one that carries another one is as private as that."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address) and (inner := _inner(ip)) is not None:
        return _zone(inner)
    return _zone(ip)


def _inner(ip: IPv6Address) -> IPv4Address | None:
    if any(ip in carrier for carrier in _CARRIERS) and not ip.is_loopback:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour


def _zone(ip: IPv4Address | IPv6Address) -> Zone:
    if ip.is_loopback or ip.is_unspecified:  # to connect to 0.0.0.0 is to connect to oneself
        return Zone.LOOPBACK
    if ip.is_link_local:
        return Zone.LINK_LOCAL
    if isinstance(ip, IPv6Address) and ip.is_site_local:
        return Zone.PRIVATE
    return Zone.PUBLIC if ip.is_global and not ip.is_multicast else Zone.PRIVATE


def zone_by_name(url: Url, classify: ZoneOf) -> Zone:
    """The zone of a server that is reached by a proxy: only of a number it can be told.

    Proxies take a number in any form for one: ``2130706433``, ``0x7f.1`` and ``127.0.0.1.``, too.
    """
    host = url.host.rstrip(".")
    try:
        return classify(host)
    except ValueError:
        pass
    if host == "localhost" or host.endswith(".localhost"):
        return Zone.LOOPBACK
    try:
        return classify(socket.inet_ntoa(socket.inet_aton(host)))
    except OSError:
        return Zone.PUBLIC


def most_public(zones: Iterable[Zone]) -> Zone:
    """The zone that several connections to one server have; public if they are not of one."""
    found = set(zones)
    return found.pop() if len(found) == 1 else Zone.PUBLIC
