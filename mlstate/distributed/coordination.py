"""Coordination of the ranks of a process group: all do a step, or none, and no wait is for ever.

It goes by keys in the group's rendezvous store, since collectives wait for a rank that is stopped
until the timeout of their group, and leave others behind. Steps have names, the same on each rank:

- ``arrived/<step>`` counts the ranks that came, and the last one sets ``go/<step>``;
- ``failed`` is what the first rank to fail has said, and ends all waits;
- ``beat/<rank>`` are heartbeats, by a thread of each rank (`mlstate.distributed.watch`).

A rank fails only where it does not arrive, so that those that go on are never left alone in the
middle of a step: after an exception no message is under way, and the group can be used again.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from mlstate import settings
from mlstate.digests import Digest
from mlstate.distributed.failures import ERROR, LOST, Failure, failure_of
from mlstate.distributed.watch import Process, Watch
from mlstate.errors import FormatError, MlstateError
from mlstate.phrases import Phrase

__all__ = ["Coordinator"]

_Result = TypeVar("_Result")
_LOOK = 0.05
_MOMENT = 0.5
_NO_STEP = "none"
_NUMBER = "number"
_SOON, _LATER = 0.001, 0.02
_PART = 1 << 20
"""Bytes in a value: a store takes no more than some megabytes."""
_FIRST = "all are here"


@dataclass
class _Past:
    """What this rank knows of a group from the last time.

    Attributes:
        number: How often the ranks have met: each time their keys have another name.
        processes: Those of the ranks: for ranks that end before they come.
        keys: What this rank has set; by now nobody reads it.
    """

    number: int
    processes: dict[int, Process] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)


_past: WeakKeyDictionary[Any, _Past] = WeakKeyDictionary()
"""By the group itself: groups that are made anew, of other processes perhaps, have old names."""


class _Ended(Exception):  # noqa: N818  # a signal within this file; `Coordinator` raises the error
    """Another rank failed."""


class Coordinator:
    """The ranks of a group, while they do one thing together: a context.

    An exception within the context ends it on all ranks, with the same error; see `Failure.error`.

    Args:
        group: The process group; None is that of all ranks.
        after: How things are if it fails: "nothing was loaded", say.

    Attributes:
        rank: This rank, within the group.
        world: How many ranks there are.
        global_ranks: What each rank of the group is called among all.
    """

    def __init__(self, group: Any, after: str) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise FormatError(
                "there is no process group",
                remedy=Phrase(
                    "call torch.distributed.init_process_group() first, or leave out group=", ""
                ),
            )
        self.group: Any = dist.group.WORLD if group is None else group
        self.rank: int = dist.get_rank(self.group)
        if self.rank < 0:
            raise FormatError("this rank is not in the group that was given")
        self.world: int = dist.get_world_size(self.group)
        self.global_ranks: list[int] = dist.get_process_group_ranks(self.group)
        self._after = after
        self._last = _NO_STEP  # the step that is waited for: once it is on, others may be gone
        self._set: list[str] = []
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def __enter__(self) -> Coordinator:
        self._all: Any = PrefixStore(f"mlstate/{self.group.group_name}", _connection())
        if self.group not in _past:
            # A rendezvous store may have been used before, by a group of this name.
            met = int(self._all.get(_NUMBER)) if self._all.check([_NUMBER]) else 0
            _past[self.group] = _Past(met)
        self._past = _past[self.group]
        self._past.number += 1
        prefix = str(self._past.number)
        self._store: Any = PrefixStore(prefix, self._all)
        self._watch = Watch(
            PrefixStore(f"mlstate/{self.group.group_name}/{prefix}", _connection()),
            self.rank,
            self.world,
            patience=settings.peer_patience(),
            first=max(settings.patience(), settings.peer_patience()),
            is_over=lambda store: bool(store.check([self._last])),
        )
        self._watch.know(self._past.processes)
        threading.Thread(target=self._work, name="mlstate-ranks", daemon=True).start()
        self._watch.start()
        try:
            self._arrive()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        # All are here, so nobody reads the keys of the last time any more.
        last, self._past.keys = self._past.keys, []
        self.run(lambda: [self._all.delete_key(key) for key in last])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                self._fail(error)
        finally:
            self._watch.stop()
            self._queue.put(None)
            keys = [*self._set, f"beat/{self.rank}", f"info/{self.rank}"]
            self._past.keys = [f"{self._past.number}/{key}" for key in keys]

    def _arrive(self) -> None:
        own = Process.own()
        self.set(f"info/{self.rank}", json.dumps(astuple(own)).encode())
        self.agree(_FIRST)
        keys = [f"info/{rank}" for rank in range(self.world)]
        found = self.run(lambda: [self._store.get(key) for key in keys])
        known = {rank: Process(*json.loads(text)) for rank, text in enumerate(found)}
        self._past.processes = known
        self._watch.know(known)

    def _fail(self, error: BaseException) -> None:
        """Tell all ranks, and raise what all raise; of an error of this rank, itself."""
        if isinstance(error, _Ended):
            failure = self._watch.failure
            assert failure is not None
            raise failure.error(self._after) from None
        own = failure_of(self.rank, error)
        first = self._announced(own)
        if not isinstance(error, Exception):
            return  # Ctrl-C, and the like
        if first != own:
            raise first.error(self._after) from error
        if not isinstance(error, MlstateError):
            raise own.error(self._after) from error

    def _announced(self, failure: Failure) -> Failure:
        """Tell all ranks; the failure that was told first."""
        try:
            return self.run(lambda: self._announce(failure))
        except _Ended:
            assert self._watch.failure is not None
            return self._watch.failure

    def _announce(self, failure: Failure) -> Failure:
        said = self._store.compare_set("failed", "", failure.to_text())
        return Failure.parse(said)

    def check(self) -> None:
        """Stop here if another rank has failed: for loops over what takes long."""
        self._watch.look()
        if self._watch.failed.is_set():
            raise _Ended

    def run(self, work: Callable[[], _Result]) -> _Result:
        """Do something that could wait for another rank, or for the store, in a thread.

        If a rank fails meanwhile this is left, and the thread with it, unless it ends soon. An
        error of the connections is that of the rank behind them, who is looked for.

        Returns:
            What ``work`` returns.
        """
        self.check()
        return self._done(work, _MOMENT)

    def exchange(self, work: Callable[[], _Result]) -> _Result:
        """Send and receive what all ranks have agreed on: as `run`, but to its end.

        A rank that meets an exception meanwhile has done its part of this before, or will. So this
        is left for a rank alone that ended or is silent: then nothing can be sent any more.
        """
        return self._done(work, settings.peer_patience())

    def _done(self, work: Callable[[], _Result], grace: float) -> _Result:
        """The result of ``work``; after a failure of a rank it has so many seconds more."""
        done = threading.Event()
        result: list[_Result] = []
        errors: list[BaseException] = []

        def call() -> None:
            try:
                result.append(work())
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        self._queue.put(call)
        end: float | None = None
        while not done.wait(_LOOK):
            self._watch.look()
            if self._watch.failed.is_set():
                failure = self._watch.failure
                left = grace if failure is not None and failure.how == ERROR else _MOMENT
                end = time.monotonic() + left if end is None else end
                if time.monotonic() > end:
                    raise _Ended
        if errors:
            if isinstance(errors[0], RuntimeError) and not isinstance(errors[0], MlstateError):
                self._blame(errors[0])
            raise errors[0]
        return result[0]

    def agree(self, step: str) -> None:
        """Wait until all ranks have come as far as this step."""
        go = f"go/{step}"

        def come() -> None:
            if self._store.add(f"arrived/{step}", 1) == self.world:
                if step == _FIRST:
                    self._all.set(_NUMBER, str(self._past.number))
                self._store.set(go, "1")

        self._last = go
        if self.rank == 0:
            self._set += [f"arrived/{step}", go]
        self.run(come)
        # Not left for a failure of a rank that has come: if all have, all go on with this step.
        self._done(lambda: self._poll(go), _MOMENT)
        self._last = _NO_STEP

    def finish(self, step: str) -> None:
        """Wait for the last step: after it no rank waits for another, and each may be gone."""
        self.agree(step)
        self._watch.stop()

    def set(self, key: str, value: bytes) -> None:
        """Set a key; its value is in parts if it is long."""
        parts = [value[i : i + _PART] for i in range(0, len(value), _PART)] or [b""]
        keys = [key, *(f"{key}+{i}" for i in range(1, len(parts)))]

        def put() -> None:
            for name, part in reversed(list(zip(keys[1:], parts[1:], strict=True))):
                self._store.set(name, part)
            self._store.set(key, b"%d " % len(parts) + parts[0])

        if key.startswith("info/"):
            self.run(lambda: self._store.set(key, value))
            return
        self._set += keys
        self.run(put)

    def get(self, key: str) -> bytes:
        """Wait for the value of a key that another rank sets by `set`."""

        def take() -> bytes:
            self._poll(key)
            count, _, first = self._store.get(key).partition(b" ")
            rest = [self._store.get(f"{key}+{i}") for i in range(1, int(count))]
            return b"".join([first, *rest])

        return self.run(take)

    def told(self, name: str, value: Callable[[], Any]) -> Any:
        """What rank 0 finds out, as JSON has it: ``value`` is called there alone."""
        if self.rank == 0:
            found = value()
            self.set(f"told/{name}", json.dumps(found).encode())
            return found
        return json.loads(self.get(f"told/{name}"))

    def gathered(self, name: str, text: bytes) -> list[bytes]:
        """The texts of all ranks, in their order; one that several have is sent once."""
        digest = Digest.of(text)
        self.set(f"{name}/of/{self.rank}", digest.encode())
        if not self.run(lambda: self._store.check([f"{name}/text/{digest}"])):
            self.set(f"{name}/text/{digest}", text)
        self.agree(name)
        digests = [self.get(f"{name}/of/{rank}").decode() for rank in range(self.world)]
        texts: dict[str, bytes] = {digest: text}
        for one in digests:
            if one not in texts:
                texts[one] = self.get(f"{name}/text/{one}")
        return [texts[one] for one in digests]

    def _poll(self, key: str) -> None:
        """Wait for a key, in the thread that may wait."""
        delay = _SOON
        while not self._watch.failed.is_set() and not self._store.check([key]):
            time.sleep(delay)
            delay = min(_LATER, delay * 1.5)
        if self._watch.failed.is_set() and not self._store.check([key]):
            raise _Ended

    def _blame(self, error: BaseException) -> None:
        """Find out whose fault a broken connection is, and end with that."""
        if not self._watch.failed.wait(settings.peer_patience() + 1):
            self._watch.look()
        if not self._watch.failed.is_set():
            self._announced(Failure(None, LOST, message=str(error)[:200]))
            self._watch.failed.wait(1)
        self.check()

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            call()


def _connection() -> Any:
    """A connection to the rendezvous store of its own: those of one wait for each other."""
    store: Any = _get_default_store()
    if hasattr(store, "clone"):
        store = store.clone()
    store.set_timeout(timedelta(seconds=settings.patience()))
    return store
