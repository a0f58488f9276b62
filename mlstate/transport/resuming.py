"""Resources that outlast transient errors: their streams go on from where they broke."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from mlstate import settings
from mlstate.errors import NoRangesError, TransportError
from mlstate.retries import Attempts, Patience, Retries
from mlstate.transport.interface import Resource, Stream

__all__ = ["retrying"]

CHUNK = 1 << 20  # read at once of what is skipped


def retrying(
    resource: Resource,
    retries: Retries,
    stop: Callable[[], bool] | None = None,
    *,
    sleep: Callable[[float], None] = time.sleep,
    patience: Patience | None = None,
) -> Resource:
    """A resource that outlasts transient errors; for the other arguments see `Attempts`.

    Without ``patience``, all that is read from this resource has one as the settings say.
    """
    shared = Patience(settings.patience(), settings.low_speed()) if patience is None else patience
    return _RetryingResource(resource, lambda: Attempts(retries, stop, sleep, shared))


class _RetryingResource:
    def __init__(self, resource: Resource, begin: Callable[[], Attempts]) -> None:
        self._resource = resource
        self._begin = begin

    def __repr__(self) -> str:
        return f"retrying({self._resource!r})"

    @property
    def address(self) -> str:
        return self._resource.address

    def size(self) -> int | None:
        return self._begin().until_it_works(self._resource.size)

    @contextmanager
    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Stream]:
        stream = _RetryingStream(self._resource, start, stop, self._begin())
        with stream.closing:
            yield stream


class _RetryingStream(Stream):
    def __init__(
        self, resource: Resource, start: int, stop: int | None, attempts: Attempts
    ) -> None:
        self.closing = ExitStack()
        self._resource = resource
        self._start = start
        self._stop = stop
        self._attempts = attempts
        self._given = 0  # bytes
        self._stream: Stream | None = attempts.until_it_works(lambda: self._open(start))
        self.length = self._stream.length
        self.total = self._stream.total

    def readinto(self, buffer: memoryview) -> int:
        # A broken connection is closed before the wait: nobody has use of it.
        count = self._attempts.until_it_works(lambda: self._next(buffer), tidy=self._break_off)
        if count:
            try:
                self._attempts.progress(count)
            except TransportError as error:
                error.path = error.path or self._resource.address
                raise
            self._given += count
        return count

    def _next(self, buffer: memoryview) -> int:
        if self._stream is None:
            if self._given == self.length:  # it broke after the last byte
                return 0
            self._stream = self._resumed()
        return self._stream.readinto(buffer)

    def _break_off(self) -> None:
        self._stream = None
        self.closing.close()

    def _open(self, start: int) -> Stream:
        return self.closing.enter_context(self._resource.read(start, self._stop))

    def _resumed(self) -> Stream:
        try:
            stream = self._open(self._start + self._given)
            left = None if self.length is None else self.length - self._given
            self._check_length(stream, left)
        except NoRangesError:
            if self._start or self._stop is not None:
                raise
            stream = self._open(0)
            self._check_length(stream, self.length)
            skip = self._given
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
