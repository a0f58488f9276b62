"""The shim `refuse.c`: built with the C compiler of the machine, preloaded into a child."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["OPTIONAL", "build", "environment", "refusing"]

_SOURCE = Path(__file__).with_name("refuse.c")

OPTIONAL: Mapping[str, tuple[int, ...]] = {
    "create read-only": (errno.EACCES, errno.EPERM, errno.EINVAL),
    "chmod": (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES),
    "flush folder": (errno.EINVAL, errno.ENOSYS, errno.EACCES, errno.EBADF, errno.EOPNOTSUPP),
    "open folder": (errno.EACCES, errno.EISDIR, errno.EPERM, errno.ENOSYS),
    "flush file": (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP),
    "link": (
        *(errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EMLINK),
        *(errno.EINVAL, errno.EXDEV),
    ),
    "rename with flags": (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP),
    "flock": (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF),
    "utime": (errno.EPERM, errno.ENOSYS, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL),
    "fstatfs": (errno.ENOSYS, errno.EACCES, errno.EOPNOTSUPP),
    "mmap": (errno.ENODEV, errno.EACCES, errno.EINVAL, errno.ENOMEM, errno.EPERM),
    "ftruncate": (errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP),
    "clone": (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.EACCES),
    "fadvise": (errno.EINVAL, errno.ENOSYS),
}
"""The kinds of calls that a file system may lack, and what it says then."""


def build(folder: Path) -> Path:
    """Build the shim in a folder, or skip the test where that cannot be done."""
    if not sys.platform.startswith("linux"):
        pytest.skip("calls are refused by a library that is preloaded as on Linux")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler is not installed")
    library = folder / "refuse.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", library, _SOURCE, "-ldl"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the compiler does not build the shim: {done.stderr[:300]}")
    return library


def environment(library: Path, call: str = "", error: int = 0, below: Path | str = "") -> dict:
    """The environment of a child that refuses a call below a folder."""
    refusal = {"REFUSE_CALL": call, "REFUSE_ERRNO": str(error), "REFUSE_BELOW": str(below)}
    return {**os.environ, "LD_PRELOAD": str(library), **refusal}


@contextmanager
def refusing(call: str, error: int, below: Path) -> Iterator[Callable[[], int]]:
    """Refuse a call in this process, which has the shim; yields how often that was done."""
    shim = ctypes.CDLL(None)
    shim.refuse_count.restype = ctypes.c_long
    shim.refuse_set(call.encode(), error, os.fsencode(below.resolve()))
    try:
        yield shim.refuse_count
    finally:
        shim.refuse_set(b"", 0, b"")
