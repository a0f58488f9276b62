"""One input for one target: what may happen, and what may not."""

from __future__ import annotations

import pickle
import resource
import signal
import warnings
from types import FrameType

from mlstate.errors import MlstateError
from tests.torture.fuzz.targets import TARGETS

__all__ = ["Rules", "try_input"]

SECONDS = 10
MEMORY = 512 << 20
_SHOWN = 100_000
"""The most characters of an error."""


class Rules:
    """Limits of this process: set once, before the first input."""

    def __init__(self) -> None:
        warnings.simplefilter("ignore")
        self._most = _peak() + MEMORY
        signal.signal(signal.SIGALRM, _late)
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        # Twice of it: what asks for much more at once fails at once, and says where.
        resource.setrlimit(resource.RLIMIT_AS, (now + 2 * MEMORY, resource.RLIM_INFINITY))

    def check(self) -> None:
        """An AssertionError if the memory of this process was ever too much."""
        assert _peak() <= self._most, f"more than {MEMORY >> 20} MiB of memory"


def _check_error(error: MlstateError) -> None:
    """An error can be shown, and sent to another process."""
    said = str(error)
    assert len(said) < _SHOWN, f"an error of {len(said)} characters"
    assert str(pickle.loads(pickle.dumps(error))) == said


def _peak() -> int:
    """The most memory that this program had; that of getrusage may be its parent's."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:"))


def _late(number: int, frame: FrameType | None) -> None:
    raise AssertionError(f"more than {SECONDS} s")


def try_input(target: str, data: bytes, rules: Rules) -> bool:
    """Give an input to a target; says whether it was refused.

    Any exception but one of mlstate goes through, as do broken rules, as an AssertionError.
    """
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        TARGETS[target](data)
    except MlstateError as error:
        _check_error(error)
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        rules.check()
    return False
