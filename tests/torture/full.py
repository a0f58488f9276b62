"""Full disks: an operation on a small file system, with room for a part of it."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlstate.errors import MlstateError
from tests.torture.disks import NoDiskError
from tests.torture.operations import OPERATIONS

__all__ = ["attack", "small_disk"]

_MOST = 1_400_000


@contextmanager
def small_disk(folder: Path, megabytes: int = 64) -> Iterator[Path]:
    """A file system in memory of so many MiB; a `NoDiskError` where this user cannot mount."""
    mount = Path(tempfile.mkdtemp(dir=folder))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", mount],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise NoDiskError(f"no mount: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


def attack(name: str, seed: int, folder: Path, figures: Counter[str]) -> None:
    """Run an operation where there is little room, and again where there is enough."""
    operation, chance = OPERATIONS[name], random.Random(f"{name} {seed}")
    with small_disk(folder) as disk:
        root, filler = disk / "root", disk / "filler"
        root.mkdir()
        operation.prepare(root)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
        room = chance.randrange(_MOST)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - room)
        try:
            operation.run(root)
        except (OSError, MlstateError) as error:
            number = getattr(error, "errno", None)
            if number != errno.ENOSPC and "No space left" not in str(error):
                raise AssertionError(f"{name} with room for {room} bytes: {error!r}") from error
            figures["full disks"] += 1
            operation.check_any(root)
        else:
            operation.check_done(root)
        filler.unlink()
        operation.run(root)
        operation.check_done(root)
        operation.check_swept(root)
