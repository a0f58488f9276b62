"""Whether something became much slower: ``python -m benchmarks.regression``.

Each job is held against plain work of the same kind on the same bytes (hashing, copying, writing,
receiving them), so the ratio says little about the machine. It fails if a ratio is much greater
than the recorded one: by a factor of 2, say. Least times of several rounds are compared, and what
exceeds its limit is measured again, for longer, before it counts.

``--record`` writes what is measured as what is to be compared with.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from benchmarks.harness import Figure, Figures, arguments_parser, report, show
from benchmarks.startup import python
from mlstate import LocalStateStore, StateKey, StateType, with_state_type
from mlstate.fetch import Fetcher
from mlstate.locations import parse_mirror
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import Cache
from mlstate.transport import Transports
from tests.servers.nginx import Nginx
from tests.servers.ports import MissingProgramError

RECORDED = Path(__file__).parent / "results" / "regression.json"
MARGIN = 1.8
"""How many times its recorded ratio a job may take: less than 2, and as much as noise needs."""
LOOKS = 3
"""How often what seems too slow is measured again before it counts."""
TYPE = StateType("pytorch", "regression")
FIRST, SECOND = StateKey(TYPE, "first"), StateKey(TYPE, "second")
FILE = "model.safetensors"
MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Job:
    """Something that is not to become slower.

    Attributes:
        name: What.
        run: Does it; gives the seconds it took.
        plain: Does plain work of the same kind, and gives the seconds it took.
    """

    name: str
    run: Callable[[], float]
    plain: Callable[[], float]


def main() -> None:
    """Measure, compare, and say by the exit status whether all is well."""
    parser = arguments_parser(__doc__ or "")
    parser.set_defaults(rounds=15)
    parser.add_argument("--record", action="store_true", help="write the recorded ratios anew")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        jobs = jobs_in(_folder(stack), stack)
        ratios = measure(jobs, arguments.rounds)
        if not arguments.record:
            for _ in range(LOOKS):
                ratios = second_look(ratios, recorded(), jobs, arguments.rounds)
    rows = tuple(
        Figure(name, ratio, None if arguments.record else limit(name, recorded()))
        for name, ratio in ratios.items()
    )
    figures = show(Figures("least time over that of plain work on the same bytes", "ratio", rows))
    report([figures], RECORDED if arguments.record else arguments.json)
    slower = [] if arguments.record else too_slow(ratios, recorded())
    for name in slower:
        print(f"slower than it was: {name}")
    sys.exit(1 if slower else 0)


# Comparing.


def recorded() -> dict[str, float]:
    """The ratios that were written down."""
    tables = json.loads(RECORDED.read_text())["tables"]
    return {row["name"]: row["value"] for table in tables for row in table["rows"]}


def limit(name: str, before: Mapping[str, float]) -> float | None:
    """The greatest ratio that passes, of a job that has been recorded."""
    return before[name] * MARGIN if name in before else None


def too_slow(ratios: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """The jobs that exceed their limits."""
    return [name for name, ratio in ratios.items() if ratio > (limit(name, before) or ratio)]


def second_look(
    ratios: Mapping[str, float], before: Mapping[str, float], jobs: Iterable[Job], rounds: int
) -> dict[str, float]:
    """Measure once more what seems too slow: something else may have kept the machine busy."""
    again = [job for job in jobs if job.name in too_slow(ratios, before)]
    seconds = measure(again, 2 * rounds)
    return {name: min(ratio, seconds.get(name, ratio)) for name, ratio in ratios.items()}


def measure(jobs: Iterable[Job], rounds: int) -> dict[str, float]:
    """The least time of each job over the least of its plain work, one after the other in turn."""
    ratios = {}
    for job in jobs:
        job.plain(), job.run()
        times = [(job.plain(), job.run()) for _ in range(rounds)]
        ratios[job.name] = min(took for _, took in times) / min(took for took, _ in times)
    return ratios


# What is measured.


def _folder(stack: ExitStack) -> Path:
    """A folder in memory where there is one: a disk's moods are none of ours."""
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 1 << 30
    parent = MEMORY if roomy else None
    return Path(stack.enter_context(tempfile.TemporaryDirectory(dir=parent)))


