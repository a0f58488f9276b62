"""Fault injection: each operation, with each fault at each call that changes something."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.torture.operations import OPERATIONS, Operation
from tests.torture.server import Outcome, Server
from tests.torture.shim import Fault

__all__ = ["attack", "calls_of", "cases"]


def _run(server: Server, name: str, root: Path, at: int, fault: Fault) -> Outcome:
    OPERATIONS[name].prepare(root)
    return server.run(name, root, at=at, fault=fault)


def calls_of(server: Server, name: str, folder: Path) -> int:
    """How many changing calls an operation makes."""
    root = Path(tempfile.mkdtemp(dir=folder))
    try:
        outcome = _run(server, name, root, 0, Fault("nothing"))
        assert not outcome.error, outcome.text
        return outcome.count
    finally:
        shutil.rmtree(root)


def cases(
    count: int, faults: Iterable[Fault], start: int, step: int
) -> Iterator[tuple[int, Fault]]:
    """Every so many cases of calls and faults, from the first of a round on."""
    every = [(at, fault) for fault in faults for at in range(1, count + 1)]
    return iter(every[start % max(1, step) :: max(1, step)])


def attack(
    server: Server, name: str, at: int, fault: Fault, *, folder: Path, figures: Counter[str]
) -> Outcome:
    """Run an operation with one fault, and check all that is promised; an AssertionError if not."""
    operation: Operation = OPERATIONS[name]
    root = Path(tempfile.mkdtemp(dir=folder))
    try:
        outcome = _run(server, name, root, at, fault)
        if outcome.hits:
            figures["kills" if fault.kind.startswith("kill") else "injected errors"] += 1
        assert outcome.typed, f"no typed error: {outcome.text}"
        assert outcome.killed == (fault.kind.startswith("kill") and outcome.hits > 0), outcome
        if fault.kind == "short":
            assert not outcome.error, f"a short write is no error: {outcome.text}"
        if outcome.error or outcome.killed:
            operation.check_any(root)
        else:
            operation.check_done(root)
        operation.run(root)  # and again, by another process: all is well
        operation.check_done(root)
        operation.check_swept(root)
        return outcome
    except Exception as error:
        where = f"{name}, {fault} at call {at}"
        raise AssertionError(f"{where} ({outcome.call} {outcome.path}): {error}") from error
    finally:
        shutil.rmtree(root)
