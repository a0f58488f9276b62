"""A process that is warm, under the shim, and forks: each child runs one operation with a fault.

Importing all that an operation needs takes longer than the operation; a fork takes milliseconds.
`Server` is the side of the tests; ``python -m tests.torture.server`` is the other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlstate.errors import MlstateError
from tests.torture.shim import Fault, Page, arm, disarm

__all__ = ["NOTHING", "Outcome", "Server"]

NOTHING = Fault("nothing")
_PATIENCE = 120


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        count: The changing calls that it made.
        hits: How many of them got a fault; ``call`` and ``path`` are those of the first.
        killed: Whether it was killed.
        error: The type of the error that it ended with, "" if it ended well.
        errno: Of an OSError.
        typed: Whether the error is one of mlstate, or the system's.
        text: The error in full.
        result: What the operation returned.
    """

    count: int
    hits: int
    call: str
    path: str
    killed: bool
    error: str = ""
    errno: int | None = None
    typed: bool = True
    text: str = ""
    result: object = None


class Server:
    """The warm process; for one caller at a time."""

    def __init__(self, shim: Path) -> None:
        environment = {**os.environ, "LD_PRELOAD": str(shim), "MLSTATE_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env=environment,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the process under the shim does not start")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def run(
        self,
        operation: str,
        root: Path,
        *,
        at: int = 0,
        fault: Fault = NOTHING,
        log: Path | None = None,
    ) -> Outcome:
        """Run an operation in a child, with a fault at a call; 0 is none."""
        asked = {
            "operation": operation,
            "root": str(root),
            "at": at,
            "fault": fault.as_json(),
            "log": None if log is None else str(log),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


def _child(asked: Mapping[str, object], page: Page, pipe: int) -> None:
    from tests.torture.operations import OPERATIONS

    signal.alarm(_PATIENCE)  # what hangs is killed, and told apart by its signal
    root = Path(str(asked["root"]))
    log = -1
    if asked["log"]:
        log = os.open(str(asked["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    answer: dict[str, object] = {}
    fault = Fault(**asked["fault"])  # type: ignore[arg-type]
    arm(root, int(str(asked["at"])), fault, page, log)
    try:
        answer["result"] = repr(OPERATIONS[str(asked["operation"])].run(root))
    except BaseException as error:
        answer["error"] = type(error).__name__
        answer["errno"] = getattr(error, "errno", None)
        answer["typed"] = isinstance(error, MlstateError | OSError)
        answer["text"] = traceback.format_exc()[-4000:]
    disarm()
    os.write(pipe, json.dumps(answer, default=str).encode()[: 1 << 16])
    os._exit(0)


def _serve() -> None:
    from tests.torture.operations import warm_up

    warnings.simplefilter("ignore")
    os.environ.pop("LD_PRELOAD")
    warm_up()
    assert threading.active_count() == 1, threading.enumerate()
    print("ready", flush=True)
    for line in sys.stdin:
        page = Page()
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            _child(json.loads(line), page, writing)
        os.close(writing)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        answer = {**page.read(), "killed": killed, **(json.loads(said) if said else {})}
        if not said and not killed:
            answer |= {"error": "Died", "typed": False, "text": f"status {status}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
