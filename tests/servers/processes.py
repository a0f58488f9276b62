"""Starting and ending the processes that servers are."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.servers.ports import free_port, wait_for

__all__ = ["end", "start"]


def start(command: Callable[[int], Sequence[str | Path]]) -> tuple[int, subprocess.Popen[bytes]]:
    """Start a server by the command for a free port; gives the port that it listens at, too."""
    for _ in range(10):
        port = free_port()
        process = subprocess.Popen(
            command(port),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if wait_for(port, 30) and process.poll() is None:
            return port, process
        end(process)
    raise RuntimeError("a server does not start")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours that leads a group, and all of the group if it does not listen."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)
