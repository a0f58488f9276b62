"""In the folder of a group another member puts anything where a file of ours is expected."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlstate import files
from mlstate.digests import Digest
from mlstate.errors import FormatError
from mlstate.files import UnfitFileError, open_own, read_file
from mlstate.format import layout
from mlstate.objects import FolderObjectStore
from mlstate.objects import partial as partials
from mlstate.objects.cache import Cache, note_use, one_at_a_time, read_roots, write_root
from mlstate.objects.durable import make_folders, read_small
from mlstate.objects.receiving import Receiver
from tests.support.planting import KINDS, Victim, plant, time_limit

NAME = "ab" * 32
DATA = random.Random(0).randbytes(20_000)
DIGEST = Digest.of(DATA)
STRANGER = 12345

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    with time_limit(20):
        yield


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    watched = Victim(tmp_path / "home")
    yield watched
    watched.check()


@pytest.fixture
def store(tmp_path: Path) -> FolderObjectStore:
    return FolderObjectStore(tmp_path / "cache")


@pytest.fixture
def receiver(store: FolderObjectStore) -> Receiver:
    return Receiver(store, durable=False)


def tmp(store: FolderObjectStore, ending: str) -> Path:
    return store.root / layout.TEMPORARIES / f"{NAME}{ending}"


def read(store: FolderObjectStore) -> bytes:
    with store.open(DIGEST) as file:
        return file.read()


def bring(receiver: Receiver) -> partials.Partial:
    """Receive the object by way of a partial one."""
    partial = receiver.partial(NAME, len(DATA))
    assert partial.missing() == [(0, len(DATA))]
    partial.write(0, DATA)
    partial.mark(0, len(DATA))
    assert partial.digest() == DIGEST
    return partial


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "ending", [layout.PARTIAL_SUFFIX, f"{layout.PARTIAL_SUFFIX}{layout.DONE_SUFFIX}"]
)
def test_a_partial_object_is_written_into_a_file_of_ones_own(
    store: FolderObjectStore, receiver: Receiver, victim: Victim, kind: str, ending: str
):
    planted = tmp(store, ending)
    plant(kind, planted, victim)
    descriptors = len(os.listdir("/proc/self/fd"))
    receiver.publish_partial(bring(receiver), DIGEST)
    assert read(store) == DATA
    assert os.listdir(store.root / layout.TEMPORARIES) == [planted.name]
    assert len(os.listdir("/proc/self/fd")) == descriptors


@as_root
@pytest.mark.parametrize("mode", [0o644, 0o666])
def test_a_partial_object_of_another_member_is_not_continued(
    store: FolderObjectStore, receiver: Receiver, mode: int
):
    path = tmp(store, layout.PARTIAL_SUFFIX)
    bring(receiver).close()
    path.chmod(mode)
    os.chown(path, STRANGER, STRANGER)
    with os.fdopen(os.open(path, os.O_RDWR), "rb+") as theirs:
        ours = receiver.partial(NAME, len(DATA))
        assert not ours.resumed
        assert ours.path != path
        ours.discard()
        assert theirs.read() == DATA


def test_nobody_else_may_write_into_a_partial_object(receiver: Receiver):
    previous = os.umask(0)
    try:
        partial = receiver.partial(NAME, len(DATA))
    finally:
        os.umask(previous)
    assert partial.path.stat().st_mode & 0o7777 == 0o644
    partial.discard()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_is_a_file_and_without_one_work_goes_on(
    store: FolderObjectStore, receiver: Receiver, victim: Victim, kind: str
):
    plant(kind, tmp(store, layout.LOCK_SUFFIX), victim)
    with one_at_a_time(tmp(store, layout.LOCK_SUFFIX), patience=5) as alive:
        alive()


@pytest.mark.parametrize("kind", KINDS)
def test_a_staged_object_is_a_file(
    store: FolderObjectStore, receiver: Receiver, victim: Victim, kind: str
):
    plant(kind, receiver.staged_path(NAME), victim)
    assert receiver.staged(NAME, victim.file.stat().st_size) is None
    with receiver.arriving() as arriving:
        arriving.write(DATA)
        staged = arriving.stage(NAME)
    receiver.sync_staged(staged)
    receiver.publish_staged(staged)
    assert read(store) == DATA
    other = receiver.stage_partial(bring(receiver), NAME, DIGEST)
    assert other.digest == DIGEST
    other.discard()


@pytest.mark.parametrize("kind", ["link", "zero", "pipe", "loop", "dangling"])
def test_a_staged_object_that_another_member_replaced_is_not_taken(
    store: FolderObjectStore, receiver: Receiver, victim: Victim, kind: str
):
    with receiver.arriving() as arriving:
        arriving.write(DATA)
        staged = arriving.stage(NAME)
    plant(kind, staged.path, victim)
    with pytest.raises(Exception, match="removed"):
        receiver.sync_staged(staged)


@pytest.mark.parametrize("kind", [*KINDS, "file"])
@pytest.mark.parametrize("place", ["object", "folder"])
def test_what_is_no_object_is_missing_and_is_replaced(
    store: FolderObjectStore, receiver: Receiver, victim: Victim, kind: str, place: str
):
    receiver.publish_partial(bring(receiver), DIGEST)
    path = store.path(DIGEST)
    plant(kind, path if place == "object" else path.parent, victim)
    if kind not in ("link", "hard link", "file"):
        assert store.size(DIGEST) is None
        with pytest.raises(FileNotFoundError):
            store.open(DIGEST)
    assert DIGEST not in store.digests() or (place, kind) in [
        ("object", "hard link"),
        ("object", "file"),
    ]
    later = Receiver(store, durable=False)
    later.publish_partial(bring(later), DIGEST)
    assert read(store) == DATA
    assert list(store.digests()) == [DIGEST]


@pytest.mark.parametrize("kind", KINDS)
def test_a_save_replaces_what_is_no_object(store: FolderObjectStore, victim: Victim, kind: str):
    writer = store.writer()
    writer.put(DIGEST, [DATA])
    plant(kind, store.path(DIGEST), victim)
    assert not writer.reuse(DIGEST, len(DATA))
    writer.put(DIGEST, [DATA])
    assert read(store) == DATA
    plant(kind, store.path(DIGEST), victim)
    assert store.writer().add([DATA]) == (DIGEST, True)


def test_a_link_to_an_equal_object_is_not_touched_by_a_save(
    store: FolderObjectStore, tmp_path: Path
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(DATA)
    os.utime(elsewhere, (10**9, 10**9))
    writer = store.writer()
    store.path(DIGEST).parent.mkdir(parents=True)
    store.path(DIGEST).symlink_to(elsewhere)
    assert not writer.reuse(DIGEST, len(DATA))
    assert elsewhere.stat().st_mtime == 10**9
    assert read(store) == DATA  # it may be read: whatever is read is verified


def test_an_object_is_not_listed_under_another_name_by_a_link(store: FolderObjectStore):
    """Pruning would take a live object away as one that no state names."""
    store.writer().put(DIGEST, [DATA])
    folder = store.path(DIGEST).parent
    folder.with_name("ff" if folder.name != "ff" else "fe").symlink_to(folder.name)
    assert list(store.digests()) == [DIGEST]


@as_root
@pytest.mark.parametrize("name", [layout.OBJECTS, layout.TEMPORARIES, layout.TRASH, layout.ROOTS])
def test_a_folder_that_another_member_made_a_link_is_not_written_into(
    store: FolderObjectStore, receiver: Receiver, victim: Victim, name: str
):
    folder = store.root / name
    if folder.exists():
        folder.rmdir()
    folder.symlink_to(victim.folder)
    os.lchown(folder, STRANGER, STRANGER)
    with pytest.raises(FormatError, match="no folder that a store may write into"):
        make_folders(store.root, folder / "ab" if name == layout.OBJECTS else folder)
    writes = {
        layout.OBJECTS: lambda: receiver.publish_partial(bring(receiver), DIGEST),
        layout.TEMPORARIES: lambda: receiver.partial(NAME, len(DATA)),
        layout.ROOTS: lambda: write_root(store.root, DIGEST, "pytorch.net.a", []),
        layout.TRASH: lambda: Cache([store]).set_aside(DIGEST),
    }
    with pytest.raises((FormatError, UnfitFileError)):
        writes[name]()


def test_a_part_of_a_store_may_be_a_link_of_ones_own(store: FolderObjectStore, tmp_path: Path):
    store.writer()
    (tmp_path / "disk").mkdir()
    (store.root / layout.OBJECTS).symlink_to(tmp_path / "disk")
    store.writer().put(DIGEST, [DATA])
    assert read(store) == DATA
    assert list(store.digests()) == [DIGEST]


# Notes.


@pytest.mark.parametrize("kind", KINDS)
def test_a_note_of_a_use_is_a_file(store: FolderObjectStore, victim: Victim, kind: str):
    write_root(store.root, DIGEST, "pytorch.net.a", [])
    path = store.root / layout.ROOTS / DIGEST
    plant(kind, path, victim)
    note_use(store.root, DIGEST, "pytorch.net.a", [])
    write_root(store.root, DIGEST, "pytorch.net.a", [])
    assert [root.digest for root in read_roots(store.root)] == [DIGEST]


def test_a_use_is_noted_by_a_clock_that_goes_behind(
    store: FolderObjectStore, monkeypatch: pytest.MonkeyPatch
):
    """Else what is used every day looks as if it was not, by the clock that it is evicted by."""
    write_root(store.root, DIGEST, "pytorch.net.a", [])
    path = store.root / layout.ROOTS / DIGEST
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
    monkeypatch.setattr(time, "time", lambda: hour_ago - 24 * 3600)
    note_use(store.root, DIGEST, "pytorch.net.a", [])
    assert path.stat().st_mtime > hour_ago + 1800


@pytest.mark.parametrize("kind", [*KINDS, "file"])
def test_a_folder_of_notes_is_a_folder(store: FolderObjectStore, victim: Victim, kind: str):
    write_root(store.root, DIGEST, "pytorch.net.a", [])
    plant(kind, store.root / layout.ROOTS, victim)
    assert list(read_roots(store.root)) == []
    note_use(store.root, DIGEST, "pytorch.net.a", [])
    if (store.root / layout.ROOTS).is_symlink():
        with pytest.raises(FormatError):
            write_root(store.root, DIGEST, "pytorch.net.a", [])
    else:
        write_root(store.root, DIGEST, "pytorch.net.a", [])  # what is in the way is moved to trash/
        assert [root.digest for root in read_roots(store.root)] == [DIGEST]
    victim.check()


# The opener itself.


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_file_of_ones_own_is_opened_to_be_written(tmp_path: Path, victim: Victim, kind: str):
    plant(kind, tmp_path / "file", victim)
    with pytest.raises(UnfitFileError, match="not a regular file, but"):
        open_own(tmp_path / "file")


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"link", "hard link", "dangling"}))
def test_only_a_file_is_read(tmp_path: Path, victim: Victim, kind: str):
    plant(kind, tmp_path / "file", victim)
    with pytest.raises(UnfitFileError, match="not a regular file, but"):
        read_file(tmp_path / "file", 100)
    with pytest.raises(FormatError, match="no text of a store"):
        read_small(tmp_path / "file")


def test_no_more_is_read_than_may_be(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(UnfitFileError, match="more than 4 bytes"):
        read_file(tmp_path / "file", 4)


def test_what_is_too_large_is_refused_before_a_byte_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A hole of a terabyte is made by one call; a manifest may have 256 MiB."""
    with open(tmp_path / "file", "wb") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr(files, "_PIECE", 1 << 62)  # a read of so much is a MemoryError
    with pytest.raises(UnfitFileError, match="more than 268435456 bytes"):
        read_file(tmp_path / "file", 256 << 20)
