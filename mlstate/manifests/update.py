"""Changing a manifest file that other processes may change at the same time."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mlstate.locations import local_path
from mlstate.manifests import Manifest
from mlstate.objects.durable import try_lock

__all__ = ["change_manifest"]

_POLL = 0.01
_PATIENCE = 60.0
"""Seconds. A change takes far less: a process that holds the lock for longer is stopped."""


def change_manifest(path: str | os.PathLike[str], change: Callable[[Manifest], Manifest]) -> None:
    """Read, change and write a manifest file, while no other call of this function does so.

    Args:
        path: The file. If it is missing, it is made, and so are the folders above it.
        change: Takes the manifest as it is, empty if the file is missing, and returns the new one.
            It has to be quick: what takes long, fetching say, is done before.

    Raises:
        ManifestError: The file cannot be read or edited; it stays as it is.
    """
    file = local_path(path)
    folder = file.resolve().parent  # of a link, that of the file which is written
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        now = Manifest.read(file) if file.exists() else Manifest({})
        change(now).write(file)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder itself, so that no file is left; go on where there are no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # some systems do not open folders, and some folders are not to be read
        yield
        return
    try:
        end = time.monotonic() + _PATIENCE
        while try_lock(descriptor) is False and time.monotonic() < end:
            time.sleep(_POLL)
        yield
    finally:
        os.close(descriptor)
