"""What many states and many objects cost: ``python -m benchmarks.scale``.

Listing and finding in a store of 10,000 states; pruning and verifying 100,000 objects, in time and
memory. State files and objects are written directly in the layout, as small as they can be: these
are questions of bookkeeping, not of bytes. Needs 2 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import Figure, Figures, report, show
from mlstate import LocalStateStore, StateKey, StateType
from mlstate.digests import Digest
from mlstate.format import layout, tensor_object
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.format.tensor_object import TensorSpec
from mlstate.manifests import StateEntry
from mlstate.operations.verify.verify import verify
from mlstate.stores.statefiles import format_state_file

OTHERS = (100, 1_000, 10_000)
OBJECTS = (10_000, 30_000, 100_000)
OWN = 100
REFS = 99
ASKED = StateType("pytorch", "asked-for")
OLD = 1_500_000_000.0


def main() -> None:
    """Make stores, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each job (3)")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--folder", type=Path, help="for all that is written (a temporary one)")
    parser.add_argument("--only", choices=["states", "objects"], help="a part of it")
    parser.add_argument("--job", choices=sorted(JOBS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(measured(JOBS[arguments.job], arguments.folder)))
        return
    results = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        if arguments.only != "objects":
            results += many_states(Path(name))
        if arguments.only != "states":
            results += many_objects(Path(name), arguments.rounds)
    report(results, arguments.json, keep=arguments.only is not None)


# States.


def many_states(folder: Path) -> list[Figures]:
    """Listing and finding, with more and more states of other architectures beside them."""
    store = LocalStateStore(folder / "states")
    keys = [StateKey(ASKED, f"run-{number}") for number in range(OWN)]
    missing = StateKey(ASKED, "nowhere")
    write_states(store, keys)
    rows = []
    written = 0
    for others in OTHERS:
        # Half of them in one architecture, half in as many as there can be.
        write_states(store, (_other(number) for number in range(written, others)))
        written = others
        asked = f"get_state_keys of {OWN}"
        rows.append(Figure(asked, milliseconds(lambda: store.get_state_keys(ASKED)), 10, others))
        rows.append(Figure("exists", milliseconds(lambda: store.exists(keys[7])), 10, others))
        nowhere = milliseconds(lambda: store.exists(missing))
        rows.append(Figure("exists, of a state that does not", nowhere, 10, others))
    together = show(Figures("states of other architectures", "ms", tuple(rows)))
    rows = []
    own = LocalStateStore(folder / "own")
    written = 0
    for count in OTHERS:
        write_states(own, (StateKey(ASKED, f"run-{number}") for number in range(written, count)))
        written = count
        listed = milliseconds(lambda: own.get_state_keys(ASKED), times=15)
        rows.append(Figure("get_state_keys of all", listed, None, count))
        found = milliseconds(lambda: own.exists(StateKey(ASKED, "run-7")))
        rows.append(Figure("exists", found, 10, count))
    alone = show(Figures("states of the architecture itself", "ms", tuple(rows)))
    return [together, alone]


def _other(number: int) -> StateKey:
    architecture = "other" if number % 2 else f"other-{number}"
    return StateKey(StateType("pytorch", architecture), f"run-{number}")


def write_states(store: LocalStateStore, keys: Iterator[StateKey] | list[StateKey]) -> None:
    """Write state files that differ in their keys alone; what they name is nowhere."""
    store.folder.mkdir(exist_ok=True)
    (store.folder / layout.SETTINGS).write_bytes(layout.NEW_SETTINGS)
    write_state_files(store.folder, ((key, Digest.of(str(key).encode())) for key in keys))


def write_state_files(folder: Path, states: Iterator[tuple[StateKey, Digest]]) -> None:
    """Write state files, fast: one is formatted, the others have its text."""
    stand_in, digest = StateKey(StateType("a", "b"), "c"), Digest.of(b"")
    template = format_state_file(StateEntry(stand_in, digest)).decode()
    for key, named in states:
        path = folder / layout.state_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template.replace(str(stand_in), str(key)).replace(digest, named))


def milliseconds(call: Callable[[], object], times: int = 101) -> float:
    """The median time of a call."""
    call()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return 1000 * statistics.median(took)


