"""Soak: the same work again and again in one process, which takes no more of anything.

Memory, descriptors, threads and files in tmp/ are counted once all is warm, and at the end.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from mlstate import LocalStateStore, ManifestStore, manifest_of, verify
from mlstate.stores.prune_folder import prune_folder
from mlstate.stores.statefiles import FolderStateFiles
from tests.servers.recording import RecordingServer
from tests.torture.states import key_of, save, whole

__all__ = ["Held", "soak"]

SCALE = 0.3
WARM = 20
"""Rounds before the first count."""
_GROWTH = 16 << 20
"""Bytes that memory may grow: a round that kept its tensors would take more in forty rounds."""


@dataclass(frozen=True)
class Held:
    """What a process holds: bytes of memory, descriptors, threads, files that are left over."""

    memory: int
    descriptors: int
    threads: int
    temporaries: int


def _held(root: Path, server: RecordingServer) -> Held:
    gc.collect()
    server.drop()
    end = time.monotonic() + 10
    while threading.active_count() > 2 and time.monotonic() < end:
        time.sleep(0.05)  # the server's threads see that their connections are closed
    with open("/proc/self/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    left = [path for name in ("store", "cache") for path in (root / name / "tmp").glob("*")]
    return Held(
        int(fields["RssAnon"].split()[0]) << 10,
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
        len(left),
    )


def _round(root: Path, number: int, url: str) -> None:
    store = LocalStateStore(root / "store")
    save(store, "a", number % 8, scale=SCALE, overwrite=True)
    assert whole(store, "a", SCALE) == number % 8
    manifest_of(store, objects=[url]).write(root / "m.toml")
    cache = ManifestStore(root / "m.toml", cache=root / "cache")
    cache.fetch(key_of("a"))
    assert whole(cache, "a", SCALE) == number % 8
    if number % 3 == 0:
        tensors = cache.load_state_dict(key_of("a"))
        assert len(tensors) == 4
    if number % 10 == 0:
        assert verify(store).findings == ()
        store.delete(key_of("a"))
        store.prune(grace_seconds=-60)
        store.prune(grace_seconds=-60)
        cache.prune(max_size=0)
        for _ in range(2):
            objects = cache.objects.own
            prune_folder(FolderStateFiles(root / "cache"), objects, grace_seconds=-60)


def _main(seconds: float) -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        root = Path(folder)
        (root / "store").mkdir()
        with RecordingServer(root / "store") as server:
            for number in range(WARM):
                _round(root, number, server.url)
                server.reset()
            before, number, begun = _held(root, server), WARM, time.monotonic()
            while time.monotonic() - begun < seconds or number < 2 * WARM:
                number += 1
                _round(root, number, server.url)
                server.reset()
            after = _held(root, server)
    print(json.dumps({"before": asdict(before), "after": asdict(after), "rounds": number - WARM}))


def soak(seconds: float, figures: Counter[str]) -> tuple[Held, Held]:
    """Work for a time in a process of its own; an AssertionError if it holds more at the end."""
    parent = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.soak", str(seconds)],
        check=False,
        capture_output=True,
        text=True,
        cwd=parent,
        env={**os.environ, "PYTHONPATH": parent},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    before, after = Held(**said["before"]), Held(**said["after"])
    figures["soaked rounds"] += said["rounds"]
    assert after.memory <= before.memory + _GROWTH, (before, after)
    assert after.descriptors <= before.descriptors + 2, (before, after)
    assert after.threads <= before.threads + 1, (before, after)
    assert after.temporaries <= before.temporaries, (before, after)
    return before, after


if __name__ == "__main__":
    _main(float(sys.argv[1]))
