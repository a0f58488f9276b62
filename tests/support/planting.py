"""What a member of a group can put where a file is expected, and a watch over what is outside."""

from __future__ import annotations

import os
import signal
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["KINDS", "Victim", "plant", "time_limit"]

KINDS = ("link", "hard link", "dangling", "loop", "zero", "pipe", "socket", "folder")
PRECIOUS = b"alias ls=ls\n" * 10


class Victim:
    """A folder with a file of somebody's, neither of which anybody may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.file = folder / "bashrc"
        self.file.write_bytes(PRECIOUS)
        self.file.chmod(0o644)
        os.utime(self.file, (10**9, 10**9))

    def check(self) -> None:
        """Nothing was written, made or touched."""
        assert os.listdir(self.folder) == ["bashrc"]
        found = self.file.lstat()
        assert self.file.read_bytes() == PRECIOUS
        assert (found.st_mtime, found.st_mode & 0o7777) == (10**9, 0o644)


def plant(kind: str, path: Path, victim: Victim) -> None:
    """Put a thing in the place of a file or a folder, whatever is there."""
    if path.is_dir() and not path.is_symlink():
        path.rename(victim.folder.parent / uuid.uuid4().hex)
    path.unlink(missing_ok=True)
    makers = {
        "link": lambda: path.symlink_to(victim.file),
        "hard link": lambda: os.link(victim.file, path),
        "dangling": lambda: path.symlink_to(victim.folder / "made"),
        "loop": lambda: path.symlink_to(path),
        "zero": lambda: path.symlink_to("/dev/zero"),
        "pipe": lambda: os.mkfifo(path),
        "socket": lambda: bind(path),
        "folder": lambda: (path / "x").mkdir(parents=True),
        "file": lambda: path.write_bytes(b"no folder"),
    }
    makers[kind]()


def bind(path: Path) -> None:
    """Put a socket there; by a short name, for that of a socket has 107 bytes at most."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{descriptor}/{path.name[:20]}")
        os.rename(path.parent / path.name[:20], path)
    finally:
        os.close(descriptor)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Fail what hangs."""

    def late(*_: object) -> None:
        raise AssertionError(f"it hung for {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
