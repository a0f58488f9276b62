"""Servers that answer, and servers that do not: each of these is waited for once in a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from threading import Lock
from typing import TypeVar

from mlstate.errors import TransportError
from mlstate.fetch.outages import server_of

__all__ = ["Servers"]

_T = TypeVar("_T")


class Servers:
    """The servers of many addresses, asked by many threads.

    The first question to a server goes alone: if nobody answers it, no other is put to that server.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._turns: defaultdict[str, Lock] = defaultdict(Lock)
        self._answering: set[str] = set()
        self._down: dict[str, str] = {}

    def ask(self, address: str, work: Callable[[], _T]) -> _T:
        """The result of a question to the server of an address.

        Raises:
            TransportError: The server does not answer, or did not before; or as ``work`` does.
        """
        server = server_of(address)
        if server is None:
            return work()
        with self._lock:
            turn = self._turns[server]
            is_known = server in self._answering
        if is_known:
            return self._ask(server, work)
        with turn:
            return self._ask(server, work)

    def why_not(self, address: str) -> str | None:
        """Why the server of an address is not asked any more; None if it is."""
        with self._lock:
            return self._down.get(server_of(address) or "")

    def _ask(self, server: str, work: Callable[[], _T]) -> _T:
        with self._lock:
            why = self._down.get(server)
        if why is not None:
            raise TransportError(why)
        try:
            result = work()
        except TransportError as error:
            with self._lock:
                if error.transient and error.status is None:
                    self._down[server] = error.message
                else:
                    self._answering.add(server)
            raise
        with self._lock:
            self._answering.add(server)
        return result
