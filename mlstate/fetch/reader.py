"""Reading streams: many requests at once, each stream into the pieces that want it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import TypeVar

from mlstate.digests import Bytes
from mlstate.errors import IntegrityError, TransportError
from mlstate.fetch.plan import Piece, Take
from mlstate.fetch.progress import Meter
from mlstate.objects.partial import SEGMENT
from mlstate.parallel import for_each
from mlstate.transport import Patience, Resource, Retries, Stream, retried, retrying

__all__ = ["CHUNK", "LONGEST", "Reader", "StreamLimit", "read_exactly"]

_FEW = 4
"""So many streams bring all that two cores can hash and write (docs/performance.md)."""
_LOOK = 0.01
"""The seconds between looks at how much came."""
_FAST = 2e8
"""Bytes a second. A network that brings fewer is what is waited for, not this machine."""
_REQUEST = 400_000
"""For so many bytes a request counts: it keeps this machine busy for as long."""


class StreamLimit:
    """Limits how many streams read at once, where the network is faster than this machine.

    More streams would only wait for each other there. As often as little came for a moment, twice
    as many may read, and never fewer again. Each reads within the limit: ``with limit: ...``.
    """

    def __init__(self, connections: int, meter: Meter) -> None:
        self._meter = meter
        self._free: SimpleQueue[None] = SimpleQueue()  # Ctrl-C within `put` leaves it usable
        self._given, self._held_back = 0, connections
        self._ended = 0  # about: threads add to it without a lock
        self._give(_FEW)

    def _give(self, more: int) -> None:
        for _ in range(min(more, self._held_back)):
            self._held_back -= 1
            self._given += 1
            self._free.put(None)

    def give_all(self) -> None:
        """Let all streams read."""
        self._give(self._held_back)

    def watch(self, work: threading.Thread) -> None:
        """Watch what comes, until the work ends or all streams may read."""
        done = self._done()
        while self._held_back and work.is_alive():
            work.join(_LOOK)
            before, done = done, self._done()
            if done - before < _FAST * _LOOK:
                self._give(self._given)

    def _done(self) -> int:
        return self._meter.done + self._ended * _REQUEST

    def __enter__(self) -> None:
        self._free.get()

    def __exit__(self, *error: object) -> None:
        self._ended += 1
        self._free.put(None)


_T = TypeVar("_T")

CHUNK = 1 << 20
"""The most bytes of a stream that are in memory at once, for each connection."""

LONGEST = 64 << 20
"""The most bytes of a large object that one request asks for."""
_SHARES = 4
"""A request asks for at most one part of so many of what is left for each stream."""
_MOMENT = 0.25
"""The seconds in which all streams together bring what one request asks for: so 64 MiB are asked
for from 270 MB/s on, and 16 MiB below 70."""
_PATIENCE = 1.0
_GATHER = 0.1
"""The seconds after which what has come is passed on, be it ever so little."""


class Reader:
    """Reads streams of one mirror, so many at once, and ends them all when one fails."""

    def __init__(
        self, retries: Retries, meter: Meter, connections: int, patience: Patience | None = None
    ) -> None:
        self._retries = retries
        self._patience = Patience() if patience is None else patience
        self._connections = connections
        self._stopped = threading.Event()
        self._own = threading.local()
        self.meter = meter

    def span(self) -> int:
        """How many bytes of a large object one request asks for now.

        More where the network is fast, since each request takes its time (and its price), as long
        as so much is left that all streams have enough to do.
        """
        left = (self.meter.total or 0) - self.meter.done
        share = left // (_SHARES * self._connections)
        return int(max(SEGMENT, min(LONGEST, share, self.meter.rate * _MOMENT)))

    def patient(self, resource: Resource) -> Resource:
        """The resource, reading which is tried again after passing failures."""
        return retrying(resource, self._retries, self._stopped.is_set, patience=self._patience)

    def patiently(self, call: Callable[[], _T]) -> _T:
        """The result of a call, which is tried again after passing failures."""
        return retried(call, self._retries, self._stopped.is_set, patience=self._patience)

    def read_run(self, resource: Resource, run: Sequence[Piece[Take]]) -> None:
        """Read one range into its pieces; a NoRangesError if the server gives the whole only."""
        start, stop = run[0].start, run[-1].stop
        with resource.read(start, stop) as stream:
            self.feed(stream, start, run)

    def feed(self, stream: Stream, position: int, pieces: Iterable[Piece[Take]]) -> None:
        """Give pieces their bytes, in order, from a stream that is at ``position``."""
        for piece in pieces:
            for _ in self.chunks(stream, piece.start - position):
                pass  # bytes that nobody wants: a gap
            piece.want(self.chunks(stream, piece.stop - piece.start))
            position = piece.stop

    def chunks(self, stream: Stream, size: int) -> Iterator[Bytes]:
        """The next bytes of a stream, exactly as many, piece by piece.

        A piece is good until the next one is asked for: they all come in the thread's one buffer.
        """
        for data in self.some(stream, size):
            size -= len(data)
            yield data
        if size:
            raise TransportError("the reply ended early", transient=True)

    def some(self, stream: Stream, most: int) -> Iterator[Bytes]:
        """The bytes of a stream of unknown length, up to so many; as `chunks`."""
        while most and (data := self._read(stream, min(most, CHUNK))):
            self.meter.add(len(data))
            most -= len(data)
            yield data

    def _read(self, stream: Stream, size: int) -> memoryview:
        """The next bytes: many at once, unless they come slowly."""
        buffer, filled, began = self._buffer()[:size], 0, time.monotonic()
        while True:
            self._check_stopped()
            count = stream.readinto(buffer[filled:])
            self._check_stopped()  # that may have taken long, and what takes the bytes may be gone
            filled += count
            if not count or filled == size or time.monotonic() - began > _GATHER:
                return buffer[:filled]

    def _buffer(self) -> memoryview:
        """This thread's own: fresh memory for every piece costs a tenth of all time (measured)."""
        buffer: memoryview | None = getattr(self._own, "buffer", None)
        if buffer is None:
            buffer = self._own.buffer = memoryview(bytearray(CHUNK))
        return buffer

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise StoppedError

    def all(self, work: Iterable[Callable[[], None]]) -> None:
        """Do pieces of work at once; the first error ends them all, and is raised.

        After Ctrl-C threads that wait for a slow network are left behind.
        """
        errors: list[BaseException] = []
        limit = StreamLimit(self._connections, self.meter)
        damaged = threading.Event()

        def do(call: Callable[[], None]) -> None:
            with limit:
                if self._stopped.is_set() or damaged.is_set():
                    return  # nobody waits for it any more, and it need not even be asked for
                try:
                    call()
                except StoppedError:
                    pass  # another one failed, and says why
                except IntegrityError:
                    damaged.set()  # what is under way is verified, too, and is kept
                    raise
                except BaseException:
                    self._stopped.set()
                    raise

        def do_all() -> None:
            try:
                for_each(do, work, self._connections)
            except BaseException as error:
                errors.append(error)

        self._run(do_all, limit)
        if errors:
            raise errors[0]

    def _run(self, work: Callable[[], None], limit: StreamLimit) -> None:
        # This thread does nothing but wait, so that Ctrl-C finds it ready, whatever a server does.
        waited_for = threading.Thread(target=work, daemon=True)
        try:
            waited_for.start()
        except RuntimeError:  # there can be no more threads
            work()
            return
        try:
            limit.watch(waited_for)
            waited_for.join()
        except BaseException:
            self._stopped.set()
            limit.give_all()
            waited_for.join(_PATIENCE)
            raise


class StoppedError(Exception):
    """Another stream failed; this one is not needed any more."""


def read_exactly(stream: Stream, size: int) -> bytes:
    """The next bytes of a stream, as many as that or, at its end, fewer."""
    parts = []
    while size and (data := stream.read(min(size, 1 << 20))):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
