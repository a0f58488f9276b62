"""What tests of GitHubReleaseStore share: quick stores, and looks at what a release has."""

from __future__ import annotations

from pathlib import Path

import torch

from mlstate import GitHubReleaseStore, StateKey
from mlstate.stores.github.assets import is_data, stem_of
from mlstate.transport import Retries
from tests.servers.github import GitHub
from tests.servers.github_parts import Asset
from tests.support.models import LINEAR

__all__ = ["KEY", "TAG", "asset_of", "data_names", "github_store", "weights"]

TAG = "state.pytorch.net"
KEY = StateKey(LINEAR, "a")


def github_store(cache: Path, *, attempts: int = 3, **options: object) -> GitHubReleaseStore:
    """A store in ``org/models`` that waits for nothing long."""
    store = GitHubReleaseStore("org", "models", cache=cache, **options)
    store.fetcher.retries = Retries(attempts, first=0.01, most=0.05)
    return store


def weights(seed: int, **sizes: int) -> dict[str, torch.Tensor]:
    """A small tensor that is inline, and large ones; by default one of 40 KB."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {"bias": torch.rand(3, generator=generator)}
    for name, size in (sizes or {"weight": 10_000}).items():
        tensors[name] = torch.rand(size, generator=generator)
    return tensors


def asset_of(github: GitHub, name: str, tag: str = TAG) -> Asset:
    """An asset of a release of ``org/models``."""
    return github.repos["org/models"].tagged(tag).named(name)


def data_names(github: GitHub, key: StateKey = KEY) -> list[str]:
    """The names of the assets that hold data of a key."""
    return [name for name in github.names(TAG) if is_data(stem_of(key), name)]
