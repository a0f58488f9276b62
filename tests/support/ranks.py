"""Jobs of several ranks over gloo, as torchrun starts them, for tests: real processes.

They are forked from a server that has imported torch once, do what they are told over a pipe, and
are used for many cases. Their rendezvous store is in the test's process, as that of torchrun is in
its agent, or in rank 0, as without it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["Answer", "Job", "Rank"]

_PRELOAD = [
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "mlstate.distributed.load",
    "mlstate.distributed.save",
    "tests.distributed.cases",
]
_LONG = 120
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_PRELOAD)


@dataclass(frozen=True)
class Answer:
    """What a rank says of a case: what it returned, or what it raised."""

    value: Any = None
    error: BaseException | None = None
    text: str = ""
    seconds: float = 0.0
    warned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rank:
    """A rank of a job, in its process."""

    rank: int
    world: int
    folder: str


class Job:
    """So many ranks, while the context lasts.

    Args:
        world: How many.
        folder: A folder that all of them know.
        env: Variables of each; ``{rank}`` in a value is the number of the rank.
        cases: The module of the functions that the ranks are told to call.
        own_store: Rank 0 holds the rendezvous store, and takes it along when it is killed.
    """

    def __init__(
        self,
        world: int,
        folder: Any,
        env: Mapping[str, str] | None = None,
        *,
        own_store: bool = False,
        cases: str = "tests.distributed.cases",
    ) -> None:
        self.world, self._folder, self._env = world, str(folder), dict(env or {})
        self._own_store, self._cases = own_store, cases

    def __enter__(self) -> Job:
        self._store = None if self._own_store else _store(0, True)
        port = _free_port() if self._store is None else self._store.port
        self._pipes: list[Connection] = []
        self.processes = []
        for rank in range(self.world):
            ours, theirs = _context.Pipe()
            own = {name: value.format(rank=rank) for name, value in self._env.items()}
            environment = {**os.environ, **own}
            process = _context.Process(
                target=_main,
                args=(
                    Rank(rank, self.world, self._folder),
                    port,
                    self._own_store,
                    (self._cases, environment),
                    theirs,
                ),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)
        ready = [pipe.recv() for pipe in self._pipes]
        assert ready == ["ready"] * self.world, ready
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()
        for pipe in self._pipes:
            pipe.close()

    def tell(self, case: str, ranks: Sequence[int] | None = None, **arguments: Any) -> None:
        """Begin a case of `tests.distributed.cases` on these ranks, all by default."""
        for rank in range(self.world) if ranks is None else ranks:
            self._pipes[rank].send((case, arguments))

    def answers(self, ranks: Sequence[int] | None = None) -> list[Answer]:
        """What these ranks say, once they are done."""
        found = []
        for rank in range(self.world) if ranks is None else ranks:
            assert self._pipes[rank].poll(_LONG), f"rank {rank} says nothing"
            found.append(self._pipes[rank].recv())
        return found

    def run(self, case: str, **arguments: Any) -> list[Answer]:
        """Run a case on all ranks."""
        self.tell(case, **arguments)
        return self.answers()

    def values(self, case: str, **arguments: Any) -> list[Any]:
        """Run a case on all ranks, which must not fail; what they return."""
        answers = self.run(case, **arguments)
        for answer in answers:
            assert answer.error is None, answer.text
        return [answer.value for answer in answers]


def _store(port: int, is_master: bool) -> dist.TCPStore:
    return dist.TCPStore(
        "127.0.0.1", port, None, is_master, timedelta(seconds=_LONG), wait_for_workers=False
    )


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _main(
    own: Rank,
    port: int,
    own_store: bool,
    settings: tuple[str, dict[str, str]],
    pipe: Connection,
) -> None:
    cases = importlib.import_module(settings[0])
    os.environ.clear()
    os.environ.update(settings[1])
    torch.set_num_threads(1)
    store: Any = dist.PrefixStore("job", _store(port, own_store and own.rank == 0))
    dist.init_process_group("gloo", store=store, rank=own.rank, world_size=own.world)
    pipe.send("ready")
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            os._exit(0)
        begun = time.monotonic()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                value, error, text = getattr(cases, name)(own, **arguments), None, ""
            except BaseException as raised:
                value, error, text = None, raised, traceback.format_exc()
        said = tuple(str(one.message) for one in warned)
        answer = Answer(value, error, text, time.monotonic() - begun, said)
        try:
            pipe.send(answer)
        except Exception as unsent:  # an error that cannot be pickled
            pipe.send(Answer(None, RuntimeError(repr(unsent)), text))
