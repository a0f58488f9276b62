"""Which objects of a folder are mapped into the memory of processes on this machine, now.

The kernel knows: nobody has to hold a lock, which a file system may not have, and nothing is left
behind by a process that was killed. It tells of the processes of the same user only (root of all),
and not of those in other containers. What is deleted all the same stays mapped where it is: its
pages and its place on the disk live as long as the map does.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from mlstate.digests import Digest
from mlstate.format import layout

__all__ = ["mapped_objects"]

_PROCESSES = Path("/proc")
# 7f..-7f.. r--p 00000000 08:01 1234  /srv/cache/objects/ab/cdef...
_MAP = re.compile(
    rb"^\S+ \S+ \S+ \S+ (\d+) +/.*/" + layout.OBJECTS.encode() + rb"/([0-9a-f]{2})/([0-9a-f]{62})$",
    re.MULTILINE,
)


def mapped_objects() -> dict[Digest, set[int]]:
    """The objects, of whatever folder, that processes have mapped, with their inodes.

    Where this cannot be known nothing is mapped, as far as anyone can tell.
    """
    found: dict[Digest, set[int]] = {}
    with suppress(OSError):
        for process in _PROCESSES.iterdir():
            if process.name.isdigit():
                with suppress(OSError):  # it has ended, or is another user's
                    for inode, *parts in _MAP.findall((process / "maps").read_bytes()):
                        digest = Digest(b"".join(parts).decode())
                        found.setdefault(digest, set()).add(int(inode))
    return found
