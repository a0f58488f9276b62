"""``make torture``: all attacks by turns, for an hour or TORTURE_MINUTES, with seeds that grow."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from tests.torture.parts import PARTS, Bench, MissingError
from tests.torture.states import LostStateError, WrongBytesError

SLICE = 20.0
"""Seconds of each part in a turn."""
_ALWAYS = (
    "kills",
    "power cuts",
    "injected errors",
    "wrong bytes loaded",
    "states lost",
    "failures",
)


def _seed_of(turn: int, part: str) -> int:
    return random.Random(f"{turn} {part}").randrange(1 << 30)


def _kind(error: BaseException) -> str:
    """What an error says: a lost state, wrong bytes, or another failure."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, WrongBytesError):
            return "wrong bytes loaded"
        if isinstance(cause, LostStateError):
            return "states lost"
        cause = cause.__cause__
    return "failures"


def _table(figures: Counter[str]) -> str:
    width = max(map(len, figures))
    return "\n".join(f"{name:{width}}  {figures[name]:>12,}" for name in sorted(figures))


def _turn(bench: Bench, turn: int, end: float, skipped: dict[str, str]) -> list[str]:
    """One turn of all parts; returns what failed."""
    failed = []
    for name, part in PARTS.items():
        left = end - time.monotonic()
        if left <= 0 or name in skipped:
            continue
        seed = _seed_of(turn, name)
        try:
            part(bench, seed, min(SLICE, left))
        except MissingError as missing:
            skipped[name] = str(missing)
        except Exception as error:
            bench.figures[_kind(error)] += 1
            failed.append(f"{name}, turn {turn}, seed {seed}: {error}")
            traceback.print_exc()
    return failed


def main() -> int:
    """Attack, print the figures, and return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--turn", type=int, default=0, help="the turn to begin with")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), help="these parts alone")
    given = parser.parse_args()
    for name in set(PARTS) - set(given.only or PARTS):
        del PARTS[name]
    warnings.simplefilter("ignore")
    minutes = float(os.environ.get("TORTURE_MINUTES", "60"))
    begun, turn, failed = time.monotonic(), given.turn, list[str]()
    skipped: dict[str, str] = {}
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
    figures = Counter(dict.fromkeys(_ALWAYS, 0))
    try:
        with Bench(folder, figures) as bench:
            while time.monotonic() - begun < minutes * 60:
                failed += _turn(bench, turn, begun + minutes * 60, skipped)
                turn += 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures["seconds"], figures["turns"] = int(time.monotonic() - begun), turn - given.turn
    print(_table(figures))
    for name, why in skipped.items():
        print(f"left out: {name}: {why}")
    for one in failed:
        print(f"FAILED: {one[:2000]}")
    if given.json:
        said = {"figures": figures, "left out": skipped, "failed": failed}
        given.json.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
