"""Patience: what is worth trying again is tried again, after a while, from where it broke."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from mlstate.errors import NoRangesError, TransportError
from mlstate.transport.interface import BaseStream, Resource, Stream

__all__ = ["Retries", "retried", "retrying"]

LONGEST = 120.0  # seconds, whatever a server asks for
CHUNK = 1 << 20  # read at once of what is skipped
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

    def delay(self, failures: int, retry_after: float | None) -> float:
        """The seconds to wait after so many failures in a row."""
        jittered = random.uniform(0, min(self.most, self.first * 2.0 ** min(failures - 1, 60)))
        if retry_after is None:
            return jittered
        return min(retry_after, LONGEST) + jittered


class _Patience:
    """Counts the failures in a row, and waits."""

    def __init__(
        self,
        retries: Retries,
        stop: Callable[[], bool] | None,
        sleep: Callable[[float], None],
    ) -> None:
        self._retries = retries
        self._stop = stop
        self._sleep = sleep
        self._failures = 0
        self._came = 0  # bytes since the count began

    def outlast(self, call: Callable[[], _T], tidy: Callable[[], None] | None = None) -> _T:
        """Call until it works; after a failure tidy up before the wait."""
        while True:
            try:
                return call()
            except TransportError as error:
                if tidy is not None:
                    tidy()
                self._wait(error)

    def progress(self, size: int) -> None:
        self._came += size
        if self._came >= self._retries.enough:
            self._failures = self._came = 0

    def _wait(self, error: TransportError) -> None:
        """Wait until the next attempt; raises the error if there is to be none."""
        self._failures += 1
        if not error.transient or self._failures >= self._retries.attempts:
            raise error
        left = self._retries.delay(self._failures, error.retry_after)
        while not self._stopped():
            if left <= 0:
                return
            self._sleep(min(left, SLICE))
            left -= SLICE
        raise error

    def _stopped(self) -> bool:
        return self._stop is not None and self._stop()


def retried(
    call: Callable[[], _T],
    retries: Retries,
    stop: Callable[[], bool] | None = None,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> _T:
    """Call something until it works.

    Raises:
        TransportError: What it raised last: it was not transient, or came too often.
    """
    return _Patience(retries, stop, sleep).outlast(call)


def retrying(
    resource: Resource,
    retries: Retries,
    stop: Callable[[], bool] | None = None,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> Resource:
    """A resource that outlasts transient errors; its streams go on where they broke.

    Args:
        resource: What to read.
        retries: How often and how long.
        stop: Asked while waiting: once it is true, the error is raised instead.
        sleep: Waits for so many seconds.
    """
    return _RetryingResource(resource, lambda: _Patience(retries, stop, sleep))


class _RetryingResource:
    def __init__(self, resource: Resource, patience: Callable[[], _Patience]) -> None:
        self._resource = resource
        self._patience = patience

    def __repr__(self) -> str:
        return f"retrying({self._resource!r})"

    @property
    def address(self) -> str:
        return self._resource.address

    def size(self) -> int | None:
        return self._patience().outlast(self._resource.size)

    @contextmanager
    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Stream]:
        stream = _RetryingStream(self._resource, start, stop, self._patience())
        with stream.closing:
            yield stream


class _RetryingStream(BaseStream):
    def __init__(
        self, resource: Resource, start: int, stop: int | None, patience: _Patience
    ) -> None:
        self.closing = ExitStack()
        self._resource = resource
        self._start = start
        self._stop = stop
        self._patience = patience
        self._done = 0  # bytes given
        self._stream: Stream | None = patience.outlast(lambda: self._open(start))
        self.length = self._stream.length
        self.total = self._stream.total

    def readinto(self, buffer: memoryview) -> int:
        count = self._patience.outlast(lambda: self._next(buffer), self._break_off)
        if count:
            self._patience.progress(count)
            self._done += count
        return count

    def _next(self, buffer: memoryview) -> int:
        if self._stream is None:
            if self._done == self.length:  # it broke after the last byte
                return 0
            self._stream = self._resumed()
        return self._stream.readinto(buffer)

    def _break_off(self) -> None:
        self._stream = None
        self.closing.close()  # before the wait: nobody has use of a broken connection

    def _open(self, start: int) -> Stream:
        return self.closing.enter_context(self._resource.read(start, self._stop))

    def _resumed(self) -> Stream:
        try:
            stream = self._open(self._start + self._done)
            left = None if self.length is None else self.length - self._done
            self._check_length(stream, left)
        except NoRangesError:
            if self._start or self._stop is not None:
                raise
            stream = self._open(0)
            self._check_length(stream, self.length)
            skip = self._done
            while skip:
                data = stream.read(min(skip, CHUNK))
                if not data:
                    raise self._changed() from None
                skip -= len(data)
        return stream

    def _check_length(self, stream: Stream, expected: int | None) -> None:
        if None not in (expected, stream.length) and stream.length != expected:
            raise self._changed()

    def _changed(self) -> TransportError:
        return TransportError("the file changed while it was read", path=self._resource.address)
