"""The whole job below a folder: everything that a store, a cache and a manifest are for.

As a program, ``python -m tests.machines.job FOLDER`` does it once. With ``--refuse CALL=ERRNO``,
which may be repeated, it does it once for each call that a shim refuses (see `shim`), each in a
folder of its own, and prints a line of JSON for each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import mlstate
from mlstate import LocalStateStore, ManifestStore, StateKey, manifest_of
from mlstate.fetch import object_mirror
from mlstate.operations.bundle import bundle, unbundle
from mlstate.operations.export import export
from mlstate.operations.lock import lock
from tests.support.models import same

BASE = StateKey.parse("pytorch.net.base")
TUNED = StateKey.parse("pytorch.net.tuned")
KEYS = [BASE, TUNED]
FILES = {"notes/a.txt": b"a note"}
MEGABYTE = 1 << 18  # float32 elements


def tensors() -> dict[str, torch.Tensor]:
    """A tensor inside the state object, one that is read, and one that is mapped."""
    generator = torch.Generator().manual_seed(0)
    return {
        "bias": torch.ones(3),
        "small": torch.randn(5000, generator=generator),
        "large": torch.randn(MEGABYTE, generator=generator),
    }


def tuned() -> dict[str, torch.Tensor]:
    """A fine-tune: one tensor differs."""
    return {**tensors(), "small": torch.arange(5000.0)}


WANTED = {BASE: tensors, TUNED: tuned}


def whole_job(folder: Path) -> None:
    """Do it all; an AssertionError or the first error if anything is not as it should be."""
    store = save(folder / "store")
    read(store)
    with small_is_large():
        views = [fetch(folder, objects) for objects in (False, True)]
    for view in views:
        read(view)
    pin(folder)
    carry(folder, store)
    write_plain(folder, store)
    take_away(folder / "store")
    for view in views:
        prune(view)
    assert left(folder) == []


def save(folder: Path) -> LocalStateStore:
    """Save, again, and over what is there."""
    store = LocalStateStore(folder)
    for key, made in WANTED.items():
        for _ in range(2):
            store.save_state_dict(made(), key, files=FILES)
    store.save_state_dict(tuned(), BASE, files=FILES, overwrite=True)
    store.save_state_dict(tensors(), BASE, files=FILES, overwrite=True)
    return LocalStateStore(folder)


def read(store: LocalStateStore | ManifestStore) -> None:
    """List, load, verify and measure."""
    assert store.get_state_keys() == KEYS
    for key, made in WANTED.items():
        assert same(store.load_state_dict(key), made())
    assert mlstate.verify(store).findings == ()
    assert len(mlstate.usage(store).states) == len(KEYS)


@contextmanager
def small_is_large() -> Iterator[None]:
    """Objects of a megabyte come in segments, too, and through a partial file."""
    before = object_mirror.LARGE
    object_mirror.LARGE = 1 << 20
    try:
        yield
    finally:
        object_mirror.LARGE = before


def fetch(folder: Path, whole: bool) -> ManifestStore:
    """Fetch all from a mirror on this machine: a copy of the store, or plain files."""
    store, manifest = LocalStateStore(folder / "store"), folder / f"mirror{whole:d}.toml"
    if whole:
        manifest_of(store, objects=[str(folder / "store")]).write(manifest)
    else:
        mlstate.Manifest({}).write(manifest)
        for key in KEYS:
            plain = export(store, key, folder / f"{key.training_id}.safetensors", overwrite=True)
            mlstate.adopt(plain, key, manifest, mirror=True, cache=folder / "adopting")
    view = ManifestStore(manifest, cache=folder / f"cache{whole:d}")
    for key in KEYS:
        view.fetch(key)
    return ManifestStore(manifest, cache=folder / f"cache{whole:d}")


def pin(folder: Path) -> None:
    """Write the digest of a state that a manifest lists without one."""
    manifest = folder / "unpinned.toml"
    text = f'version = 1\n[states."{BASE}"]\nmirrors = ["{BASE.training_id}.safetensors"]\n'
    manifest.write_text(text)
    assert list(lock(manifest, cache=folder / "locking")) == [BASE]
    view = ManifestStore(manifest, cache=folder / "locking")
    assert same(view.load_state_dict(BASE), tensors())


def carry(folder: Path, store: LocalStateStore) -> None:
    """Copy, bundle and unbundle."""
    copied = LocalStateStore(folder / "copy")
    assert len(mlstate.copy(store, copied).copied) == len(KEYS)
    read(copied)
    bundle(store, KEYS, folder / "all.tar", overwrite=True)
    unbundled = LocalStateStore(folder / "unbundled")
    assert unbundle(folder / "all.tar", unbundled) == KEYS
    read(unbundled)


def write_plain(folder: Path, store: LocalStateStore) -> None:
    """Write plain folders, and one over the other."""
    for key in KEYS:
        store.materialize(key, folder / "plain")
    assert (folder / "plain" / "notes" / "a.txt").read_bytes() == b"a note"


def take_away(folder: Path) -> None:
    """Delete a state, and prune twice: the objects that only it needs are gone, and no other."""
    store = LocalStateStore(folder)
    before = sum(1 for _ in store.own.digests())
    store.delete(TUNED)
    assert store.get_state_keys() == [BASE]
    for _ in range(2):
        store.prune(grace_seconds=-3600)
    assert sum(1 for _ in store.own.digests()) < before
    assert same(store.load_state_dict(BASE), tensors())
    assert mlstate.verify(store).findings == ()


def prune(view: ManifestStore) -> None:
    """Prune a cache of all that it has."""
    view.prune(max_size=0)
    assert view.fetcher.cache.own is not None


def left(folder: Path) -> list[str]:
    """Temporaries that lie around."""
    found = [str(path) for path in folder.glob("*/tmp/*")]
    return (
        found
        + [str(path) for path in folder.glob(".*")]
        + [str(path) for path in folder.glob("plain/.mlstate-*")]
    )


def main() -> int:
    """Do it, once or for each refusal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--refuse", action="append", default=[], metavar="CALL=ERRNO")
    options = parser.parse_args()
    warnings.simplefilter("error")
    if not options.refuse:
        whole_job(options.folder)
        return 0
    from tests.machines.shim import refusing

    for refusal in options.refuse:
        call, _, number = refusal.partition("=")
        folder = options.folder / refusal
        folder.mkdir()
        said, count = "", 0
        with refusing(call, int(number), folder) as counted:
            try:
                whole_job(folder)
            except Exception:
                said = traceback.format_exc()
            count = counted()
        print(json.dumps({"refusal": refusal, "refused": count, "error": said}), flush=True)
    return 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
