"""The parts of the long run: each attacks for some seconds, by a seed, and counts what it did."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from tests.servers.ports import MissingProgramError
from tests.servers.s3 import S3Server
from tests.torture import buckets, cuts, disks, faults, full, lies, races, rot
from tests.torture.fuzz.targets import TARGETS
from tests.torture.operations import OPERATIONS
from tests.torture.server import Server
from tests.torture.shim import FAULTS, NoCompilerError, build
from tests.torture.soak import soak

__all__ = ["PARTS", "Bench", "MissingError"]

_HERE = Path(__file__).parents[2]
_PATHS = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


class MissingError(Exception):
    """A part cannot run on this machine; the text says why."""


class Bench:
    """What the parts share: a folder in memory, the figures, and servers that are started once."""

    def __init__(self, folder: Path, figures: Counter[str]) -> None:
        self.folder, self.figures = folder, figures
        self._stack = ExitStack()
        self._server: Server | None = None
        self._buckets: dict[str, S3Server] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def server(self) -> Server:
        """The process under the shim."""
        if self._server is None:
            try:
                self._server = self._stack.enter_context(Server(build(self.folder)))
            except NoCompilerError as missing:
                raise MissingError(str(missing)) from None
        return self._server

    def buckets(self, kind: str) -> S3Server:
        """A server that speaks S3: moto or ceph."""
        from tests.servers.ceph import Ceph
        from tests.servers.moto import Moto

        if kind not in self._buckets:
            try:
                made = {"moto": Moto, "ceph": Ceph}[kind]()
            except MissingProgramError as missing:
                raise MissingError(str(missing)) from None
            self._buckets[kind] = self._stack.enter_context(made)
        return self._buckets[kind]

    def own(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for one attack, in memory."""
        return tempfile.TemporaryDirectory(dir=self.folder)


def _until(seconds: float) -> Iterator[int]:
    """Numbers for a time, at least one."""
    end, number = time.monotonic() + seconds, 0
    while not number or time.monotonic() < end:
        yield number
        number += 1


def inject(bench: Bench, seed: int, seconds: float) -> None:
    """Errors, short writes and kills at system calls."""
    chance = random.Random(seed)
    counts: dict[str, int] = {}
    for _ in _until(seconds):
        name = chance.choice([*OPERATIONS])
        if name not in counts:
            counts[name] = faults.calls_of(bench.server, name, bench.folder)
        if counts[name]:
            at, fault = chance.randint(1, counts[name]), chance.choice(FAULTS)
            faults.attack(bench.server, name, at, fault, folder=bench.folder, figures=bench.figures)


def cut(bench: Bench, seed: int, seconds: float) -> None:
    """Power cuts, replayed."""
    chance = random.Random(seed)
    for _ in _until(seconds):
        name = chance.choice([cuts.HISTORY, *OPERATIONS])
        recorded = cuts.record(bench.server, name, bench.folder)
        count = len(recorded.steps)
        moments = sorted({count, *(chance.randint(0, count) for _ in range(30))})
        with bench.own() as folder:
            cuts_seed = chance.randrange(1 << 30)
            cuts.cuts_of(recorded, moments, cuts_seed, Path(folder), bench.figures)


def cut_disks(bench: Bench, seed: int, seconds: float) -> None:
    """Power cuts of file systems on loop devices."""
    kinds = [*disks.KINDS]
    for number in _until(seconds):
        with tempfile.TemporaryDirectory() as folder:
            try:
                kind = kinds[(seed + number) % len(kinds)]
                disks.power_cut(kind, seed + number, Path(folder), bench.figures)
            except disks.NoDiskError as missing:
                raise MissingError(str(missing)) from None


def fill(bench: Bench, seed: int, seconds: float) -> None:
    """Full disks."""
    chance = random.Random(seed)
    for number in _until(seconds):
        name = chance.choice([*OPERATIONS])
        try:
            full.attack(name, seed + number, bench.folder, bench.figures)
        except disks.NoDiskError as missing:
            raise MissingError(str(missing)) from None


def race(bench: Bench, seed: int, seconds: float) -> None:
    """Races on a store and on a cache."""
    for run in (races.race_on_store, races.race_on_cache):
        with bench.own() as folder:
            run(seed, seconds / 2, Path(folder), bench.figures)


def damage(bench: Bench, seed: int, seconds: float) -> None:
    """Rot."""
    for number in _until(seconds):
        rot.attack(seed + number, bench.folder, bench.figures)


def lie(bench: Bench, seed: int, seconds: float) -> None:
    """Lying servers."""
    for number in _until(seconds):
        lies.attack(seed + number, bench.folder, bench.figures)


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"tests.torture.fuzz.{module}", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=_HERE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_HERE), *_PATHS])},
    )


def fuzz(bench: Bench, seed: int, seconds: float) -> None:
    """Fuzzing by chance."""
    failures = str(_HERE / "fuzz-failures")
    arguments = ("--seed", str(seed), "--seconds", str(seconds), "--failures", failures)
    done = _run("mutate", *arguments)
    assert done.stdout, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    bench.figures["fuzzed inputs"] += sum(one["inputs"] for one in said["targets"].values())
    assert not said["failed"], done.stderr[:4000]


def fuzz_guided(bench: Bench, seed: int, seconds: float) -> None:
    """Fuzzing by atheris, of one target after the other."""
    if find_spec("atheris") is None:
        raise MissingError("atheris is not installed (pip install 'mlstate[torture]')")
    target = [*TARGETS][seed % len(TARGETS)]
    found = bench.folder / "found" / target
    found.mkdir(parents=True, exist_ok=True)
    done = _run("guided", target, str(int(max(5, seconds))), str(found))
    if match := re.search(r"number_of_executed_units: (\d+)", done.stderr):
        bench.figures["inputs of guided fuzzing"] += int(match[1])
    assert done.returncode == 0, f"{target}: {done.stderr[-4000:]}"


def soaking(bench: Bench, seed: int, seconds: float) -> None:
    """Soak."""
    soak(seconds, bench.figures)


def kill_at_requests(kind: str) -> Callable[[Bench, int, float], None]:
    """Kills at requests to buckets of a kind."""

    def run(bench: Bench, seed: int, seconds: float) -> None:
        server, chance = bench.buckets(kind), random.Random(seed)
        for _ in _until(seconds):
            name, at = chance.choice([*buckets.OPERATIONS]), chance.randint(1, 8)
            buckets.attack(server, name, at, chance.random() < 0.5, bench.figures)

    return run


PARTS: dict[str, Callable[[Bench, int, float], None]] = {
    "faults at system calls": inject,
    "power cuts": cut,
    "power cuts of file systems": cut_disks,
    "full disks": fill,
    "races": race,
    "rot": damage,
    "lying servers": lie,
    "fuzz": fuzz,
    "guided fuzz": fuzz_guided,
    "soak": soaking,
    "kills at requests to moto": kill_at_requests("moto"),
    "kills at requests to ceph": kill_at_requests("ceph"),
}
"""The parts, by their names."""