def jobs_in(folder: Path, stack: ExitStack) -> list[Job]:
    """The jobs, with what they need laid out."""
    bench = Bench(folder)
    jobs = [
        Job("load, mapped", bench.load_mapped, bench.hash_mapped),
        Job("load, copied", bench.load_copied, bench.hash_and_copy),
        Job("save", bench.save, bench.hash_and_write),
        Job("save, nothing changed", bench.save_again, bench.hash),
        Job("import mlstate", lambda: importing("mlstate"), import_plain),
        Job("import LocalStateStore", lambda: importing("mlstate.stores.local"), import_plain),
    ]
    try:
        nginx = stack.enter_context(Nginx(folder))
    except MissingProgramError as missing:
        print(f"{missing}: fetching is not measured")
        return jobs
    url = nginx.url(FILE, "plain")
    return [*jobs, Job("fetch", lambda: bench.fetch(url), lambda: bench.receive(url))]


class Bench:
    """A model of 67 MB with large tensors and small ones, as a file and in a store.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        shapes = [(1024, 1024)] * 16 + [(1024,)] * 64
        parameters = [torch.randn(shape) for shape in shapes]
        self.folder = folder
        self.model: Any = with_state_type(torch.nn.ParameterList(parameters), TYPE)
        others = torch.nn.ParameterList([torch.zeros(shape) for shape in shapes])
        self.mapped: Any = with_state_type(others, TYPE)
        self.state = self.model.state_dict()
        self.file = folder / FILE
        save_file(self.state, self.file)
        self._content = self.file.read_bytes()
        self.store = LocalStateStore(folder / "store")
        self.store.save(self.model, FIRST.training_id)

    # Plain work.

    def hash(self) -> float:
        """Hash all bytes, on two threads."""
        return timed(lambda: blake3(max_threads=2).update(self._content).hexdigest())

    def hash_mapped(self) -> float:
        """Map the file, and hash all bytes on two threads."""
        return timed(lambda: blake3(max_threads=2).update_mmap(self.file).hexdigest())

    def hash_and_copy(self) -> float:
        """Hash all bytes, and load them unverified."""
        return self.hash() + timed(lambda: self.model.load_state_dict(load_file(self.file)))

    def hash_and_write(self) -> float:
        """Hash all bytes, and save them as one file."""
        self._clear()
        return self.hash() + timed(lambda: save_file(self.state, self._new / FILE))

    def receive(self, url: str) -> float:
        """Receive the file, write it and hash it."""
        self._clear()

        def receive() -> None:
            reply, hasher = requests.get(url, stream=True, timeout=30), blake3()
            with reply, (self._new / FILE).open("wb") as file:
                for chunk in reply.iter_content(1 << 20):
                    hasher.update(chunk)
                    file.write(chunk)

        return timed(receive)

    # Ours.

    def load_mapped(self) -> float:
        """Load by mapping."""
        return timed(lambda: self.store.load(self.mapped, FIRST, assign=True))

    def load_copied(self) -> float:
        """Load into the model's own memory."""
        return timed(lambda: self.store.load(self.model, FIRST))

    def save(self) -> float:
        """Save into an empty store."""
        self._clear()
        store = LocalStateStore(self._new)
        return timed(lambda: store.save(self.model, "first"))

    def save_again(self) -> float:
        """Save what is there, under another key."""
        if self.store.exists(SECOND):
            self.store.delete(SECOND)
        return timed(lambda: self.store.save(self.model, SECOND.training_id))

    def fetch(self, url: str) -> float:
        """Fetch the file into an empty cache."""
        self._clear()
        found = self.store.get(FIRST).entry
        mirrors = (parse_mirror({"url": url}),)
        entry = StateEntry(FIRST, found.digest, found.size, mirrors=mirrors)
        fetcher = Fetcher(Cache([FolderObjectStore(self._new)]), Transports, durable=False)
        return timed(lambda: fetcher.fetch(entry))

    @property
    def _new(self) -> Path:
        return self.folder / "new"

    def _clear(self) -> None:
        shutil.rmtree(self._new, ignore_errors=True)
        self._new.mkdir()


def importing(modules: str) -> float:
    """The processor seconds that importing some modules takes, in a new process."""
    code = f"import time; began = time.process_time(); import {modules}; "
    code += "print(time.process_time() - began)"
    return float(python(["-c", code]))


def import_plain() -> float:
    """Import what many programs do."""
    return importing("argparse, json, tempfile, typing, urllib.request")


def timed(call: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
