"""What tests of fetching share: a published state, its manifests, quick stores, looks at caches."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mlstate import LocalStateStore, Manifest, ManifestStore, StateKey
from mlstate.digests import Digest
from mlstate.format import layout
from mlstate.locations import parse_mirror
from mlstate.manifests import StateEntry
from mlstate.transport import Retries, Transports

__all__ = [
    "FILES",
    "KEY",
    "TENSORS",
    "Published",
    "check_cache",
    "folder_for_all",
    "leftovers",
    "manifest_store",
    "publish",
    "start_child",
    "write_manifest",
]

FILE = "model.safetensors"
STORE = "store"
# The state of the fixture `published`: two tensors with objects of their own, one without.
KEY = StateKey.parse("pytorch.net.a")
TENSORS = {"l1.w": torch.randn(100, 100), "l2.w": torch.randn(100, 100), "b": torch.ones(3)}
FILES = {"labels.json": b"[1, 2]"}


@dataclass(frozen=True)
class Published:
    """A state as somebody offers it: in ``folder`` lie a plain file of it and a store with it."""

    folder: Path
    key: StateKey
    tensors: Mapping[str, torch.Tensor]
    entry: StateEntry

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def state_object(self) -> str:
        """Where the state object lies, relative to the folder."""
        return self.path_of(self.entry.pinned_digest)

    def path_of(self, digest: Digest) -> str:
        """Where an object lies, relative to the folder."""
        return f"{STORE}/{layout.object_path(digest)}"

    def read(self, path: str) -> bytes:
        """The bytes of a file of the folder."""
        return (self.folder / path).read_bytes()


def publish(
    folder: Path,
    key: StateKey,
    tensors: Mapping[str, torch.Tensor],
    files: Mapping[str, bytes] | None = None,
) -> Published:
    """Put a state into a store and into a plain file below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / FILE)
    store = LocalStateStore(folder / STORE)
    store.save_state_dict(tensors, key, files=files or {})
    return Published(folder, key, tensors, store.get(key).entry)


def write_manifest(
    path: Path,
    published: Published,
    *,
    mirrors: Sequence[Any] = (),
    objects: Sequence[str] = (),
    **changes: Any,
) -> Path:
    """Write a manifest with this state alone; ``changes`` are to fields of its entry."""
    parsed = tuple(parse_mirror(mirror) for mirror in mirrors)
    entry = replace(published.entry, mirrors=parsed, **changes)
    Manifest({published.key: entry}, objects=tuple(objects)).write(path)
    return path


def manifest_store(
    path: Path, cache: Path, *, attempts: int = 3, connections: int = 16, **transports: Any
) -> ManifestStore:
    """A `ManifestStore` that waits for nothing long; ``transports`` go to `Transports`."""
    store = ManifestStore(path, cache=cache)
    store.fetcher.transports = partial(Transports, **{"read_timeout": 10, **transports})
    store.fetcher.retries = Retries(attempts, first=0.01, most=0.05)
    store.fetcher.connections = connections
    return store


def check_cache(cache: Path) -> int:
    """Every object of a cache has the digest that its name says; the number of objects."""
    objects = [path for path in (cache / layout.OBJECTS).rglob("*") if path.is_file()]
    for path in objects:
        assert Digest.of(path.read_bytes()) == path.parent.name + path.name
    return len(objects)


def leftovers(cache: Path) -> dict[str, int]:
    """What lies in a cache's tmp/: the allocated bytes of each file."""
    folder = cache / layout.TEMPORARIES
    return {path.name: path.stat().st_blocks * 512 for path in folder.iterdir()}


CHILD = """
import sys
from functools import partial
from mlstate import ManifestStore, StateKey
from mlstate.transport import Retries, Transports
def open_store(manifest, cache, **transports):
    store = ManifestStore(manifest, cache=cache)
    store.fetcher.transports = partial(Transports, **{"read_timeout": 10, **transports})
    store.fetcher.retries = Retries(3, first=0.01, most=0.05)
    return store
"""


def start_child(
    code: str, *arguments: object, settings: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Run code in a process of its own, which has `open_store`, like `manifest_store`."""
    command = [sys.executable, "-W", "error", "-c", CHILD + textwrap.dedent(code)]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **(settings or {})},
    )


@contextmanager
def folder_for_all() -> Iterator[Path]:
    """A temporary folder that other users can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
