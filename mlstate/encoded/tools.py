"""What each of several threads needs for itself, made when it is first needed, and used again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["Tools"]

_T = TypeVar("_T")


class Tools(Generic[_T]):
    """Tools that are lent to one thread at a time: as many as threads ever worked at once."""

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        self._spare: list[_T] = []

    @contextmanager
    def borrowed(self) -> Iterator[_T]:
        """A tool that nobody else has as long as the context lasts."""
        try:
            tool = self._spare.pop()
        except IndexError:
            tool = self._make()
        yield tool
        self._spare.append(tool)
