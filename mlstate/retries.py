"""How often something is tried again, and how long is waited in between."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mlstate.errors import TransportError

__all__ = ["TRANSIENT_STATUSES", "Attempts", "Retries", "retried"]

TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What a server answers that may do the same a little later."""
LONGEST = 120.0  # seconds, whatever a server asks for
SLICE = 0.1  # seconds of sleep between looks at whether to stop

_T = TypeVar("_T")


@dataclass(frozen=True)
class Retries:
    """How often to try, and how long to wait in between.

    The wait is a random part of a time that doubles each time, so that many who were refused
    together do not come back together.

    Attributes:
        attempts: How many in all, as long as next to nothing comes.
        first: The most seconds to wait after the first.
        most: The most seconds to wait after any.
        enough: The bytes that must have come for the count to begin anew. Fewer, again and again,
            are what a server gives that is as good as dead: it would be asked for ever.
    """

    attempts: int = 5
    first: float = 0.5
    most: float = 30.0
    enough: int = 1 << 16

    def delay(self, failures: int, retry_after: float | None = None) -> float:
        """The seconds to wait after so many failures in a row."""
        jittered = random.uniform(0, min(self.most, self.first * 2.0 ** min(failures - 1, 60)))
        if retry_after is None:
            return jittered
        return min(retry_after, LONGEST) + jittered


class Attempts:
    """Counts the failures in a row, and waits after each.

    Args:
        retries: How often and how long.
        stop: Asked while waiting: once it is true, the error is raised instead.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        retries: Retries,
        stop: Callable[[], bool] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._retries = retries
        self._stop: Callable[[], bool] = stop or (lambda: False)
        self._sleep = sleep
        self._failures = 0
        self._came = 0  # bytes since the count began

    def until_it_works(
        self,
        call: Callable[[], _T],
        *,
        tidy: Callable[[], None] = lambda: None,
        worth_it: Callable[[TransportError], bool] = lambda error: error.transient,
    ) -> _T:
        """Call until it works; ``tidy`` is called before each wait.

        Raises:
            TransportError: What it raised last: it was not worth it, or came too often.
        """
        while True:
            try:
                return call()
            except TransportError as error:
                tidy()
                self._failures += 1
                if not worth_it(error) or self._failures >= self._retries.attempts:
                    raise
                if not self._wait(self._retries.delay(self._failures, error.retry_after)):
                    raise

    def progress(self, size: int) -> None:
        """Count bytes that came: when they are enough, the count of failures begins anew."""
        self._came += size
        if self._came >= self._retries.enough:
            self._failures = self._came = 0

    def _wait(self, left: float) -> bool:
        """Wait for so many seconds; False if there is to be no other attempt."""
        while not self._stop():
            if left <= 0:
                return True
            self._sleep(min(left, SLICE))
            left -= SLICE
        return False


def retried(
    call: Callable[[], _T],
    retries: Retries,
    stop: Callable[[], bool] | None = None,
    *,
    sleep: Callable[[float], None] = time.sleep,
    worth_it: Callable[[TransportError], bool] = lambda error: error.transient,
) -> _T:
    """Call something until it works; see `Attempts`."""
    return Attempts(retries, stop, sleep).until_it_works(call, worth_it=worth_it)
