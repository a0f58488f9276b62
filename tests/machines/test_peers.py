"""Nodes that share what each has fetched: real nginx, in network namespaces as hosts."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mlstate import LocalStateStore, StateKey, manifest_of
from mlstate.operations.peers.configuration import FRONT
from mlstate.operations.peers.write import write_peers
from tests.servers.cluster import Cluster, Host, cluster
from tests.servers.ports import MissingProgramError

ROOT = Path(__file__).parents[2]
KEY = StateKey.parse("pytorch.mlp.peers")
NODES = 4

pytestmark = pytest.mark.machines


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a state of large and small tensors: one is read in several ranges."""
    folder = tmp_path_factory.mktemp("weights")
    generator = torch.Generator().manual_seed(7)
    sizes = {"large": 18_000_000, **{f"layer{n}": 300_000 for n in range(20)}, "bias": 100}
    state = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    LocalStateStore(folder / "store").save_state_dict(state, KEY)
    for path in (folder, *folder.parents):  # workers of nginx are another user
        if path.stat().st_uid == os.geteuid() and path.is_relative_to("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    return folder / "store"


@pytest.fixture
def nodes(weights: Path) -> Iterator[Cluster]:
    """A cluster with cold caches."""
    try:
        with cluster(NODES) as made:
            made.serve(weights)
            for node in made.nodes:
                _start(made, node, [other.address for other in made.nodes])
            yield made
    except MissingProgramError as missing:
        pytest.skip(str(missing))


def _start(made: Cluster, node: Host, addresses: list[str]) -> None:
    home = made.home / node.namespace
    home.mkdir(exist_ok=True)
    write_peers(made.origin, addresses, home, cache=f"{home}/cache", run=str(home), overwrite=True)
    made.start(node, home / "nginx.conf", FRONT)


def _manifest(made: Cluster, weights: Path) -> Path:
    manifest = manifest_of(LocalStateStore(weights), objects=[made.origin])
    path = made.home / "weights.toml"
    manifest.write(path)
    return path


def _environment(made: Cluster, node: Host, name: str) -> dict[str, str]:
    own = made.home / node.namespace / name
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    return kept | {
        "HOME": str(own),
        "MLSTATE_CACHE": str(own / "cache"),
        "MLSTATE_PEERS": f"http://127.0.0.1:{FRONT}",
        "PYTHONPATH": str(ROOT),
    }


def _begun(
    made: Cluster, node: Host, manifest: Path, *words: str, name: str = "client"
) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "mlstate", *words, "--store", str(manifest), "--json"]
    return subprocess.Popen(
        node.command(*line),
        env=_environment(made, node, name),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _fetched(made: Cluster, at: list[Host], manifest: Path, name: str = "client") -> int:
    """Fetch on nodes at once, verify what came, and say how much that was, of all of them."""
    running = [_begun(made, node, manifest, "fetch", "--all", name=name) for node in at]
    total = 0
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, (out, err)
        total += sum(state["fetched"] for state in json.loads(out)["states"])
    for node in at:
        process = _begun(made, node, manifest, "verify", "--all", name=name)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, (out, err)
        assert json.loads(out)["ok"]
    return total


def test_cold_nodes_cost_the_origin_one_copy(nodes: Cluster, weights: Path) -> None:
    total = _fetched(nodes, list(nodes.nodes), _manifest(nodes, weights))
    sent = sum(size for _, size, _ in nodes.sent())
    one = total // NODES
    assert one > 90_000_000
    assert one <= sent <= 1.05 * one


def test_a_node_that_is_gone_is_passed_over(nodes: Cluster, weights: Path) -> None:
    manifest = _manifest(nodes, weights)
    gone, *others = nodes.nodes
    gone.link("down")
    total = _fetched(nodes, others, manifest)
    # Its share went to others, and each object crossed the line once all the same: what was asked
    # of the lost node was asked of the same other node by all.
    assert sum(size for _, size, _ in nodes.sent()) <= 1.05 * total / len(others)


def test_a_damaged_cache_changes_no_byte_that_is_used(nodes: Cluster, weights: Path) -> None:
    manifest = _manifest(nodes, weights)
    _fetched(nodes, list(nodes.nodes[:1]), manifest)
    victims = [node.namespace for node in nodes.nodes]
    kept = [
        file
        for name in victims
        for file in sorted((nodes.home / name / "cache").rglob("*"))
        if file.is_file()
    ]
    assert len(kept) > 20
    luck = random.Random(5)
    for file in kept:
        content = bytearray(file.read_bytes())
        content[luck.randrange(len(content) * 3 // 4, len(content))] ^= 0x40
        file.write_bytes(content)
    before = sum(size for _, size, _ in nodes.sent())
    total = _fetched(nodes, list(nodes.nodes[1:]), manifest)  # which verifies
    again = sum(size for _, size, _ in nodes.sent()) - before
    assert again >= total  # nothing that a node kept could be used


def test_without_its_peers_a_node_asks_the_origin(nodes: Cluster, weights: Path) -> None:
    manifest = _manifest(nodes, weights)
    node = nodes.nodes[0]
    nodes.stop(node)
    total = _fetched(nodes, [node], manifest)
    assert sum(size for _, size, _ in nodes.sent()) <= 1.05 * total


def test_doctor_looks_at_every_node(nodes: Cluster, weights: Path) -> None:
    manifest = _manifest(nodes, weights)
    first, second, third, fourth = nodes.nodes
    nodes.stop(second)
    nodes.stop(third)
    _start(nodes, third, [first.address, third.address])
    out, err = _begun(nodes, first, manifest, "doctor").communicate(timeout=120)
    found = {check["name"]: check for check in json.loads(out)["checks"]}, err
    checks = {name: check for name, check in found[0].items() if name.startswith("peers: ")}
    ok = {name.removeprefix("peers: "): check["ok"] for name, check in checks.items()}
    assert ok == {
        f"http://127.0.0.1:{FRONT}": True,
        first.address: True,
        second.address: False,
        third.address: False,
        fourth.address: True,
        "origin": True,
    }
    assert "otherwise" in checks[f"peers: {third.address}"]["found"]
