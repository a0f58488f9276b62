"""How often something is tried again, how long is waited in between, and how long in all."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

from mlstate.errors import TransportError

__all__ = ["PATIENCE", "TRANSIENT_STATUSES", "Attempts", "Patience", "Retries", "retried"]

TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What a server answers that may do the same a little later."""
LONGEST = 120.0  # seconds, whatever a server asks for
SLICE = 0.1  # seconds of sleep between looks at whether to stop
PATIENCE = 600.0
"""The seconds within which a server must give what it gives at the least speed."""
LOW_SPEED = 1024.0
"""The least speed, in bytes a second."""
_LONGEST_READ = 90.0
"""What one read counts at most, in seconds. Timeouts end each earlier; not so if a person stopped
the program for an hour, which is not the server's fault."""

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
        elsewhere: Whether another server may have the same: one that cannot be reached, and has
            given nothing yet, is then not tried again.
    """

    attempts: int = 5
    first: float = 0.5
    most: float = 30.0
    enough: int = 1 << 16
    elsewhere: bool = False

    def delay(self, failures: int, retry_after: float | None = None) -> float:
        """The seconds to wait after so many failures in a row."""
        jittered = random.uniform(0, min(self.most, self.first * 2.0 ** min(failures - 1, 60)))
        if retry_after is None:
            return jittered
        return min(retry_after, LONGEST) + jittered


class Patience:
    """How long one server is waited for, over all attempts, streams and waits together.

    A server that gives a little and then asks for a pause, again and again, is never slow in any
    single reply. So within each span of so many seconds that are spent waiting for it, it must
    give as many bytes as the least speed brings in that time; pauses count, and what the program
    does for itself does not. One that is faster than that is never given up. Used by many threads.

    Args:
        seconds: The length of a span.
        low_speed: The least speed, in bytes a second.
        clock: Tells the time, in seconds.
    """

    def __init__(
        self,
        seconds: float = PATIENCE,
        low_speed: float = LOW_SPEED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._seconds = seconds
        self._low_speed = low_speed
        self._lock = Lock()
        self._counted = clock()  # the time up to this moment is counted
        self._waited = self._all_waited = 0.0
        self._came = self._all_came = 0

    @property
    def gave(self) -> bool:
        """Whether anything has come from the server."""
        return self._all_came > 0

    def waited(self, since: float) -> None:
        """Count the time since a moment of the clock as spent waiting, once for all threads."""
        with self._lock:
            now = self.clock()
            spent = min(max(0.0, now - max(since, self._counted)), _LONGEST_READ)
            self._counted = max(self._counted, now)
            self._waited += spent
            self._all_waited += spent

    def came(self, size: int) -> None:
        """Count bytes that came.

        Raises:
            TransportError: These were too few for the time that they took.
        """
        with self._lock:
            self._came += size
            self._all_came += size
            if self._came >= self._low_speed * self._seconds:
                self._came, self._waited = 0, 0.0
            elif self._waited > self._seconds:
                raise self._error("this server is too slow, its pauses included")

    def check_pause(self, seconds: float, error: TransportError) -> None:
        """Refuse a pause, after an error, that is longer than the time that is left.

        Raises:
            TransportError: It is; the error says what came in how long.
        """
        with self._lock:
            if self._waited + seconds > self._seconds:
                said = f"{error.message}, and it is not waited for any longer"
                refused = self._error(said)
                said_before = f"{error.found}; " if error.found else ""
                refused.found = f"{said_before}{refused.found}"
                refused.status, refused.path = error.status, error.path
                raise refused from None

    def _error(self, message: str) -> TransportError:
        return TransportError(
            message,
            expected=f"{self._low_speed:g} bytes a second, over {self._seconds:g} seconds",
            found=f"{self._all_came} bytes in {self._all_waited:.0f} seconds",
            remedy="if that is worth waiting for, set MLSTATE_PATIENCE to more seconds, or "
            "MLSTATE_LOW_SPEED to fewer bytes a second",
        )


class Attempts:
    """Counts the failures in a row, and waits after each.

    Args:
        retries: How often and how long.
        stop: Asked while waiting: once it is true, the error is raised instead.
        sleep: Waits for so many seconds.
        patience: How long the server is waited for in all; shared by all that read from it.
    """

    def __init__(
        self,
        retries: Retries,
        stop: Callable[[], bool] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        patience: Patience | None = None,
    ) -> None:
        self._retries = retries
        self._patience = Patience() if patience is None else patience
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
            TransportError: What it raised last: it was not worth it, or came too often. Or the
                server is not waited for any longer.
        """
        while True:
            began = self._patience.clock()
            try:
                result = call()
            except TransportError as error:
                self._patience.waited(began)
                tidy()
                self._failures += 1
                if not worth_it(error) or self._failures >= self._retries.attempts:
                    raise
                if self._retries.elsewhere and error.unreachable and not self._patience.gave:
                    raise
                delay = self._retries.delay(self._failures, error.retry_after)
                self._patience.check_pause(delay, error)
                if not self._wait(delay):
                    raise
            else:
                self._patience.waited(began)
                return result

    def progress(self, size: int) -> None:
        """Count bytes that came: when they are enough, the count of failures begins anew.

        Raises:
            TransportError: The server is too slow on the whole; see `Patience`.
        """
        self._patience.came(size)
        self._came += size
        if self._came >= self._retries.enough:
            self._failures = self._came = 0

    def _wait(self, left: float) -> bool:
        """Wait for so many seconds; False if there is to be no other attempt."""
        while not self._stop():
            if left <= 0:
                return True
            began = self._patience.clock()
            self._sleep(min(left, SLICE))
            self._patience.waited(began)
            left -= SLICE
        return False


def retried(
    call: Callable[[], _T],
    retries: Retries,
    stop: Callable[[], bool] | None = None,
    *,
    sleep: Callable[[float], None] = time.sleep,
    worth_it: Callable[[TransportError], bool] = lambda error: error.transient,
    patience: Patience | None = None,
) -> _T:
    """Call something until it works; see `Attempts`."""
    attempts = Attempts(retries, stop, sleep, patience)
    return attempts.until_it_works(call, worth_it=worth_it)