# Objects.


def many_objects(folder: Path, rounds: int) -> list[Figures]:
    """Pruning and verifying, each in a process of its own."""
    seconds: list[Figure] = []
    memory: list[Figure] = []
    stores = {count: folder / f"objects-{count}" for count in OBJECTS}
    for count, store in stores.items():
        write_objects(store, count)
    for job in JOBS:
        found: dict[int, tuple[float, float]] = {}
        for count, store in stores.items():
            runs = [in_a_process(job, store) for _ in range(rounds)]
            took = statistics.median(run[0] for run in runs)
            found[count] = took, max(run[1] for run in runs)
            seconds.append(Figure(job, took, None, count))
            memory.append(Figure(job, found[count][1] / 1e6, None, count))
        least, most = min(found), max(found)
        growth = (found[most][0] / most) / (found[least][0] / least)
        name = f"{job}: time per object, {most:,} over {least:,}"
        seconds.append(Figure(name, growth, 1.5, note="a ratio"))
    for store in stores.values():
        shutil.rmtree(store)
    return [
        show(Figures("objects of a store, half of them named by no state", "s", tuple(seconds))),
        show(Figures("anonymous memory at its peak, beyond the imports", "MB", tuple(memory))),
    ]


def write_objects(folder: Path, count: int) -> None:
    """A store with so many objects: half in states of 100 objects each, half named by nothing.

    They are the smallest tensors that are objects of their own, all different.
    """
    folder.mkdir()
    (folder / layout.SETTINGS).write_bytes(layout.NEW_SETTINGS)
    how_many = count // 2 // (REFS + 1)
    digests = [write_tensor(folder, number) for number in range(count - how_many)]
    states = []
    for number in range(how_many):
        chosen = digests[number * REFS :][:REFS]
        refs = {f"layer.{n}": TensorRef(SPEC, digest) for n, digest in enumerate(chosen)}
        data = StateObject({}, refs).encode()
        write_object(folder, Digest.of(data), data, len(data))
        states.append((StateKey(ASKED, f"run-{number}"), Digest.of(data)))
    write_state_files(folder, iter(states))


SPEC = TensorSpec("U8", (16384,))


def write_tensor(folder: Path, number: int) -> Digest:
    """Write a tensor object of which no other number has the like."""
    data = tensor_object.header(SPEC) + number.to_bytes(8, "little")
    size = tensor_object.object_size(SPEC)
    digest = Digest.of(data.ljust(size, b"\0"))
    write_object(folder, digest, data, size)
    return digest


def write_object(folder: Path, digest: Digest, data: bytes, size: int) -> None:
    """Write an old object; what zeros are left at its end take no disk."""
    path = folder / layout.object_path(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(size)
    os.utime(path, (OLD, OLD))


def in_a_process(job: str, folder: Path) -> tuple[float, float]:
    """Seconds and peak memory of a job."""
    command = [sys.executable, "-m", "benchmarks.scale", "--job", job, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def measured(job: Callable[[Path], None], folder: Path) -> tuple[float, int]:
    """Seconds and peak memory in bytes of a job in this process."""
    with watched() as peak:
        began = time.perf_counter()
        job(folder)
        took = time.perf_counter() - began
    return took, peak[0]


@contextmanager
def watched() -> Iterator[list[int]]:
    """Note how far anonymous memory grows; looked at every 5 ms, and at the end."""
    before, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
        peak[0] = max(peak[0], anonymous() - before)
    finally:
        done.set()
        thread.join()


def anonymous() -> int:
    """The anonymous memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("this system does not tell how much memory is anonymous")


def prune(folder: Path) -> None:
    """Say what a pruning would do."""
    store = LocalStateStore(folder)
    trashed = store.prune(dry_run=True).trashed
    assert trashed, "half of the objects are named by nothing"


def read_all(folder: Path) -> None:
    """Verify everything; each object is 20 KB, so this is mostly bookkeeping."""
    report = verify(LocalStateStore(folder))
    assert report.ok, "all is as it was written"


JOBS: dict[str, Callable[[Path], None]] = {"prune(dry_run=True)": prune, "verify": read_all}


if __name__ == "__main__":
    main()
