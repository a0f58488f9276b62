"""Temporaries beside a file of the user's that is replaced whole: a manifest, a bundle."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
import uuid
from pathlib import Path

__all__ = ["temporary_beside"]

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
    limit = time.time() - _ABANDONED_SECONDS
    with contextlib.suppress(OSError):  # the folder may not be there, or not be ours to read
        for name in os.listdir(target.parent):
            if abandoned.fullmatch(name):
                _remove_older(target.with_name(name), limit)
    return target.with_name(f"{start}{uuid.uuid4().hex}.tmp")


def _remove_older(path: Path, limit: float) -> None:
    with contextlib.suppress(OSError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_mtime < limit:
            path.unlink()
