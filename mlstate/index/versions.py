"""The version of a file or folder: a text that is another one after each change."""

from __future__ import annotations

import os
import time

__all__ = ["version_of"]

_SETTLED = 0.1
"""A file that was changed within so many seconds may change again without another time..."""
_SETTLED_COARSE = 4.0
"""...and where times are whole seconds (or two, on FAT), within so many."""


def version_of(found: os.stat_result) -> str | None:
    """The version of what was looked at; None if it changed so lately that no time tells."""
    changed = max(found.st_mtime_ns, found.st_ctime_ns)
    coarse = changed % 1_000_000_000 == 0
    if time.time() - changed / 1e9 < (_SETTLED_COARSE if coarse else _SETTLED):
        return None
    return f"{found.st_mtime_ns}.{found.st_ctime_ns}.{found.st_size}.{found.st_ino}"
