"""Where the processor's time goes, for each measured thing: ``python -m benchmarks.profiles``.

py-spy looks from outside at what every thread that is on a processor does, 500 times a second,
while a job runs again and again for some seconds. What it sees is put into a few kinds of work.
Time in which a thread waits, for a disk, a network or another thread, does not count.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from safetensors.torch import save_file

from benchmarks import fetch, scale
from benchmarks.checkpoints import CHANGING, Series
from benchmarks.harness import Figure, Figures, report, show
from benchmarks.load import drop_caches
from benchmarks.save import no_fsync
from benchmarks.states import bert_base
from mlstate import LocalStateStore, StateKey
from tests.servers.nginx import Nginx

SECONDS = 4
RATE = 500
OBJECTS = 10_000

KINDS = (
    ("hash", r"^update \(mlstate/digests"),
    ("copy into the model", r"^(copy|put|_copy_bytes) \(mlstate/tensors/put"),
    ("write", r"^(_write_block|write_all|write) \(mlstate/objects/(writing|partial)"),
    ("flush", r"^(_sync|sync_path) "),
    ("receive", r"^(readinto|recv_into|read) \((socket|ssl|mlstate/transport/connections)"),
    ("read", r"^(read_into|read_small|read_verified) "),
    (
        "open, map, name and look for files",
        r"^(_open_new|open|close|publish|reuse|_mapped|mapped_tensor|make_folders|mkdir|stat|size"
        r"|_names|_entries|digests|may_map|_file_system|scandir|listdir|seal) \(",
    ),
    ("torch", r"\(torch/"),
    ("HTTP", r"\((urllib3|http|requests|email)/"),
    ("mlstate's own Python", r"\(mlstate/"),
)
"""Kind of work -> what the innermost function looks like: its name and its file."""
_QUALIFIED = re.compile(r"^[^ ]*\.(?=[^ .]+ \()|:\d+(?=\)$)")
"""What a function is in, before its name; and the line, behind its file."""
BETWEEN = re.compile(r"^(clear|rmtree|drop_caches|turn_to) \(")
"""What is done between two runs of a job, and is none of it."""


def main() -> None:
    """Run each job in a process of its own, and look at it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--only", choices=sorted(JOBS), help="one of them")
    parser.add_argument("--job", choices=sorted(JOBS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        _be_looked_at(arguments.job)
        return
    figures = []
    for name in JOBS:
        if arguments.only in (None, name):
            shares = _look_at(name)
            rows = tuple(Figure(kind, 100 * share) for kind, share in shares.items())
            figures.append(show(Figures(name, "% of processor time", rows)))
    report(figures, arguments.json, keep=arguments.only is not None)


def _look_at(job: str) -> dict[str, float]:
    """Kind of work -> its share of the processor time of a job, the largest first."""
    command = [sys.executable, "-m", "benchmarks.profiles", "--job", job]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()  # it is ready
        seen = Path(folder) / "seen"
        spy = str(Path(sys.executable).with_name("py-spy"))
        looking = [spy, "record", "--pid", str(process.pid), "--nonblocking", "--output", str(seen)]
        options = ["--format", "raw", "--rate", str(RATE), "--duration", str(SECONDS)]
        watcher = subprocess.Popen(
            [*looking, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        process.stdin.write("go\n")
        process.stdin.flush()
        watcher.wait()
        process.stdin.close()
        process.wait()
        return _shares(seen.read_text())


def _shares(stacks: str) -> dict[str, float]:
    """The kinds of work of folded stacks: frames joined by semicolons, and their count."""
    counts: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_QUALIFIED.sub("", frame) for frame in stack.split(";")]
        if not any(map(BETWEEN.match, frames)):
            counts[_kind(frames[-1])] += int(count)
    total = sum(counts.values())
    return {kind: count / total for kind, count in counts.most_common()}


def _kind(frame: str) -> str:
    """What is being done, by the innermost function."""
    found = (kind for kind, pattern in KINDS if re.search(pattern, frame))
    return next(found, "other Python")


def _be_looked_at(name: str) -> None:
    """Run a job again and again, from when somebody looks until nobody does."""
    with tempfile.TemporaryDirectory() as folder, JOBS[name](Path(folder)) as run:
        run()
        print("ready", flush=True)
        sys.stdin.readline()
        until = time.monotonic() + SECONDS + 2  # py-spy needs a moment to begin
        while time.monotonic() < until:
            run()


# The jobs: each makes what it needs, and gives what is to be run.


@contextmanager
def _load(folder: Path, *, assign: bool = False) -> Iterator[Callable[[], object]]:
    model = bert_base()
    store = LocalStateStore(folder / "store")
    key = store.save(model, "seed0")
    yield lambda: store.load(model, key, assign=assign)


@contextmanager
def _load_cold(folder: Path) -> Iterator[Callable[[], object]]:
    with _load(folder) as run:

        def cold() -> None:
            drop_caches()
            run()

        yield cold


@contextmanager
def _save_new(folder: Path) -> Iterator[Callable[[], object]]:
    model = bert_base()

    def save() -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        LocalStateStore(folder / "store").save(model, "seed0")

    yield save


@contextmanager
def _save_without_flushing(folder: Path) -> Iterator[Callable[[], object]]:
    with _save_new(folder) as save, no_fsync():
        yield save


@contextmanager
def _save_same(folder: Path) -> Iterator[Callable[[], object]]:
    model, store = bert_base(), LocalStateStore(folder / "store")
    yield lambda: store.save(model, "seed0")


@contextmanager
def _fine_tunes(folder: Path) -> Iterator[tuple[LocalStateStore, Series]]:
    base = {name: value.detach() for name, value in bert_base().state_dict().items()}
    yield LocalStateStore(folder / "store"), Series(base, CHANGING["BERT-base"])


@contextmanager
def _add(folder: Path) -> Iterator[Callable[[], object]]:
    with _fine_tunes(folder) as (store, series):
        series.turn_to(0)
        store.save_state_dict(series.tensors, StateKey.parse("pytorch.bert.base"))
        number = 0

        def add() -> None:
            nonlocal number
            number += 1
            series.turn_to(number)
            store.save_state_dict(series.tensors, StateKey.parse(f"pytorch.bert.tune-{number}"))

        yield add


@contextmanager
def _restore(folder: Path) -> Iterator[Callable[[], object]]:
    with _fine_tunes(folder) as (store, series):
        series.turn_to(1)
        key = store.save_state_dict(series.tensors, StateKey.parse("pytorch.bert.tune"))
        yield lambda: store.load_state_dict(key)


@contextmanager
def _fetch(folder: Path, *, objects: bool) -> Iterator[Callable[[], object]]:
    (folder / "web").mkdir()
    bench = fetch.Bench(LocalStateStore(folder / "web"), folder / "out")
    tensors = fetch.bert_shaped()
    save_file(tensors, folder / "web" / fetch.FILE)
    bench.store.save_state_dict(tensors, fetch.BERT)
    with Nginx(folder / "web", latency=fetch.LATENCY) as nginx:
        base = nginx.url("", "far" if objects else "plain").rstrip("/")
        entry = bench.entry(
            fetch.BERT, base, **({} if objects else {"url": f"{base}/{fetch.FILE}"})
        )

        def run() -> None:
            bench.clear()
            bench.fetch(entry)

        yield run


@contextmanager
def _list(folder: Path) -> Iterator[Callable[[], object]]:
    store = LocalStateStore(folder / "store")
    keys = [StateKey(scale.ASKED, f"run-{number}") for number in range(10_000)]
    scale.write_states(store, keys)
    yield lambda: store.get_state_keys(scale.ASKED)


@contextmanager
def _prune(folder: Path) -> Iterator[Callable[[], object]]:
    scale.write_objects(folder / "store", OBJECTS)
    yield lambda: scale.prune(folder / "store")


@contextmanager
def _verify(folder: Path) -> Iterator[Callable[[], object]]:
    scale.write_objects(folder / "store", OBJECTS)
    yield lambda: scale.read_all(folder / "store")


JOBS: dict[str, Callable[[Path], AbstractContextManager[Callable[[], object]]]] = {
    "load, assign=True": partial(_load, assign=True),
    "load into the model": _load,
    "load into the model, cold": _load_cold,
    "save, new": _save_new,
    "save, new, no fsync": _save_without_flushing,
    "save, nothing changed": _save_same,
    "add a fine-tune": _add,
    "restore a fine-tune": _restore,
    "fetch a file of 438 MB": partial(_fetch, objects=False),
    "fetch 76 objects, 50 ms away": partial(_fetch, objects=True),
    "get_state_keys of 10,000": _list,
    f"prune(dry_run=True), {OBJECTS:,} objects": _prune,
    f"verify, {OBJECTS:,} objects": _verify,
}
"""What is looked at: BERT-base, where nothing else is said."""


if __name__ == "__main__":
    main()
