"""Building the shim, and what can be asked of it: see `shim.c`."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from mmap import mmap
from pathlib import Path

__all__ = ["FAULTS", "Fault", "NoCompilerError", "Page", "arm", "build", "disarm", "mark"]

KINDS = ("nothing", "error", "short", "kill before", "kill after")
_CALL, _PATH = 64, 1024


class NoCompilerError(Exception):
    """The shim cannot be built on this machine; the text says why."""


@dataclass(frozen=True)
class Fault:
    """What happens at a call, one of `KINDS`; ``sticky``: at all calls from there on."""

    kind: str
    error: int = 0
    sticky: bool = False

    def __str__(self) -> str:
        name = errno.errorcode.get(self.error, "")
        return " ".join(filter(None, (self.kind, name, "from there on" if self.sticky else "")))

    def as_json(self) -> dict[str, object]:
        return asdict(self)


FAULTS = (
    Fault("kill before"),
    Fault("kill after"),
    Fault("short"),
    *(Fault("error", one) for one in (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EDQUOT)),
    *(Fault("error", one, sticky=True) for one in (errno.EIO, errno.ENOSPC, errno.EROFS)),
)


def build(folder: Path) -> Path:
    """Compile the shim into a folder; a `NoCompilerError` where that cannot be done."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoCompilerError("no C compiler (cc) is installed")
    target = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", target, source, "-ldl", "-lpthread"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NoCompilerError(f"the shim does not compile here: {done.stderr[:500]}")
    return target


class Page:
    """The memory in which a process that dies leaves how far it came."""

    def __init__(self) -> None:
        self.memory = mmap(-1, 4096)

    def read(self) -> dict[str, object]:
        """The calls that were counted, how many got a fault, and which call got the first one."""
        word = ctypes.sizeof(ctypes.c_long)
        count, hits = (int.from_bytes(self.memory[at : at + word], "little") for at in (0, word))
        start = 2 * word
        call = self.memory[start : start + _CALL].partition(b"\0")[0]
        path = self.memory[start + _CALL : start + _CALL + _PATH].partition(b"\0")[0]
        return {"count": count, "hits": hits, "call": call.decode(), "path": os.fsdecode(path)}


def arm(folder: Path, at: int, fault: Fault, page: Page, log: int = -1) -> None:
    """Begin to count the calls of this process, which was started with the shim."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(page.memory))
    ctypes.CDLL(None).torture_arm(
        os.fsencode(folder),
        ctypes.c_long(at),
        KINDS.index(fault.kind),
        fault.error,
        int(fault.sticky),
        log,
        ctypes.c_void_p(address),
    )


def disarm() -> None:
    """Let all calls through again."""
    ctypes.CDLL(None).torture_disarm()


def mark(text: str) -> None:
    """Note in the log that something is true from here on: a save has returned, say."""
    with contextlib.suppress(AttributeError):  # of a process without the shim nobody takes notes
        ctypes.CDLL(None).torture_mark(text.encode())
