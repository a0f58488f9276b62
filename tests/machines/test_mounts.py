"""The whole job on real mounts, and on disks that are read-only or full."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import mlstate
from mlstate import LocalStateStore, ManifestStore, StateKey, manifest_of
from mlstate.errors import FormatError, MlstateError, StateExistsError, StateNotFoundError
from mlstate.operations.bundle import bundle
from mlstate.operations.doctor.traits import probe
from tests.machines.job import (
    BASE,
    KEYS,
    TUNED,
    read,
    save,
    take_away,
    tensors,
    tuned,
    whole_job,
)
from tests.machines.mounts import MOUNTS, ext4, tmpfs, vfat
from tests.support.models import same

pytestmark = pytest.mark.machines


@pytest.mark.parametrize("kind", MOUNTS)
def test_the_whole_job_is_done_on_a_mount(tmp_path: Path, kind: str):
    with MOUNTS[kind](tmp_path) as mount:
        whole_job(mount)


def test_layers_below_stay_as_they_are(tmp_path: Path):
    """A store in the image of a container, which is added to, pruned and mended above it."""
    with MOUNTS["overlay"](tmp_path) as mount:
        lower = tmp_path / "memory" / "lower"
        save(lower / "store")
        before = sorted(lower.rglob("*"))
        store = LocalStateStore(mount / "store")
        read(store)
        store.save_state_dict(tensors(), TUNED, overwrite=True)
        take_away(mount / "store")
        whole_job(mount / "other")
        assert sorted(lower.rglob("*")) == before
        read(LocalStateStore(lower / "store"))


def test_on_fat_keys_that_differ_in_case_are_refused(tmp_path: Path):
    with vfat(tmp_path) as mount:
        assert not probe(mount).case_sensitive
        store = LocalStateStore(mount / "store")
        store.save_state_dict(tensors(), BASE)
        other = StateKey.parse("pytorch.net.BASE")
        for overwrite in (False, True):
            with pytest.raises(StateExistsError, match="case"):
                store.save_state_dict(tuned(), other, overwrite=overwrite)
        assert not store.exists(other)
        for ask in (store.delete, store.load_state_dict, store.digest):
            with pytest.raises(StateNotFoundError):
                ask(other)
        assert store.get_state_keys() == [BASE]
        assert same(store.load_state_dict(BASE), tensors())


@pytest.mark.parametrize("name", ["what?.txt", "a|b", "notes/a*"])
def test_a_name_that_fat_forbids_is_an_error_that_names_it(tmp_path: Path, name: str):
    """The store takes it, for it names files by their bytes; a plain folder there cannot."""
    with vfat(tmp_path) as mount:
        store = LocalStateStore(mount / "store")
        store.save_state_dict(tensors(), BASE, files={name: b"x", "b.txt": b"y"})
        assert store.files(BASE)[name] == b"x"
        with pytest.raises(FormatError, match="file system cannot hold") as caught:
            store.materialize(BASE, mount / "plain")
        assert caught.value.path == name
        assert not (mount / "plain").exists()


def test_names_that_differ_in_case_do_not_replace_each_other_on_fat(tmp_path: Path):
    with vfat(tmp_path) as mount:
        store = LocalStateStore(mount / "store")
        store.save_state_dict(tensors(), BASE, files={"Read.me": b"x", "read.me": b"y"})
        assert dict(store.files(BASE)) == {"Read.me": b"x", "read.me": b"y"}
        with pytest.raises(FormatError, match="file system cannot hold"):
            store.materialize(BASE, mount / "plain")
        assert not (mount / "plain").exists()
        store.materialize(BASE, tmp_path / "plain")
        assert (tmp_path / "plain" / "Read.me").read_bytes() == b"x"


def test_a_read_only_disk_is_read_and_not_written(tmp_path: Path):
    with ext4(tmp_path) as disk:
        store = save(disk / "store")
        manifest_of(store, objects=["store"]).write(disk / "weights.toml")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        store = LocalStateStore(disk / "store")
        read(store)
        view = ManifestStore(disk / "weights.toml", cache=disk / "store")
        view.fetch(BASE)
        assert same(view.load_state_dict(TUNED), tuned())
        bundle(view, KEYS, tmp_path / "all.tar")
        mlstate.copy(store, LocalStateStore(tmp_path / "copy"))
        for change in (
            lambda: store.save_state_dict(tensors(), StateKey.parse("pytorch.net.new")),
            lambda: store.delete(BASE),
            lambda: store.prune(grace_seconds=-1),
            lambda: view.prune(max_size=0),
            lambda: mlstate.copy(LocalStateStore(tmp_path / "copy"), LocalStateStore(disk / "to")),
            lambda: bundle(store, KEYS, disk / "all.tar"),
            lambda: store.materialize(BASE, disk / "plain"),
        ):
            with pytest.raises((OSError, MlstateError)) as caught:
                change()
            assert "ead-only" in str(caught.value)
        read(store)


# A full disk.


class Disk:
    """A small disk, whose room a file takes."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        self._ballast = mount / "ballast"

    def leave(self, room: int) -> None:
        """Leave so many bytes."""
        self.free()
        found = os.statvfs(self.mount)
        with self._ballast.open("wb") as file:
            file.write(bytes(max(0, found.f_bavail * found.f_bsize - room)))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with tmpfs(tmp_path, 12 << 20) as mount:
        yield Disk(mount)


