"""The configuration of peers: a value, and the files of nginx, systemd and Kubernetes for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from mlstate.digests import Digest
from mlstate.errors import FormatError
from mlstate.transport.urls import Url

__all__ = ["FRONT", "Peers"]

FRONT = 9470
"""The port that a node's own programs ask; the one above it is that of the other nodes."""
_SLICE = "16m"
"""What one node keeps of an object in one piece. Larger ones spare requests to the origin (for a
fleet at 1 Tbit/s these are what binds), smaller ones spread a large object over more nodes."""
_CONNECT = "150ms"
"""A node that is not there costs this once a minute: a round trip between nodes takes less."""
_KEYS_PER_MIB = 8000
"""The slices that a MiB of nginx's shared memory has room for, as its documentation says."""
_NODE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")
_PATH = re.compile(r"/[A-Za-z0-9._/+-]{0,250}")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~%+@-]+)*")
_BLANK = re.compile(r"%([a-z_]+)%")
_FILES = ("nginx.conf", "mlstate-peers.service", "daemonset.yaml")


@dataclass(frozen=True)
class Peers:
    """Nodes that share what each has fetched, so that the origin sends each object once.

    Attributes:
        origin: The http(s) address of a folder in the store layout: ``objects/`` is below it.
        nodes: Their host names or addresses, as each node reaches the others and itself.
        port: The port that programs of a node ask; nodes ask each other at the next one.
        size: The bytes of disk that the cache of a node may take.
        cache: The folder of the cache, on each node.
        run: The folder for what nginx keeps while it runs.
        listen: The address that programs of a node ask at; pods of a node need more than the
            default, which is the node itself.

    Raises:
        FormatError: One of them cannot be written into a configuration.
    """

    origin: Url
    nodes: tuple[str, ...]
    port: int = FRONT
    size: int = 200_000_000_000
    cache: str = "/var/cache/mlstate-peers"
    run: str = "/run/mlstate-peers"
    listen: str = "127.0.0.1"

    def __post_init__(self) -> None:
        if "?" in self.origin.target or not _PREFIX.fullmatch(self._prefix):
            raise FormatError(
                "this origin cannot be written into a configuration of nginx",
                expected="the address of a folder, of letters, digits and ._~%+@-, without a query",
                found=self.origin.shown,
            )
        if not self.nodes or len({node.lower() for node in self.nodes}) < len(self.nodes):
            raise FormatError(
                "peers need nodes, each of which is named once",
                expected="node-a,node-b,node-c",
                found=",".join(self.nodes)[:80] or "none",
            )
        for node in self.nodes:
            if not _NODE.fullmatch(node):
                raise FormatError(
                    "this is no host name and no address of a node",
                    expected="node-a, 10.0.0.1 or [fd00::1], without a port",
                    found=node[:80],
                )
        if not 1 <= self.port <= 65534:
            raise FormatError(
                "the port and the one above it are used",
                expected="1 to 65534",
                found=str(self.port),
            )
        if not (_NODE.fullmatch(self.listen) or self.listen == "*"):
            raise FormatError(
                "this is no address of a node", expected="127.0.0.1 or *", found=self.listen[:80]
            )
        for path in (self.cache, self.run):
            if not _PATH.fullmatch(path):
                raise FormatError(
                    "this path cannot be written into a configuration of nginx",
                    expected="an absolute path of letters, digits and ._+-",
                    found=path[:80],
                )

    @property
    def identity(self) -> str:
        """A short text that two nodes have in common if they are configured alike."""
        told = [self.origin.shown, *self.nodes, str(self.port), _SLICE]
        return Digest.of("\n".join(told).encode())[:16]

    @property
    def said(self) -> dict[str, object]:
        """What a node says of itself under ``/peers``."""
        return {
            "mlstate_peers": 1,
            "identity": self.identity,
            "origin": self.origin.shown,
            "nodes": list(self.nodes),
            "port": self.port,
        }

    def files(self) -> dict[str, str]:
        """The files to install, by name: each says at its top what to do with it."""
        blanks = self._blanks()
        folder = resources.files(__package__) / "assets"
        return {name: _filled((folder / name).read_text("utf-8"), blanks) for name in _FILES}

    @property
    def _prefix(self) -> str:
        return self.origin.target.rstrip("/")

    def _blanks(self) -> Mapping[str, str]:
        origin = self.origin
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        servers = "\n".join(
            f"    server {node}:{self.port + 1} max_fails=1 fail_timeout=60s;"
            for node in self.nodes
        )
        slices = max(self.size // (16 << 20), 100_000)  # small objects are one slice each
        tls = (
            "proxy_ssl_server_name on;",
            f"proxy_ssl_name {origin.host};",
            "proxy_ssl_verify on;",
            "proxy_ssl_verify_depth 5;",
            "proxy_ssl_trusted_certificate /etc/ssl/certs/ca-certificates.crt;",
        )
        return {
            "front": str(self.port),
            "back": str(self.port + 1),
            "listen": self.listen,
            "listen_back": "*",
            "run": self.run,
            "cache": self.cache,
            "config": "/etc/mlstate-peers/nginx.conf",
            "zone": f"{-(-slices // _KEYS_PER_MIB)}m",
            "size": f"{-(-self.size // (1 << 20))}m",
            "slice": _SLICE,
            "connect": _CONNECT,
            "servers": servers,
            "scheme": origin.scheme,
            "origin_server": f"{host}:{origin.port}",
            "origin_host": origin.root.partition("://")[2],
            "prefix": self._prefix,
            "tls": "".join(f"      {line}\n" for line in tls if origin.scheme == "https"),
            "said": json.dumps(self.said),
        }


def _filled(text: str, blanks: Mapping[str, str]) -> str:
    return _BLANK.sub(lambda match: blanks[match[1]], text)
