"""A folder becomes a store; one that is none, or is only read, stays as it is."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate.digests import Digest
from mlstate.errors import FormatError, ObjectNotFoundError
from mlstate.format import layout
from mlstate.objects import FolderObjectStore, read_verified
from mlstate.objects.folder import check_folder, prepare_folder
from mlstate.states import StateKey
from mlstate.stores.statefiles import FolderStateFiles

DATA = b"the bytes of an object"
NAME = Digest.of(DATA)
KEY = StateKey.parse("pytorch.resnet18.imagenet")


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """All that can be seen of a folder and may not change: names, kinds, modes, times, bytes."""
    found = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (
            status.st_ino,
            status.st_mode,
            status.st_uid,
            status.st_nlink,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            content,
        )
    return found


def put(root: Path, data: bytes = DATA) -> None:
    writer = FolderObjectStore(root).writer()
    writer.put(Digest.of(data), [data])
    writer.flush()


def is_a_store(root: Path) -> bool:
    check_folder(root)
    FolderStateFiles(root).create(KEY, b"x")
    put(root)
    return (root / "mlstate.toml").is_file() and FolderObjectStore(root).size(NAME) == len(DATA)


USES = {
    "check": check_folder,
    "prepare": prepare_folder,
    "open": FolderObjectStore,
    "create a state": lambda root: FolderStateFiles(root).create(KEY, b"x"),
    "replace a state": lambda root: FolderStateFiles(root).replace(KEY, b"x"),
}


def is_refused_untouched(root: Path, match: str | None = None) -> None:
    before = listing(root.parent)
    for use in USES.values():
        with pytest.raises(FormatError, match=match) as caught:
            use(root)
        assert str(root) in str(caught.value)
    assert listing(root.parent) == before


# An empty store.


def test_an_absent_folder_is_an_empty_store_and_looking_does_not_make_it(tmp_path):
    root = tmp_path / "deep" / "store"
    check_folder(root)
    store = FolderObjectStore(root)
    assert store.size(NAME) is None
    with pytest.raises(ObjectNotFoundError):
        store.open(NAME)
    assert list(tmp_path.iterdir()) == []
    assert is_a_store(root)


def test_an_empty_folder_is_an_empty_store_and_looking_leaves_it_empty(tmp_path):
    before = listing(tmp_path)
    check_folder(tmp_path)
    assert FolderObjectStore(tmp_path).size(NAME) is None
    assert listing(tmp_path) == before
    assert is_a_store(tmp_path)


def test_a_folder_of_foreign_files_is_an_empty_store_that_keeps_them(tmp_path):
    names = ["README.md", ".gitattributes", "sub/file", "tmp/old", "trash/old", "states.toml"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    before = listing(tmp_path)
    check_folder(tmp_path)
    assert listing(tmp_path) == before
    assert is_a_store(tmp_path)
    assert [(tmp_path / name).read_text() for name in names] == names


def test_preparing_writes_the_settings_once(tmp_path):
    root = tmp_path / "store"
    prepare_folder(root)
    assert (root / "mlstate.toml").read_bytes() == b"version = 1\nrequires = []\n"
    before = listing(root)
    prepare_folder(root)
    assert listing(root) == before


def test_many_may_prepare_at_once(tmp_path):
    racers = 8
    for n in range(20):
        root, barrier = tmp_path / str(n), Barrier(racers)

        def first_save(me, root=root, barrier=barrier):
            barrier.wait(20)
            put(root, bytes([me]))
            return FolderStateFiles(root).create(KEY, bytes([me]))

        with ThreadPoolExecutor(racers) as pool:
            assert list(pool.map(first_save, range(racers))).count(True) == 1
        assert (root / "mlstate.toml").read_bytes() == layout.NEW_SETTINGS
        assert len(list(root.glob("objects/*/*"))) == racers


# What is refused.


@pytest.mark.parametrize("names", [["states"], ["objects"], ["states", "objects", "tmp", "trash"]])
@pytest.mark.parametrize("filled", [True, False], ids=["filled", "empty"])
def test_states_or_objects_without_settings_are_refused(tmp_path, names, filled):
    root = tmp_path / "folder"
    for name in names:
        (root / name / "ab").mkdir(parents=True)
        if filled:
            (root / name / "ab" / "file").write_bytes(b"mine")
        else:
            (root / name / "ab").rmdir()
    is_refused_untouched(root, match="not a store")


REFUSED = {
    "higher": b"version = 2\n",
    "much higher": b"version = 999\nrequires = []\n",
    "requirement": b'version = 1\nrequires = ["packs"]\n',
    "encoded objects": b'version = 1\nrequires = ["encoded", "packs"]\n',
    "requirements": b'version = 1\nrequires = ["a", "b"]\n',
    "empty": b"",
    "no version": b"requires = []\n",
    "zero": b"version = 0\n",
    "negative": b"version = -1\n",
    "text": b'version = "1"\n',
    "float": b"version = 1.0\n",
    "boolean": b"version = true\n",
    "list": b"version = [1]\n",
    "requires text": b'version = 1\nrequires = "packs"\n',
    "requires table": b"version = 1\n[requires]\npacks = true\n",
    "cut short": b"version = 1\nrequires = [",
    "twice": b"version = 1\nversion = 1\n",
    "zeros": b"\0" * 100,
    "not utf-8": b"version = 1 # \xff\n",
    "utf-16": "version = 1\n".encode("utf-16"),
    "json": b'{"version": 1}',
    "date": b"version = 1\nsince = 2024-99-99\n",
    "deep": b"version = 1\nx = " + b"[" * 100_000,
    "endless": b"version = 0x" + b"f" * 10_000 + b"\n",
}


@pytest.mark.parametrize("content", list(REFUSED.values()), ids=list(REFUSED))
def test_settings_that_are_not_understood_are_refused(tmp_path, content):
    root = tmp_path / "store"
    put(root)
    FolderStateFiles(root).create(KEY, b"x")
    (root / "mlstate.toml").unlink()
    (root / "mlstate.toml").write_bytes(content)
    is_refused_untouched(root)


def test_a_newer_version_is_named_with_a_remedy(tmp_path):
    (tmp_path / "mlstate.toml").write_bytes(b'version = 7\nrequires = ["packs"]\n')
    with pytest.raises(FormatError) as caught:
        check_folder(tmp_path)
    assert caught.value.path == str(tmp_path / "mlstate.toml")
    assert "7" in str(caught.value)
    assert "packs" in str(caught.value)
    assert "newer mlstate" in str(caught.value.remedy)


@settings(deadline=None, max_examples=50)
@given(content=st.binary(max_size=50) | st.text(max_size=50).map(lambda text: text.encode()))
def test_any_garbage_is_a_format_error(content):
    with pytest.raises(FormatError):
        layout.check_settings(content + b"\n=", "mlstate.toml")


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    root = tmp_path / "store"
    root.write_bytes(b"mine")
    is_refused_untouched(root, match="folder")


def test_a_store_that_became_newer_is_not_written_any_more(tmp_path):
    root = tmp_path / "store"
    put(root)
    store = FolderObjectStore(root)
    (root / "mlstate.toml").unlink()
    (root / "mlstate.toml").write_bytes(b"version = 2\n")
    before = listing(root)
    with pytest.raises(FormatError):
        store.writer()
    with pytest.raises(FormatError):
        FolderStateFiles(root).create(KEY, b"x")
    assert listing(root) == before


# What is kept.


@pytest.mark.parametrize(
    "content",
    [
        b"version = 1\n",
        b"# ours\nversion=1\nrequires=[]\ncolour = 'green'\n[owner]\nname = 'me'\n",
        b"version = 1\r\nrequires = []\r\n",
    ],
)
def test_other_settings_are_ignored_and_kept(tmp_path, content):
    (tmp_path / "mlstate.toml").write_bytes(content)
    before = (tmp_path / "mlstate.toml").stat()
    assert is_a_store(tmp_path)
    after = (tmp_path / "mlstate.toml").stat()
    assert (tmp_path / "mlstate.toml").read_bytes() == content
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_copy_of_a_store_is_a_store(tmp_path):
    import shutil

    assert is_a_store(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two", ignore=shutil.ignore_patterns("tmp"))
    assert read_verified(FolderObjectStore(tmp_path / "two"), NAME, what="it") == DATA
    assert FolderStateFiles(tmp_path / "two").read(KEY) == b"x"
    put(tmp_path / "two", b"more")


# Reading.


def read_everything(root: Path) -> None:
    store, files = FolderObjectStore(root), FolderStateFiles(root)
    check_folder(root)
    assert read_verified(store, NAME, what="it") == DATA
    assert store.size(NAME) == len(DATA)
    assert store.size(Digest.of(b"absent")) is None
    with pytest.raises(ObjectNotFoundError):
        store.open(Digest.of(b"absent"))
    assert store.locate(NAME)
    assert list(files.keys()) == list(files.keys(KEY.state_type)) == [KEY]
    assert files.read(KEY) == b"x"
    assert files.case_variant(KEY) is None
    assert files.remove(StateKey.parse("pytorch.resnet18.absent")) is False


def test_reading_a_store_touches_nothing(tmp_path):
    assert is_a_store(tmp_path)
    for path in [tmp_path, *tmp_path.rglob("*")]:
        os.utime(path, (1, 1))
    (tmp_path / "tmp").rmdir()  # which reading does not need
    before = listing(tmp_path)
    read_everything(tmp_path)
    assert listing(tmp_path) == before


@pytest.fixture
def read_only(tmp_path):
    """A store seen through a mount that nobody can write to."""
    root, mount = tmp_path / "store", tmp_path / "mount"
    assert is_a_store(root)
    mount.mkdir()
    for command in (
        ["mount", "--bind", root, mount],
        ["mount", "-o", "remount,ro,bind", mount],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            subprocess.run(["umount", "--lazy", mount], capture_output=True)
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)


def test_a_store_on_a_read_only_mount_can_be_read(read_only):
    with pytest.raises(OSError, match="Read-only"):
        (read_only / "probe").touch()
    read_everything(read_only)


def test_a_store_on_a_read_only_mount_cannot_be_written_and_says_so(read_only):
    before = listing(read_only)
    writer = FolderObjectStore(read_only).writer()
    assert writer.reuse(NAME, len(DATA))
    with pytest.raises(OSError, match="Read-only"):
        writer.put(Digest.of(b"new"), [b"new"])
    with pytest.raises(OSError, match="Read-only"):
        FolderStateFiles(read_only).replace(KEY, b"y")
    with pytest.raises(OSError, match="Read-only"):
        FolderStateFiles(read_only).remove(KEY)
    assert listing(read_only) == before


def test_an_object_that_a_pruning_holds_in_the_trash_is_read(tmp_path):
    """A pruning beside a save moves what it takes for unnamed away for a moment."""
    put(tmp_path)
    objects, trash = FolderObjectStore(tmp_path), tmp_path / layout.TRASH
    trash.mkdir(exist_ok=True)
    moved = trash / f"{NAME}.{'0' * 32}"
    objects.path(NAME).rename(moved)
    before = listing(tmp_path)
    assert read_verified(objects, NAME, what="an object") == DATA
    assert objects.size(NAME) is None  # a save puts it again
    assert listing(tmp_path) == before
    moved.rename(trash / f"{NAME}{layout.DAMAGED_SUFFIX}.{'0' * 32}")
    with pytest.raises(ObjectNotFoundError):  # what was set aside as damaged is not read
        objects.open(NAME)


def test_a_store_that_requires_encoded_objects_is_read(tmp_path):
    assert is_a_store(tmp_path)
    (tmp_path / "mlstate.toml").unlink()
    (tmp_path / "mlstate.toml").write_bytes(b'version = 1\nrequires = ["encoded"]\n')
    read_everything(tmp_path)
    put(tmp_path, b"more")
    assert (tmp_path / "mlstate.toml").read_bytes() == b'version = 1\nrequires = ["encoded"]\n'
