"""Changing a manifest file that other processes may change at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable

from mlstate.locations import local_path
from mlstate.manifests import (
    Manifest,
    changed_by_others,
    content_of,
    edited,
    resolved,
    warn_of_misspelt,
    warn_of_stale_signature,
)
from mlstate.objects.beside import temporary_beside
from mlstate.objects.durable import locked_folder, write_over

__all__ = ["change_manifest"]

_ATTEMPTS = 100
_PATIENCE = 60.0
"""Seconds. A change takes far less: a process that holds the lock for longer is stopped."""


def change_manifest(path: str | os.PathLike[str], change: Callable[[Manifest], Manifest]) -> None:
    """Read, change and write a manifest file; what others write meanwhile is not lost.

    The file is written only if it still holds what was read; otherwise all is done again. A lock
    keeps other calls from doing work in vain, and nothing depends on it: a process that holds it
    may be stopped for minutes, and an editor knows nothing of it.

    Args:
        path: The file. If it is missing, it is made, and so are the folders above it.
        change: Takes the manifest as it is, empty if the file is missing, and returns the new one.
            It has to be quick: what takes long, fetching say, is done before. It may be called
            several times.

    Raises:
        ManifestError: The file cannot be read or edited, or others change it without an end; it
            stays as it is.
    """
    file = local_path(path)
    target = resolved(path)  # of a link, the file which is written
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked_folder(target.parent, _PATIENCE):
        for _ in range(_ATTEMPTS):
            old = content_of(target) if target.exists() else None
            now = Manifest({}) if old is None else Manifest.parse(old, str(file))
            warn_of_misspelt([now])
            new = edited(change(now), old, str(path))
            temporary = temporary_beside(target)
            if new == old:
                return
            if write_over(target, old, [new], temporary=temporary, read_only=False):
                warn_of_stale_signature(path)
                return
    raise changed_by_others(path)
