"""Temporaries beside a file of the user's that is replaced whole: a manifest, a bundle."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
import uuid
from pathlib import Path

__all__ = ["abandoned_since", "temporary_beside"]

_ABANDONED_SECONDS = 3600
_LONGEST = 200
"""Bytes of a file's name that a temporary's begins with: file systems take 255 in all."""


def temporary_beside(target: Path) -> Path:
    """A new name for what is to replace a file, in its folder; of a very long one its beginning.

    What processes that were killed left beside this file is removed, if nobody has written to it
    for an hour: no pruning comes by here.
    """
    start = f".{os.fsencode(target.name)[:_LONGEST].decode(errors='ignore')}."
    abandoned = re.compile(rf"{re.escape(start)}[0-9a-f]{{32}}\.tmp")
    with contextlib.suppress(OSError):  # the folder may not be there, or not be ours to read
        names = list(filter(abandoned.fullmatch, os.listdir(target.parent)))
        limit = abandoned_since(target.parent) if names else 0.0
        for name in names:
            _remove_older(target.with_name(name), limit)
    return target.with_name(f"{start}{uuid.uuid4().hex}.tmp")


def abandoned_since(folder: Path) -> float:
    """What nobody has written to since then is abandoned: an hour ago, by the clock of its folder.

    That of this machine may go wrong, and what others write just now would be removed.

    Raises:
        OSError: The folder may not be written into.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime - _ABANDONED_SECONDS


def _remove_older(path: Path, limit: float) -> None:
    with contextlib.suppress(OSError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_mtime < limit:
            path.unlink()
