"""A fleet that starts cold, by calculation and on four hosts: ``python -m benchmarks.fleet``.

`START` and `listing` have the assumptions. The times of a start are lower bounds: whichever line is
busiest, the origin's or a node's. ``--measure`` holds that against real nginx on network namespaces
whose lines tc limits (root, Linux), and measures what is assumed of parsing and of folders.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Figure, Figures, arguments_parser, report
from mlstate import LocalStateStore, StateKey, manifest_of
from mlstate.format.state_object import StateObject
from mlstate.objects import FolderObjectStore
from mlstate.operations.peers.configuration import FRONT
from mlstate.operations.peers.write import write_peers
from tests.servers.cluster import Cluster, Host, cluster

__all__ = ["START", "WAYS", "Fleet", "Listing", "Start", "listing", "page", "start"]

GBIT = 125_000_000
MIB = 1 << 20


@dataclass(frozen=True)
class Fleet:
    """Machines, and what they fetch.

    Attributes:
        nodes: How many there are.
        ranks: The processes of each that load weights.
        job: The nodes of one job.
        weights: Bytes that each process needs.
        piece: Bytes of one request.
        origin: Bytes a second that the bucket gives to all together.
        line: Bytes a second of a node's line, each way.
        price: Dollars of a thousand requests to the bucket.
        traffic: Dollars of a GB from it; nothing within a region, as clouds bill it.
    """

    nodes: int
    ranks: int
    job: int
    weights: int
    piece: int
    origin: int
    line: int
    price: float = 0.0004
    traffic: float = 0.0


START = Fleet(
    nodes=1000,
    ranks=8,
    job=8,
    weights=140_000_000_000,
    piece=16 * MIB,
    origin=100 * GBIT,
    line=100 * GBIT,
)


@dataclass(frozen=True)
class Start:
    """What a cold start costs: bytes and requests at the origin, seconds, dollars."""

    sent: int
    requests: int
    seconds: float
    dollars: float


def every_rank(fleet: Fleet) -> tuple[int, int, int]:
    """Copies that the origin sends, copies that come into a node, copies that leave one."""
    return fleet.nodes * fleet.ranks, fleet.ranks, 0


def node_cache(fleet: Fleet) -> tuple[int, int, int]:
    """As `every_rank`, where the ranks of a node share a cache."""
    return fleet.nodes, 1, 0


def once_a_job(fleet: Fleet) -> tuple[int, int, int]:
    """As `every_rank`, where each node of a job fetches its part and gives it to the others."""
    return -(-fleet.nodes // fleet.job), 1, 1


def with_peers(fleet: Fleet) -> tuple[int, int, int]:
    """As `every_rank`, with peers: each node brings its share of all, and gives it to all."""
    return 1, 1, 1


WAYS: dict[str, Callable[[Fleet], tuple[int, int, int]]] = {
    "every rank for itself": every_rank,
    "a cache on each node": node_cache,
    "once for each job": once_a_job,
    "peers": with_peers,
}


def start(fleet: Fleet, way: Callable[[Fleet], tuple[int, int, int]]) -> Start:
    """What it costs that all nodes get the weights at once."""
    copies, incoming, outgoing = way(fleet)
    sent = copies * fleet.weights
    requests = copies * -(-fleet.weights // fleet.piece)
    busiest = max(sent / fleet.origin, max(incoming, outgoing) * fleet.weights / fleet.line)
    dollars = requests / 1000 * fleet.price + sent / 1e9 * fleet.traffic
    return Start(sent, requests, busiest, dollars)


@dataclass(frozen=True)
class Listing:
    """What a prune of a large store has to look at.

    Attributes:
        objects: How many there are.
        states: How many state objects are read.
        page: Objects that one LIST names.
        delay: Seconds that one LIST takes.
        abreast: How many prefixes are listed at once.
        parsed: State objects of 500 tensors that are read in a second; measured.
        entries: Files of a folder that are listed in a second; measured.
    """

    objects: int
    states: int
    page: int
    delay: float
    abreast: int
    parsed: float
    entries: float

    @property
    def bucket(self) -> float:
        """Seconds for the objects of a bucket, one page after the other."""
        return self.objects / self.page * self.delay

    @property
    def bucket_abreast(self) -> float:
        """Seconds for them with many prefixes at once."""
        return self.bucket / self.abreast

    @property
    def folder(self) -> float:
        """Seconds for the objects of a folder."""
        return self.objects / self.entries

    @property
    def parsing(self) -> float:
        """Seconds for the state objects, the first time: an index keeps what they say."""
        return self.states / self.parsed


def listing() -> Listing:
    """A large store: the rates of parsing and of folders are those that were measured last."""
    rates = {row["name"]: row["value"] for row in _results()[_RATES]}
    return Listing(
        objects=10_000_000,
        states=100_000,
        page=1000,
        delay=0.15,
        abreast=64,
        parsed=rates[_PARSED],
        entries=rates[_LISTED],
    )


PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
RESULTS = Path(__file__).parent / "results" / "fleet.json"
_TABLE = re.compile(r"^<!-- table: (\w+) -->\n\n((?:\|.*\|\n)*\n?)", re.M)


def page(text: str) -> str:
    """docs/scale.md with its tables as the calculation and the results have them."""
    tables = {"start": start_table(), "hosts": hosts_table(), "listing": listing_table()}
    return _TABLE.sub(
        lambda found: f"<!-- table: {found[1]} -->\n\n{_markdown(tables[found[1]])}\n", text
    )


def _markdown(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def start_table() -> list[list[str]]:
    """The cold start of `START`."""
    rows = [["way", "from the bucket", "requests", "time, at least", "requests cost"]]
    for name, way in WAYS.items():
        found = start(START, way)
        cost = f"${found.dollars:,.2f}"
        rows.append([name, _bytes(found.sent), f"{found.requests:,}", _time(found.seconds), cost])
    return rows


def hosts_table() -> list[list[str]]:
    """The calculation, and what four hosts took."""
    found = _results()
    rows = [["way", "calculated", "measured", "bytes from the origin, of those calculated"]]
    for time_, sent in zip(found[_TIMES], found[_COPIES], strict=True):
        seconds = time_["at"] / 1000
        measured = f"{seconds * time_['value']:.1f} s"
        rows.append([time_["name"], f"{seconds:.1f} s", measured, f"{sent['value']:.2f}"])
    return rows


def listing_table() -> list[list[str]]:
    """What a prune of `listing` has to look at."""
    large = listing()
    return [
        ["what", "time"],
        ["10^7 objects of a bucket, one page after the other", _time(large.bucket)],
        ["the same, 64 prefixes at once", _time(large.bucket_abreast)],
        ["10^7 objects of a folder", _time(large.folder)],
        ["10^5 state objects of 500 tensors, parsed", _time(large.parsing)],
    ]


def _results() -> dict[str, list[dict[str, Any]]]:
    """The figures that were measured last, by their titles."""
    return {table["title"]: table["rows"] for table in json.loads(RESULTS.read_text())["tables"]}


def _bytes(number: float) -> str:
    return f"{number / 1e12:,.1f} TB" if number >= 1e12 else f"{number / 1e9:,.0f} GB"


def _time(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 300 else f"{seconds:.0f} s"


# Measuring.

_TIMES = "time against the calculation, 4 hosts (at: ms that it gives)"
_RATES = "what is assumed"
_PARSED = "state objects of 500 tensors, parsed"
_LISTED = "objects of a folder, listed"
_COPIES = "bytes from the origin against the calculation"
_HOSTS = 4
_ORIGIN, _LINE = "160mbit", "400mbit"
_SMALL = Fleet(
    nodes=_HOSTS,
    ranks=2,
    job=_HOSTS,
    weights=0,
    piece=16 * MIB,
    origin=160 * GBIT // 1000,
    line=400 * GBIT // 1000,
)
_KEY = StateKey.parse("pytorch.mlp.fleet")
_PROGRAM = """
import sys
from mlstate import ManifestStore, StateKey
import mlstate.fetch.fetcher
store = ManifestStore(sys.argv[1], cache=sys.argv[2], offline=False)
key = StateKey.parse(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
store.fetch(key)
"""


def measured() -> list[Figures]:
    """Hold the calculation against four hosts, and measure what it assumes."""
    with cluster(_HOSTS, _ORIGIN, _LINE) as made:
        weights = made.home / "weights"
        size = _publish(weights)
        made.serve(weights)
        manifest = made.home / "weights.toml"
        manifest_of(LocalStateStore(weights), objects=[made.origin]).write(manifest)
        for node in made.nodes:
            _serve_peers(made, node)
        fleet = replace(_SMALL, weights=size)
        rows, copies = [], []
        for name in ("every rank for itself", "a cache on each node", "peers"):
            expected = start(fleet, WAYS[name])
            seconds, sent = _fetched(made, manifest, name)
            rows.append(Figure(name, seconds / expected.seconds, at=round(expected.seconds * 1000)))
            copies.append(Figure(name, sent / expected.sent, goal=1.05))
    return [
        Figures(_TIMES, "ratio", tuple(rows)),
        Figures(_COPIES, "ratio", tuple(copies)),
        Figures(_RATES, "a second", tuple(_rates())),
    ]


def _publish(folder: Path) -> int:
    generator = torch.Generator().manual_seed(3)
    state = {f"layer{n}": torch.randn(1_000_000, generator=generator) for n in range(12)}
    LocalStateStore(folder).save_state_dict(state, _KEY)
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    folder.chmod(0o755)
    return sum(path.stat().st_size for path in (folder / "objects").rglob("*") if path.is_file())


def _serve_peers(made: Cluster, node: Host) -> None:
    home = made.home / node.namespace
    home.mkdir()
    addresses = [other.address for other in made.nodes]
    write_peers(made.origin, addresses, home, cache=f"{home}/cache", run=str(home))
    made.start(node, home / "nginx.conf", FRONT)


def _fetched(made: Cluster, manifest: Path, way: str) -> tuple[float, int]:
    """Fetch on all nodes at once: the seconds, and the bytes that the origin has sent."""
    before = sum(size for _, size, _ in made.sent())
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    if way == "peers":
        environment["MLSTATE_PEERS"] = f"http://127.0.0.1:{FRONT}"
    ranks = _SMALL.ranks if way == "every rank for itself" else 1
    running = []
    for node in made.nodes:
        for rank in range(ranks):
            cache = made.home / node.namespace / f"{way} {rank}"
            line = [sys.executable, "-c", _PROGRAM, str(manifest), str(cache), str(_KEY)]
            running.append(
                subprocess.Popen(
                    node.command(*line),
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    begun = time.perf_counter()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        process.communicate(timeout=300)
        if process.returncode:
            raise RuntimeError("a fetch failed")
    seconds = time.perf_counter() - begun
    return seconds, sum(size for _, size, _ in made.sent()) - before


def _rates() -> list[Figure]:
    """State objects that are parsed, and files that are listed, in a second."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "store"
        store = LocalStateStore(place)
        shared = {f"layer{n}.weight": torch.full((4096,), float(n)) for n in range(500)}
        store.save_state_dict(shared, _KEY)
        digest = store.digest(_KEY)
        data = FolderObjectStore(place).path(digest).read_bytes()
        count, begun = 200, time.perf_counter()
        for _ in range(count):
            StateObject.parse(data)
        parsed = count / (time.perf_counter() - begun)
        listed = Path(name) / "listed"
        LocalStateStore(listed).save_state_dict({"w": torch.zeros(8192)}, _KEY)
        for number in range(100_000):
            folder = listed / "objects" / f"{number % 256:02x}"
            if number < 256:
                folder.mkdir(exist_ok=True)
            (folder / f"{number:062x}").touch()
        begun = time.perf_counter()
        entries = sum(1 for _ in FolderObjectStore(listed).digests())
        listing = entries / (time.perf_counter() - begun)
    return [
        Figure(_PARSED, parsed),
        Figure(_LISTED, listing),
    ]


def main() -> None:
    """Measure, if asked to; print the calculation, and write docs/scale.md anew."""
    parser = arguments_parser(__doc__ or "")
    parser.add_argument("--measure", action="store_true", help="hold it against four hosts")
    arguments = parser.parse_args()
    if arguments.measure:
        report(measured(), arguments.json or RESULTS)
    for rows in (start_table(), listing_table()):
        print(_markdown(rows))
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
