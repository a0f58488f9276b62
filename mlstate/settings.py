"""Settings from the environment, read when they are needed, so that a test or a job can set them.

MLSTATE_CACHE            the folder for what was fetched; by default the user's cache folder
MLSTATE_READONLY_CACHES  folders that are looked at before it, never written
MLSTATE_MANIFESTS        manifests (files or folders) that `Store()` reads beside its own
MLSTATE_OFFLINE          whether sockets are forbidden: unset, empty, 0, false and no mean online
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder", "extra_manifests", "offline", "readonly_caches"]


def cache_folder() -> Path:
    """The cache: MLSTATE_CACHE, or the user's cache folder by the platform's convention."""
    if chosen := os.environ.get("MLSTATE_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("mlstate", appauthor=False)


def readonly_caches() -> list[Path]:
    """MLSTATE_READONLY_CACHES, in order."""
    return _paths("MLSTATE_READONLY_CACHES")


def extra_manifests() -> list[Path]:
    """MLSTATE_MANIFESTS, in order."""
    return _paths("MLSTATE_MANIFESTS")


def offline() -> bool:
    """MLSTATE_OFFLINE."""
    return os.environ.get("MLSTATE_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def _paths(variable: str) -> list[Path]:
    return [
        Path(part).expanduser() for part in os.environ.get(variable, "").split(os.pathsep) if part
    ]
