"""Free ports, programs that may be missing, and waiting until a server answers."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

__all__ = [
    "HOST",
    "MissingProgramError",
    "black_hole",
    "closed_port",
    "free_port",
    "program",
    "wait_for",
]

HOST = "127.0.0.1"


class MissingProgramError(RuntimeError):
    """A server's program is not installed here."""


def program(name: str, package: str) -> str:
    """The path of a program, also where a normal user's PATH has no sbin."""
    folders = [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]
    if (path := shutil.which(name, path=os.pathsep.join(folders))) is None:
        raise MissingProgramError(f"{name} is not installed (apt-get install {package})")
    return path


def free_port() -> int:
    """A port that nobody listens at now; somebody else may be faster, so be ready to retry."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses connections, and that nobody else can take in the meantime."""
    with socket.socket() as held:
        held.bind((HOST, 0))
        yield held.getsockname()[1]


def wait_for(port: int, seconds: float = 10) -> bool:
    """Whether a port answers within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((HOST, port)) == 0:
                return True
        time.sleep(0.01)
    return False


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that answers nothing, and lets nobody connect: as behind a firewall that drops all.

    Its queue of connections that wait to be accepted is full, so Linux drops all others.
    """
    with socket.socket() as listening, ExitStack() as waiting:
        listening.bind((HOST, 0))
        listening.listen(0)
        port = int(listening.getsockname()[1])
        while True:
            probe = waiting.enter_context(socket.socket())
            probe.settimeout(0.3)
            try:
                probe.connect((HOST, port))
            except TimeoutError:
                break
        yield port