ROOMS = [4096 * pages for pages in (0, 1, 2, 3, 5, 8, 12, 20, 60, 150, 290, 400, 600, 1100)]


def is_full(error: BaseException | None) -> bool:
    """Whether an error says that the disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return True
        if "No space left" in str(error):
            return True
        error = error.__cause__
    return False


def attempt(disk: Disk, room: int, work) -> bool:
    """Whether something is done with so much room; otherwise the disk was full."""
    disk.leave(room)
    try:
        work()
    except (OSError, MlstateError) as error:
        if not is_full(error):
            raise
        return False
    return True


def test_a_save_onto_a_full_disk_leaves_nothing_half_done(disk: Disk):
    folder = disk.mount / "store"
    store = LocalStateStore(folder)
    store.save_state_dict(tensors(), BASE)
    done = []
    for room in ROOMS:
        done.append(attempt(disk, room, lambda: store.save_state_dict(tuned(), TUNED)))
        assert LocalStateStore(folder).get_state_keys() == (KEYS if done[-1] else [BASE])
        assert mlstate.verify(store).findings == ()
        assert list(folder.glob("tmp/*")) == []
        if done[-1]:
            store.delete(TUNED)
        disk.free()
        for _ in range(2):
            store.prune(grace_seconds=-3600)
    assert done[0] is False
    assert done[-1] is True
    store.save_state_dict(tuned(), TUNED)
    assert same(store.load_state_dict(TUNED), tuned())


@pytest.mark.parametrize("whole", [True, False])
def test_a_fetch_onto_a_full_disk_goes_on_when_there_is_room(
    disk: Disk, tmp_path: Path, whole: bool
):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict(tensors(), BASE)
    manifest = tmp_path / "weights.toml"
    if whole:
        manifest_of(store, objects=["store"]).write(manifest)
    else:
        mlstate.export(store, BASE, tmp_path / "a.safetensors")
        mlstate.adopt(
            tmp_path / "a.safetensors", BASE, manifest, mirror=True, cache=tmp_path / "adopting"
        )
    done = []
    for room in ROOMS:
        cache = disk.mount / f"cache{room}"
        view = ManifestStore(manifest, cache=cache)
        done.append(attempt(disk, room, partial(view.fetch, BASE)))
        disk.free()
        view = ManifestStore(manifest, cache=cache)
        for _ in range(2):
            view.fetch(BASE)
        assert mlstate.verify(view).findings == ()
        view.prune(max_size=0)
        subprocess.run(["rm", "-r", cache], check=True)
    assert done[0] is False
    assert done[-1] is True


@pytest.mark.parametrize("work", ["bundle", "export", "materialize", "lock", "write"])
def test_nothing_half_written_has_a_name(disk: Disk, tmp_path: Path, work: str):
    store = save(tmp_path / "store")
    manifest = disk.mount / "weights.toml"
    works = {
        "bundle": lambda: bundle(store, KEYS, disk.mount / "all.tar"),
        "export": lambda: mlstate.export(store, BASE, disk.mount / "base.safetensors"),
        "materialize": lambda: store.materialize(BASE, disk.mount / "plain"),
        "lock": lambda: mlstate.lock(manifest, cache=tmp_path / "cache"),
        "write": lambda: manifest_of(store).write(manifest),
    }
    mlstate.export(store, BASE, tmp_path / "base.safetensors")
    done = []
    for room in ROOMS:
        disk.free()
        if work == "lock":
            mirror = tmp_path / "base.safetensors"
            manifest.write_text(f'version = 1\n[states."{BASE}"]\nmirrors = ["{mirror}"]\n')
        before = {path: path.read_bytes() for path in disk.mount.glob("*") if path.is_file()}
        done.append(attempt(disk, room, works[work]))
        disk.free()
        if not done[-1]:
            found = {path: path.read_bytes() for path in disk.mount.glob("*") if path.is_file()}
            assert found == before
            assert not list(disk.mount.rglob(".mlstate*"))
        else:
            for path in disk.mount.iterdir():
                subprocess.run(["rm", "-r", path], check=True)
    assert done[-1] is True
    assert False in done or work in ("lock", "write")
