"""Every object store, held against the one suite; a new one joins the list with its `Kit`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import mlstate.objects.folder
from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError, ObjectNotFoundError
from mlstate.objects import (
    ChainObjectStore,
    FolderObjectStore,
    MemoryObjectStore,
    WritableObjectStore,
    read_verified,
)
from mlstate.objects.folder import GRACE_SECONDS
from tests.conformance.object_stores import DATA, NAME, Kit, ObjectStoreSuite

DAY = 24 * 3600


def folder_kit(root: Path) -> Kit:
    store = FolderObjectStore(root)

    def plant(digest, data):
        path = store.path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        (root / "mlstate.toml").write_bytes(b"version = 1\n")
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    def leftovers():
        named = (path for path in root.glob("objects/*/*") if len(path.name) != 62)
        return [str(path) for path in (*root.glob("tmp/*"), *root.glob("trash/*"), *named)]

    opened = f"from mlstate.objects import *; target = FolderObjectStore({str(root)!r})"
    return Kit(store, store, plant, leftovers, opened)


def memory_kit() -> Kit:
    store = MemoryObjectStore()
    return Kit(store, store, store._objects.__setitem__)


def chain_kit(own: Kit, *, before=(), after=()) -> Kit:
    chain = ChainObjectStore([*before, own.store, *after])
    return Kit(chain, own.target, own.plant, own.leftovers, own.elsewhere)


KITS = {
    "folder": lambda path: folder_kit(path / "store"),
    "memory": lambda path: memory_kit(),
    "chain of a folder and memory": lambda path: chain_kit(
        folder_kit(path / "store"), after=[MemoryObjectStore()]
    ),
    "chain of memory and a folder": lambda path: chain_kit(
        folder_kit(path / "store"), before=[MemoryObjectStore()]
    ),
    "chain of absent folders and memory": lambda path: chain_kit(
        memory_kit(), before=[FolderObjectStore(path / name) for name in "ab"]
    ),
}


class TestObjectStores(ObjectStoreSuite):
    @pytest.fixture(params=list(KITS.values()), ids=list(KITS))
    def kit(self, request, tmp_path):
        return request.param(tmp_path)


@pytest.fixture
def folder(tmp_path) -> FolderObjectStore:
    return FolderObjectStore(tmp_path / "store")


def put(store, data: bytes = DATA) -> Digest:
    writer = store.writer()
    writer.put(Digest.of(data), [data])
    writer.flush()
    return Digest.of(data)


# A chain.


def test_a_chain_needs_a_store():
    with pytest.raises(ValueError, match="at least one"):
        ChainObjectStore([])


def test_a_chain_has_nothing_to_write_with():
    assert not isinstance(ChainObjectStore([MemoryObjectStore()]), WritableObjectStore)


def test_the_first_store_of_a_chain_that_has_an_object_serves_it():
    stores = [MemoryObjectStore() for _ in range(3)]
    stores[1]._objects[NAME] = b"second"
    stores[2]._objects[NAME] = b"third, longer"
    chain = ChainObjectStore(stores)
    assert chain.size(NAME) == len(b"second")
    assert chain.open(NAME).read() == b"second"


def test_a_chain_says_that_a_missing_object_belongs_in_its_last_store(tmp_path):
    folders = [FolderObjectStore(tmp_path / name) for name in "abc"]
    chain = ChainObjectStore(folders)
    assert chain.locate(NAME) == folders[-1].locate(NAME)
    put(folders[1])
    assert chain.locate(NAME) == folders[1].locate(NAME)


@pytest.mark.parametrize("ask", ["open", "size"])
def test_a_chain_goes_on_to_the_next_store_when_an_object_is_pruned_from_under_it(ask):
    class Pruned(MemoryObjectStore):
        """Has an object until someone has asked for its size, as one being pruned has."""

        def size(self, digest):
            size = super().size(digest)
            self._objects.pop(digest, None)
            return size

    pruned, own = Pruned(), MemoryObjectStore()
    for store in (pruned, own):
        store._objects[NAME] = DATA
    chain = ChainObjectStore([pruned, own])
    if ask == "open":
        assert chain.open(NAME).read() == DATA
    else:
        assert chain.size(NAME) == len(DATA)


# A folder.


def test_an_object_lies_where_the_format_says(folder):
    digest = put(folder)
    path = folder.root / "objects" / digest[:2] / digest[2:]
    assert path.read_bytes() == DATA
    assert folder.locate(digest) == str(path)
    assert sorted(item.name for item in folder.root.iterdir()) == ["mlstate.toml", "objects", "tmp"]


def test_an_object_of_a_folder_is_opened_as_a_real_file(folder):
    with folder.open(put(folder)) as file:
        assert os.fstat(file.fileno()).st_ino == folder.path(NAME).stat().st_ino
        assert not file.writable()


def test_a_terabyte_in_an_objects_place_costs_neither_memory_nor_time(folder):
    put(folder)
    folder.path(NAME).chmod(0o644)
    try:
        os.truncate(folder.path(NAME), 1 << 40)
    except OSError as error:
        pytest.skip(f"no sparse files here: {error}")
    with pytest.raises(IntegrityError, match="too large"):
        read_verified(folder, NAME, what="it", max_size=1 << 20)


def test_a_folder_in_an_objects_place_is_no_object(folder):
    put(folder, b"another")
    folder.path(NAME).mkdir(parents=True)
    assert folder.size(NAME) is None
    assert not folder.writer().reuse(NAME, folder.path(NAME).stat().st_size)
    with pytest.raises(ObjectNotFoundError):
        folder.open(NAME)


def test_other_names_beside_objects_are_left_alone(folder):
    put(folder)
    foreign = [folder.path(NAME).with_name(name) for name in (".nfs0001", NAME[2:] + "~", "x" * 62)]
    for path in foreign:
        path.write_bytes(b"?")
    put(folder)
    assert [path.read_bytes() for path in foreign] == [b"?"] * 3


@pytest.mark.parametrize("age", [2 * DAY, GRACE_SECONDS + DAY, -2 * DAY])
def test_reuse_freshens_an_object_that_is_old_or_from_the_future(folder, age):
    put(folder)
    then = time.time() - age
    os.utime(folder.path(NAME), (then, then))
    assert folder.writer().reuse(NAME, len(DATA))
    assert abs(time.time() - folder.path(NAME).stat().st_mtime) < 60


def test_reuse_leaves_a_fresh_object_alone(folder):
    put(folder)
    before = folder.path(NAME).stat()
    folder.writer().reuse(NAME, len(DATA))
    after = folder.path(NAME).stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_an_object_of_the_wrong_size_is_not_freshened(folder):
    put(folder)
    os.utime(folder.path(NAME), (1, 1))
    assert not folder.writer().reuse(NAME, len(DATA) + 1)
    assert folder.path(NAME).stat().st_mtime == 1


def test_a_put_replaces_an_object_by_an_equal_one_that_is_fresh(folder):
    put(folder)
    os.utime(folder.path(NAME), (1, 1))
    put(folder)
    assert abs(time.time() - folder.path(NAME).stat().st_mtime) < 60


def test_another_members_old_object_is_not_reused_but_can_be_replaced():
    """Only an owner may freshen a file; in a folder of a group others can replace it."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be two users")
    save = (
        "import os, sys\n"
        "import concurrent.futures.thread\n"  # of a Python that only root may read
        "from mlstate.objects import FolderObjectStore\n"
        "from mlstate.digests import Digest\n"
        "root, user, group, digest, data = sys.argv[1:]\n"
        "os.umask(0o002)\n"
        "os.setgroups([int(group)]), os.setgid(int(user)), os.setuid(int(user))\n"
        "writer = FolderObjectStore(root).writer()\n"
        "print(writer.reuse(Digest(digest), len(data)))\n"
        "writer.put(Digest(digest), [data.encode()])\n"
        "writer.flush()\n"
    )
    with tempfile.TemporaryDirectory() as shared:
        os.chown(shared, 0, 54321)
        os.chmod(shared, 0o2770)
        root = Path(shared) / "store"

        def as_user(user):
            arguments = [str(root), str(user), "54321", NAME, DATA.decode()]
            done = subprocess.run(
                [sys.executable, "-c", save, *arguments], capture_output=True, text=True
            )
            assert done.stderr == ""
            return done.stdout.strip()

        assert as_user(54322) == "False"
        path = FolderObjectStore(root).path(NAME)
        os.utime(path, (1, 1))
        assert as_user(54323) == "False"
        assert path.read_bytes() == DATA
        assert (path.stat().st_uid, path.stat().st_gid) == (54323, 54321)
        assert as_user(54322) == "True"  # fresh: no need to touch it


def test_a_first_save_is_not_refused_because_another_first_save_was_faster(folder, monkeypatch):
    """The settings and the objects of the other appear between two looks at the folder."""
    look = mlstate.objects.folder.read_small
    others = []

    def look_too_early(path):
        try:
            return look(path)
        except FileNotFoundError:
            if path.name == "mlstate.toml" and not others:
                others.append(True)
                put(FolderObjectStore(path.parent), b"the other's")
            raise

    monkeypatch.setattr(mlstate.objects.folder, "read_small", look_too_early)
    try:
        put(folder)
    except FormatError as error:
        pytest.fail(f"refused: {error}")
    assert others, "the race was not staged: the folder is looked at in another way"
    assert read_verified(folder, NAME, what="it") == DATA
