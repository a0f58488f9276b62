"""`write_peers` writes the configuration of caches that the nodes of a cluster share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlstate.errors import FormatError, StateExistsError, TransportError
from mlstate.locations import local_path
from mlstate.objects.beside import temporary_beside
from mlstate.objects.durable import write_file
from mlstate.operations.peers.configuration import FRONT, Peers
from mlstate.operations.tables import Table, Tabular
from mlstate.phrases import OVERWRITE
from mlstate.transport.urls import Url
from mlstate.units import parse_size

__all__ = ["WrittenPeers", "write_peers"]

_SIZE = "200GB"


@dataclass(frozen=True)
class WrittenPeers(Tabular):
    """The configuration that was written.

    Attributes:
        address: Where programs of a node ask: the value of MLSTATE_PEERS.
        origin: Where the bytes come from.
        nodes: The nodes.
        files: What was written.
    """

    address: str
    origin: str
    nodes: tuple[str, ...]
    files: tuple[Path, ...]

    def _table(self) -> Table:
        rows = [(str(file),) for file in self.files]
        return Table(("FILE",), rows, f"MLSTATE_PEERS={self.address}")


def write_peers(
    origin: str,
    nodes: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    port: int = FRONT,
    max_size: int | str = _SIZE,
    cache: str = "/var/cache/mlstate-peers",
    run: str = "/run/mlstate-peers",
    listen: str = "127.0.0.1",
    overwrite: bool = False,
) -> WrittenPeers:
    """Write the configuration of nginx by which nodes share what each has fetched.

    Every node gets the same files: ``nginx.conf``, a unit of systemd, a DaemonSet of Kubernetes.
    Each keeps its share of all objects on its disk; whoever asks for one gets it from the node
    whose it is, and that node asks the origin once. So a fleet that starts costs the origin one
    copy of each object. A node that is not there is passed over, and its share comes from others.

    Args:
        origin: The http(s) address of the folder that has ``objects/``: a store behind a web
            server, a public bucket, or a server that signs requests to a private one.
        nodes: The nodes' host names or addresses.
        folder: Where the files go; it is made if it is missing.
        port: The port that a node's own programs ask; nodes ask each other at the next one.
        max_size: The disk that the cache of a node may take, in bytes or as ``"200GB"``.
        cache: The folder of that cache, on the nodes.
        run: The folder for what nginx keeps while it runs, on the nodes.
        listen: The address that a node's own programs ask at; ``"*"`` for those of containers.
        overwrite: Replace files that are there.

    Raises:
        FormatError: An argument cannot be written into a configuration.
        StateExistsError: One of the files is there already; nothing was written.
        OSError: A file cannot be written.

    Example:
        >>> import tempfile
        >>> found = write_peers("https://weights.example.org", ["a", "b"], tempfile.mkdtemp())
        >>> found.address, [file.name for file in found.files]
        ('http://127.0.0.1:9470', ['nginx.conf', 'mlstate-peers.service', 'daemonset.yaml'])
    """
    chosen = Peers(_origin(origin), tuple(nodes), port, parse_size(max_size), cache, run, listen)
    place = Path(os.path.abspath(local_path(folder)))
    files = {place / name: text for name, text in chosen.files().items()}
    for file in files:
        if file.exists() and not overwrite:
            raise StateExistsError(
                "this file is there already; nothing was written",
                path=file,
                remedy=OVERWRITE + " replaces it, or give another folder",
            )
    place.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        write_file(file, [text.encode()], temporary=temporary_beside(file), read_only=False)
    host = "127.0.0.1" if listen == "*" else listen
    return WrittenPeers(f"http://{host}:{port}", chosen.origin.shown, chosen.nodes, tuple(files))


def _origin(address: str) -> Url:
    try:
        return Url.parse(address)
    except TransportError as error:
        raise FormatError(
            "peers need an origin that speaks http",
            expected="https://weights.example.org/models, say",
            found=error.found or address.partition("?")[0][:80],
            remedy="give the http address of a bucket, or of a server that signs requests to it: "
            "docs/fleet.md",
        ) from None
