"""What an address is when sockets are forbidden: it can be named, and not read."""

from __future__ import annotations

from contextlib import AbstractContextManager

from mlstate.errors import OfflineError
from mlstate.transport.interface import Stream

__all__ = ["OfflineResource"]


class OfflineResource:
    """Something on the network, without the network.

    It stands in before anything is imported that could open a socket: urllib3 probes for IPv6 with
    one when it is imported.

    Args:
        address: Where it is, for people and errors.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def size(self) -> int | None:
        """Not to be had.

        Raises:
            OfflineError: Always.
        """
        raise self._error()

    def read(self, start: int = 0, stop: int | None = None) -> AbstractContextManager[Stream]:
        """Not to be had.

        Raises:
            OfflineError: Always.
        """
        raise self._error()

    def _error(self) -> OfflineError:
        return OfflineError(
            "the network is needed, and may not be used",
            path=self.address,
            remedy="allow the network (unset MLSTATE_OFFLINE), or put it into the cache before",
        )
