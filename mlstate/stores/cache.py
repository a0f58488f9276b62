"""The cache of a store, and the fetcher that fills it, from arguments or from the settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

from mlstate import settings
from mlstate.buckets.client import BucketClient
from mlstate.fetch import MAX_SIZE, Fetcher, OnProgress
from mlstate.fetch.progress import listener
from mlstate.locations import anchored
from mlstate.objects import FolderObjectStore, ObjectStore
from mlstate.objects.cache import Cache
from mlstate.stores.read import StateStore
from mlstate.transport import Transports

__all__ = ["CacheLike", "PathLike", "make_fetcher", "open_cache"]

PathLike = str | os.PathLike[str]
CacheLike = PathLike | StateStore | ObjectStore


def open_cache(cache: CacheLike | None) -> Cache:
    """The cache in a folder, of a store or of an object store; by default that of the settings."""
    if isinstance(cache, str | os.PathLike):
        return Cache([FolderObjectStore(anchored(cache))])
    if isinstance(cache, Cache):
        return cache
    if cache is not None:
        return Cache([cache.objects if isinstance(cache, StateStore) else cache])
    folders = [*settings.readonly_caches(), settings.cache_folder()]
    return Cache([FolderObjectStore(anchored(folder)) for folder in folders])


def make_fetcher(
    cache: Cache,
    *,
    offline: bool | None,
    progress: OnProgress | bool | None,
    max_size: int = MAX_SIZE,
    buckets: Mapping[str, BucketClient] | None = None,
) -> Fetcher:
    """The fetcher of a cache.

    Args:
        cache: The cache.
        offline: Open no socket; by default as the settings say.
        progress: Called while something is fetched; True: a bar on the terminal.
        max_size: The most bytes of tensor data to fetch of a state whose entry has no size.
        buckets: As for `Transports`.
    """
    forbidden = settings.offline() if offline is None else offline
    transports = partial(Transports, offline=forbidden, buckets=buckets)
    return Fetcher(cache, transports, max_size=max_size, on_progress=listener(progress))
