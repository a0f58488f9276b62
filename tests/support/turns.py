"""Runs several pieces of work in turns, step by step, in any order that a test asks for.

A step ends before each call of the system (or request to a bucket) that is watched. So a test can
stop a pruning between any two of its steps, let a save run from beginning to end, and go on, or
kill the pruning there: it does nothing more, not even clean up.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import mlstate.parallel

__all__ = ["FILES", "Work", "turns"]

FILES = [
    (os, name)
    for name in (
        "rename",
        "replace",
        "link",
        "unlink",
        "utime",
        "open",
        "stat",
        "lstat",
        "listdir",
        "scandir",
    )
]
"""The calls of the system by which saves and prunings see each other."""

_PATIENCE = 60.0
_here = threading.local()


class _KilledError(BaseException):
    """The work is killed: raised by each watched call from now on."""


class Work:
    """A piece of work that stands before a step, or has ended.

    Attributes:
        steps: The steps that it has made.
        result: What it returned.
        error: What it raised.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._killed = False
        self.done = False
        self.steps = 0
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def step(self) -> None:
        """Go on until before the next watched call, or to the end."""
        if not self.done:
            self.steps += 1
            self._go.release()
            assert self._stands.acquire(timeout=_PATIENCE), "it waits for another's work"

    def finish(self) -> Any:
        """Go on to the end; the result, or the error is raised."""
        while not self.done:
            self.step()
        if self.error is not None:
            raise self.error
        return self.result

    def kill(self) -> None:
        """Let it do nothing any more."""
        self._killed = True
        while not self.done:
            self.step()

    def before_call(self) -> None:
        """Stand, in the thread of the work, until the next step."""
        if not self._killed:
            self._stands.release()
            self._go.acquire()
        if self._killed:
            raise _KilledError

    def _run(self) -> None:
        self._go.acquire()
        _here.work = self
        try:
            self.result = self._work()
        except BaseException as error:
            if not isinstance(error, _KilledError):
                self.error = error
        self.done = True
        self._stands.release()


@contextmanager
def turns(
    *works: Callable[[], Any], watched: list[tuple[Any, str]] = FILES
) -> Iterator[list[Work]]:
    """Pieces of work, each of which stands before its first step; at the end all are killed.

    Within it there are no other threads that do the work of mlstate: the order is the test's alone.
    """
    with pytest.MonkeyPatch.context() as patch:

        def no_thread(_: object) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(mlstate.parallel._Helper, "start", no_thread)
        patch.setattr(os, "fsync", lambda descriptor: None)
        for owner, name in watched:
            patch.setattr(owner, name, _stopping(getattr(owner, name)))
        begun = [Work(work) for work in works]
        try:
            yield begun
        finally:
            for work in begun:
                work.kill()


def _stopping(call: Callable[..., Any]) -> Callable[..., Any]:
    def stopping(*arguments: Any, **named: Any) -> Any:
        work = getattr(_here, "work", None)
        if work is not None and not work.done:
            work.before_call()
        return call(*arguments, **named)

    return stopping
