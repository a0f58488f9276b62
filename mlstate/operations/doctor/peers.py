"""Peers are asked whether they run, alike on all nodes, and reach their origin."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlstate.errors import FormatError, MlstateError, OfflineError, TransportError
from mlstate.format import layout
from mlstate.operations.doctor.check import Check, failed
from mlstate.parallel import for_each
from mlstate.transport import Transports
from mlstate.transport.urls import Url

__all__ = ["peer_checks"]

_NAME = "peers"
_CONNECT, _READ = 1.0, 3.0
_LARGEST = 1 << 20
_THREADS = 32
_MOST = 1024
_NODE = re.compile(r"[A-Za-z0-9.-]{1,254}|\[[0-9A-Fa-f:.]{2,45}\]")
_START = "see that nginx runs there with the configuration that mlstate peers wrote"
_INSTALL = "write the configuration once, and install the same files on every node"


@dataclass(frozen=True)
class _Said:
    """What a node says of the peers."""

    identity: str
    origin: str
    nodes: tuple[str, ...]
    port: int

    @classmethod
    def parse(cls, data: bytes) -> _Said:
        """Read it; a FormatError if it is something else."""
        try:
            told: Any = json.loads(data)
        except ValueError:
            told = None
        if not isinstance(told, Mapping) or told.get("mlstate_peers") != 1:
            raise FormatError("this is no cache that mlstate peers has set up")
        nodes, port = told.get("nodes"), told.get("port")
        if (
            not isinstance(nodes, list)
            or not 1 <= len(nodes) <= _MOST
            or not all(isinstance(node, str) and _NODE.fullmatch(node) for node in nodes)
            or not isinstance(port, int)
            or not 1 <= port <= 65534
        ):
            raise FormatError("these peers say nothing that can be understood of their nodes")
        return cls(str(told.get("identity")), str(told.get("origin")), tuple(nodes), port)


def peer_checks(address: str, *, offline: bool) -> Iterator[Check]:
    """Ask the peers of this node, each other node that they name, and the origin through them.

    Args:
        address: What MLSTATE_PEERS says.
        offline: Open no socket.
    """
    if offline:
        yield Check(_NAME, None, "not asked: offline")
        return
    with Transports(connect_timeout=_CONNECT, read_timeout=_READ, offline=False) as transports:
        try:
            said, passed = _ask(transports, f"{address}/peers")
        except (MlstateError, OSError) as error:
            check = failed(f"{_NAME}: {address}", error)
            yield Check(check.name, False, check.found, check.remedy or _START)
            return
        count = f"{len(said.nodes):,} nodes"
        yield Check(f"{_NAME}: {address}", True, f"{count}, for {said.origin}, {passed:.0f} ms")
        found: dict[str, Check] = {}

        def ask(node: str) -> None:
            found[node] = _node_check(transports, node, said)

        for_each(ask, said.nodes, min(_THREADS, len(said.nodes)))
        yield from (found[node] for node in said.nodes)
        yield _origin_check(transports, address, said)


def _node_check(transports: Transports, node: str, said: _Said) -> Check:
    name = f"{_NAME}: {node}"
    try:
        other, passed = _ask(transports, f"http://{node}:{said.port + 1}/peers")
    except (MlstateError, OSError) as error:
        check = failed(name, error)
        return Check(name, False, check.found, check.remedy or _START)
    if other.identity != said.identity:
        return Check(name, False, "configured otherwise than this node", _INSTALL)
    return Check(name, True, f"answers, {passed:.0f} ms")


def _origin_check(transports: Transports, address: str, said: _Said) -> Check:
    name = f"{_NAME}: origin"
    try:
        _read(transports, f"{address}/{layout.SETTINGS}")
    except OfflineError:
        raise
    except TransportError as error:
        if error.status != 404:
            return failed(name, error)
        remedy = f"is the folder that has objects/ at {said.origin}? If so, all is well"
        return Check(name, None, f"answers, and lacks {layout.SETTINGS}", remedy)
    except (MlstateError, OSError) as error:
        return failed(name, error)
    return Check(name, True, f"{said.origin} has a store")


def _ask(transports: Transports, address: str) -> tuple[_Said, float]:
    begun = time.perf_counter()
    said = _Said.parse(_read(transports, address))
    return said, (time.perf_counter() - begun) * 1000


def _read(transports: Transports, address: str) -> bytes:
    Url.parse(address)
    with transports.open(address).read() as stream:
        data = bytearray()
        while len(data) <= _LARGEST and (piece := stream.read(1 << 16)):
            data += piece
    return bytes(data)
