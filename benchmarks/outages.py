"""What a dead first mirror costs a fetch of eight states: ``python -m benchmarks.outages``.

Held against the same fetch without that mirror. Dead is a port that refuses connections, one that
drops them, and a server that answers 503. The other mirror is a web server on loopback that brings
each state in about half a second, as a network would.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from benchmarks.harness import Table, Way, arguments_parser, compare, report
from mlstate import LocalStateStore, ManifestStore, StateKey, manifest_of
from tests.servers.nginx import Nginx
from tests.servers.ports import HOST, black_hole, closed_port
from tests.servers.recording import RecordingServer, Reply

STATES = 8
SIZE = 4_000_000
RATE = SIZE * 2 // 3
"""Bytes a second of each connection, after those of the first second, which come at once."""


@contextmanager
def _refusing() -> Iterator[str]:
    with closed_port() as port:
        yield f"http://{HOST}:{port}"


@contextmanager
def _silent() -> Iterator[str]:
    with black_hole() as port:
        yield f"http://{HOST}:{port}"


@contextmanager
def _down() -> Iterator[str]:
    with RecordingServer({}, before=lambda request: Reply(503, {}, b"down\n")) as server:
        yield server.url


DEAD = {"refuses connections": _refusing, "drops them": _silent, "answers 503": _down}


def main() -> None:
    """Publish eight states, and fetch them with each kind of dead mirror before the good one."""
    arguments = arguments_parser(__doc__ or "").parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        store = LocalStateStore(folder / "store")
        for number in range(STATES):
            key = StateKey.parse(f"pytorch.net.n{number}")
            store.save_state_dict({"w": torch.randn(SIZE // 4)}, key)
        nginx = stack.enter_context(Nginx(folder / "store", limit_rate=RATE))
        good = nginx.url(kind="slow").rstrip("/")
        ways = [_way(folder, store, "without it", good)]
        for kind, server in DEAD.items():
            ways.append(_way(folder, store, kind, stack.enter_context(server()), good))
        table: Table = compare(
            f"{STATES} states of {SIZE / 1e6:g} MB, with a dead first mirror that",
            ways,
            rounds=arguments.rounds,
            goals=dict.fromkeys(DEAD, 1.3),
        )
    report([table], arguments.json)


def _way(folder: Path, store: LocalStateStore, name: str, *mirrors: str) -> Way:
    manifest, cache = manifest_of(store, objects=mirrors), folder / "cache"

    def fetch() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        view = ManifestStore(manifest, cache=cache)
        for key in manifest.states:
            view.fetch(key)

    return Way(name, fetch)


if __name__ == "__main__":
    main()
