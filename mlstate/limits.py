"""Limits for servers: how long they may take, how fast they must be, how much is read."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from mlstate import settings
from mlstate.digests import Bytes

__all__ = ["Limits", "SpeedLimit", "read_limited"]


@dataclass(frozen=True)
class Limits:
    """How many connections are kept, and how long servers may take.

    Attributes:
        connections: The connections to each server that are kept open.
        connect_timeout: The seconds that a connection may take to be made.
        read_timeout: The seconds that a server may be silent, and may take for its headers.
        low_speed: The bytes a second that a server must give on average...
        low_speed_seconds: ...over so many seconds of one reply,
        patience: and over so many seconds of all replies and pauses together.
    """

    connections: int = 16
    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    low_speed: float = field(default_factory=settings.low_speed)
    low_speed_seconds: float = 60.0
    patience: float = field(default_factory=settings.patience)


class SpeedLimit:
    """The least speed of one reply. The time that the reader takes for itself does not count.

    Attributes:
        deadline: The moment, of the monotonic clock, until which enough bytes must have come.
    """

    def __init__(self, limits: Limits) -> None:
        self._seconds = limits.low_speed_seconds
        self._enough = limits.low_speed * limits.low_speed_seconds
        self._received = 0  # since the deadline was set
        self._paused = time.monotonic()
        self.deadline = self._paused + self._seconds

    def resume(self) -> None:
        """Begin to wait for the server, which was not waited for since the last `count`."""
        self.deadline += time.monotonic() - self._paused

    def count(self, size: int) -> bool:
        """Count bytes that came.

        Returns:
            False if the deadline passed before there were enough.
        """
        self._paused = time.monotonic()
        self._received += size
        if self._received >= self._enough:
            self._received = 0
            self.deadline = self._paused + self._seconds
        return self._paused <= self.deadline


def read_limited(chunks: Iterable[Bytes], most: int) -> bytes:
    """Put chunks together, up to one byte more than the most, which shows that there are more."""
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > most:
            break
    return bytes(data[: most + 1])
