"""Files are written whole or not at all, durable, exclusive, with the modes of the umask."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from mlstate.digests import Digest
from mlstate.errors import IntegrityError
from mlstate.objects import FolderObjectStore, durable
from mlstate.objects.durable import Publish, make_folders, write_file, write_in_store

DATA = b"content"
NAME = Digest.of(DATA)
WAYS = ["link", "renameat2", "claim"]


def files(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def digest_of(path: Path) -> str:
    """The digest that an object's path names."""
    return path.parent.name + path.name


def unsupported(*_, **__):
    raise PermissionError(errno.EPERM, "no hard links here")


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Each of the three ways to create exclusively, by taking the better ones away."""
    if request.param != "link":
        monkeypatch.setattr(os, "link", unsupported)
    if request.param == "claim":
        monkeypatch.setattr(durable, "libc", object)
    return request.param


def run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@contextmanager
def mounted(*options: str, on: Path):
    """A real mount, for those who may."""
    on.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(on)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield on
    finally:
        subprocess.run(["umount", "--lazy", str(on)], check=True)


# What is written.


@pytest.mark.parametrize("publish", Publish)
@pytest.mark.parametrize("parts", [[], [b""], [DATA], [b"a", bytearray(b"b"), memoryview(b"c")]])
def test_the_parts_follow_each_other(tmp_path, publish, parts):
    root = tmp_path / "new" / "root"
    assert write_in_store(root, "a/b/c", parts, publish=publish) is True
    assert files(root) == {"a/b/c": b"".join(parts)}


def test_replace_replaces(tmp_path):
    for data in (b"first", b"second, longer", b""):
        assert write_in_store(tmp_path, "name", [data])
        assert files(tmp_path) == {"name": data}


def test_a_new_file_is_another_file_so_that_who_has_the_old_one_open_keeps_it(tmp_path):
    write_in_store(tmp_path, "name", [b"old"])
    with open(tmp_path / "name", "rb") as file:
        write_in_store(tmp_path, "name", [b"new"])
        assert file.read() == b"old"


def test_readers_see_the_old_content_or_the_new(tmp_path):
    contents = [b"a" * 300_000, b"b" * 100]
    write_in_store(tmp_path, "name", [contents[0]])
    done, seen = Event(), []

    def read():
        while not done.is_set():
            seen.append((tmp_path / "name").read_bytes())

    reader = Thread(target=read)
    reader.start()
    for n in range(100):
        write_in_store(tmp_path, "name", [contents[n % 2]])
    done.set()
    reader.join()
    assert set(seen) <= set(contents)
    assert seen


def test_temporaries_are_unique_and_in_the_folder_for_them(tmp_path, monkeypatch):
    opened, really_open = [], os.open

    def spy(path, flags, *rest, **options):
        if flags & os.O_CREAT:
            opened.append((str(path), flags))
        return really_open(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", spy)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: write_in_store(tmp_path, "name", [DATA]), range(60)))
    assert len({path for path, _ in opened}) == len(opened) == 60
    assert {os.path.dirname(path) for path, _ in opened} == {str(tmp_path / "tmp")}
    assert all(flags & os.O_EXCL for _, flags in opened)


# Modes.

WRITE_A_STORE = """
import json, os, stat, sys
from pathlib import Path
root, umask = Path(sys.argv[1]), int(sys.argv[2])
os.umask(umask)
from mlstate.digests import Digest
from mlstate.objects import FolderObjectStore
from mlstate.objects.durable import make_folders, write_file, write_in_store
from mlstate.objects.durable import Publish
writer = FolderObjectStore(root).writer()
writer.put(Digest.of(b"x"), [b"x"])
writer.flush()
write_in_store(root, "states/a/b/c.toml", [b""], publish=Publish.CREATE)
write_file(root / "writable", [b"x"], temporary=root / "tmp/t", read_only=False)
assert os.umask(0) == umask, "the umask was changed"
found = {}
for path in [root, *root.rglob("*")]:
    status = path.stat()
    kind = "folder" if path.is_dir() else path.name if path.name == "writable" else "file"
    found.setdefault(kind, []).append([stat.S_IMODE(status.st_mode), status.st_gid])
print(json.dumps(found))
"""


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o027, 0o077], ids=oct)
def test_modes_follow_the_umask_and_files_are_read_only(tmp_path, umask):
    found = json.loads(run(WRITE_A_STORE, tmp_path / "store", umask))
    assert {mode for mode, _ in found["file"]} == {0o444 & ~umask}
    assert {mode for mode, _ in found["folder"]} == {0o777 & ~umask}
    assert {mode for mode, _ in found["writable"]} == {0o666 & ~umask}
    assert len(found["file"]) == 3
    assert len(found["folder"]) == 7


def test_a_setgid_folder_hands_its_group_down(tmp_path):
    group = 54321 if os.geteuid() == 0 else os.getgid()
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, -1, group)
    shared.chmod(0o2775)
    if not shared.stat().st_mode & stat.S_ISGID:
        pytest.skip("this file system takes no setgid")
    found = json.loads(run(WRITE_A_STORE, shared / "store", 0o002))
    assert {tuple(each) for each in found["folder"]} == {(0o2775, group)}
    assert {tuple(each) for each in found["file"]} == {(0o444, group)}


# Exclusive creation.


def test_what_bears_the_name_stays(tmp_path, way):
    assert write_in_store(tmp_path, "name", [b"first"], publish=Publish.CREATE) is True
    before = (tmp_path / "name").stat()
    assert write_in_store(tmp_path, "name", [b"second"], publish=Publish.CREATE) is False
    assert files(tmp_path) == {"name": b"first"}
    after = (tmp_path / "name").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert after.st_nlink == 1
    assert stat.S_IMODE(after.st_mode) & 0o222 == 0


def test_even_an_empty_file_or_a_dangling_link_bears_a_name(tmp_path, way):
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("empty", "link"):
        assert write_in_store(tmp_path, name, [DATA], publish=Publish.CREATE) is False
    assert files(tmp_path) == {"empty": b""}
    assert os.readlink(tmp_path / "link") == "nowhere"


@pytest.mark.parametrize("way", ["link", "claim"])
def test_a_creation_that_fails_leaves_the_name_free(tmp_path, way, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as disk:
        disk.setattr(os, "link", full if way == "link" else unsupported)
        disk.setattr(os, "replace", full)
        disk.setattr(durable, "libc", object)
        with pytest.raises(OSError, match="no space left"):
            write_in_store(tmp_path, "name", [DATA], publish=Publish.CREATE)
    assert files(tmp_path) == {}
    assert write_in_store(tmp_path, "name", [DATA], publish=Publish.CREATE) is True


RACE = """
import errno, os, sys, time
from pathlib import Path
from mlstate.objects.durable import write_in_store
from mlstate.objects import durable
from mlstate.objects.durable import Publish
way, root, me, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
def unsupported(*_, **__):
    raise PermissionError(errno.EPERM, "no hard links here")
if way != "link":
    os.link = unsupported
if way == "claim":
    durable.libc = object
print("ready", flush=True)
begin = float(input())
for n in range(rounds):
    while time.monotonic() < begin + n * 0.004:
        pass
    won = write_in_store(root, f"states/{n}", [bytes([me]) * 30_000], publish=Publish.CREATE)
    print(int(won))
"""


@pytest.mark.parametrize("way", WAYS)
def test_of_racing_processes_exactly_one_wins(tmp_path, way):
    racers, rounds = 4, 60
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, way, str(tmp_path), str(me), str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for me in range(racers)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * racers
    begin = f"{time.monotonic() + 0.05}\n"
    outputs = _finish(processes, begin)
    won = [[int(line) for line in output.split()] for output in outputs]
    assert [process.returncode for process in processes] == [0] * racers
    for n in range(rounds):
        winners = [me for me in range(racers) if won[me][n]]
        assert len(winners) == 1, f"round {n}: {winners}"
        path = tmp_path / "states" / str(n)
        assert path.read_bytes() == bytes(winners) * 30_000
        assert path.stat().st_nlink == 1
    assert list((tmp_path / "tmp").iterdir()) == []


def _finish(processes, begin):
    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(lambda one: one.communicate(begin, timeout=50)[0], processes))


# Errors.


class Failing(Sequence):
    """Parts of which one cannot be had."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index == 1:
            raise RuntimeError("lost")
        if index > 1:
            raise IndexError
        return b"x"


def failing_parts(monkeypatch):
    return Failing(), RuntimeError


def failing_fsync(monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "fsync", broken)
    return [DATA], OSError


def failing_write(monkeypatch):
    really_write = os.write

    def full(descriptor, data):
        if len(data) < 4:
            raise OSError(errno.ENOSPC, "lost")
        return really_write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", full)
    return [DATA], OSError


def failing_publication(monkeypatch):
    def broken(*_, **__):
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "replace", broken)
    monkeypatch.setattr(os, "link", broken)
    return [DATA], OSError


def interrupted(monkeypatch):
    def interrupt(descriptor, data):
        raise KeyboardInterrupt("lost")

    monkeypatch.setattr(os, "write", interrupt)
    return [DATA], KeyboardInterrupt


FAILURES = [failing_parts, failing_fsync, failing_write, failing_publication, interrupted]


@pytest.mark.parametrize("publish", Publish)
@pytest.mark.parametrize("failure", FAILURES)
def test_after_an_error_nothing_is_left_and_nothing_was_changed(
    tmp_path, monkeypatch, failure, publish
):
    write_in_store(tmp_path, "other", [b"before"])
    if publish is Publish.REPLACE:
        write_in_store(tmp_path, "name", [b"before"])
    before = files(tmp_path)
    with monkeypatch.context() as broken:
        parts, error = failure(broken)
        with pytest.raises(error, match="lost"):
            write_in_store(tmp_path, "name", parts, publish=publish)
    assert files(tmp_path) == before
    assert write_in_store(tmp_path, "name", [DATA], publish=publish)


def test_short_writes_are_continued(tmp_path, monkeypatch):
    really_write = os.write
    monkeypatch.setattr(os, "write", lambda to, data: really_write(to, data[:7]))
    data = bytes(range(100))
    write_in_store(tmp_path, "name", [data[:60], data[60:]], digest=Digest.of(data))
    assert files(tmp_path) == {"name": data}


def test_a_missing_folder_is_an_error_that_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "missing" / "name", [DATA], temporary=tmp_path / "t")
    assert files(tmp_path) == {}


def test_a_temporary_that_is_there_already_belongs_to_someone_else(tmp_path):
    (tmp_path / "t").write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "name", [DATA], temporary=tmp_path / "t")
    assert files(tmp_path) == {"t": b"theirs"}


FILL = """
import errno, resource, sys
from pathlib import Path
from mlstate.digests import Digest
from mlstate.objects import FolderObjectStore
store, limit = FolderObjectStore(sys.argv[1]), int(sys.argv[2])
writer = store.writer()
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
stored = []
for n in range(1, 50):
    data = bytes([n]) * 40_000 * n
    try:
        writer.put(Digest.of(data), [data])
    except OSError as error:
        assert error.errno in (errno.EFBIG, errno.ENOSPC), error
        break
    stored.append(Digest.of(data))
else:
    raise SystemExit("the disk never was full")
writer.flush()
assert len(stored) >= 2, "the disk was full from the start"
found = sorted(path.name for path in Path(sys.argv[1]).glob("objects/*/*"))
assert found == sorted(digest[2:] for digest in stored), "what did not fit is there"
assert not list(Path(sys.argv[1]).glob("tmp/*")), "a temporary was left"
for digest in stored:
    assert Digest.of(store.open(digest).read()) == digest
writer.put(Digest.of(b"small"), [b"small"])
"""


def test_a_limit_on_the_size_of_files_leaves_what_was_there_and_nothing_else(tmp_path):
    run(FILL, tmp_path / "store", 200_000)


def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path):
    with mounted("-t", "tmpfs", "-o", "size=512k", "none", on=tmp_path / "disk") as disk:
        run(FILL, disk / "store", 0)


# Bytes that change while they are written.


def published_is_true(store: FolderObjectStore) -> None:
    """Every object has the bytes that its name says, and nothing else lies around."""
    for path in store.root.glob("objects/*/*"):
        assert Digest.of(path.read_bytes()) == digest_of(path)
    assert list(store.root.glob("tmp/*")) == []


@pytest.mark.parametrize("size", [1, 1000, 1 << 20, 3_000_001])
@pytest.mark.parametrize("where", [0, -1])
def test_a_buffer_that_changes_between_hashing_and_writing(tmp_path, monkeypatch, size, where):
    store, buffer = FolderObjectStore(tmp_path), bytearray(size)
    digest, writer = Digest.of(buffer), store.writer()

    def change_then(really_write):
        def write(descriptor, data):
            buffer[where] = 1
            return really_write(descriptor, data)

        return write

    monkeypatch.setattr(os, "write", change_then(os.write))
    monkeypatch.setattr(os, "writev", change_then(os.writev))
    try:
        writer.put(digest, [buffer])
    except IntegrityError:
        assert store.size(digest) is None
    else:
        assert store.size(digest) == size
    assert buffer[where] == 1
    published_is_true(store)


def test_a_buffer_that_another_thread_changes_all_the_time(tmp_path):
    store, buffer, done = FolderObjectStore(tmp_path), bytearray(1_500_000), Event()
    writer = store.writer()

    def change():
        n = 0
        while not done.is_set():
            n = (n + 1) % 256
            buffer[0] = buffer[700_000] = buffer[-1] = n

    thread = Thread(target=change)
    thread.start()
    tried = refused = 0
    until = time.monotonic() + 60  # on a busy machine the other thread may not run for long
    try:
        while tried < 40 or (not refused and time.monotonic() < until):
            tried += 1
            try:
                writer.put(Digest.of(buffer), [buffer])
            except IntegrityError:
                refused += 1
    finally:
        done.set()
        thread.join()
    assert refused, "nothing was changed"
    published_is_true(store)


class Changing(Sequence):
    """Parts that are others each time that one asks."""

    def __init__(self, *versions: bytes) -> None:
        self._versions = list(versions)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise NotImplementedError

    def __iter__(self):
        return iter([self._versions.pop(0) if len(self._versions) > 1 else self._versions[0]])


@pytest.mark.parametrize("later", [b"other!!", b"other", b"other and longer"])
def test_parts_that_change_after_they_were_hashed_are_refused(tmp_path, later):
    store, parts = FolderObjectStore(tmp_path), Changing(DATA, later)
    digest = Digest.of(*parts)
    writer = store.writer()
    with pytest.raises(IntegrityError, match="changed") as caught:
        writer.put(digest, parts)
    assert caught.value.expected == digest
    assert list(tmp_path.glob("objects/*/*")) == []
    published_is_true(store)


@pytest.mark.parametrize("later", [b"other!!", b"other", b"other and longer"])
def test_parts_that_change_while_they_are_written_are_refused_or_stored_as_they_were(
    tmp_path, later
):
    store, parts = FolderObjectStore(tmp_path), Changing(DATA, DATA, later)
    digest = Digest.of(*parts)
    writer = store.writer()
    try:
        writer.put(digest, parts)
    except IntegrityError:
        assert store.size(digest) is None
    else:
        assert store.size(digest) == len(DATA)
    published_is_true(store)


def test_a_wrong_digest_is_refused_when_creating_too(tmp_path):
    with pytest.raises(IntegrityError):
        write_in_store(tmp_path, "name", [b"x"], digest=NAME, publish=Publish.CREATE)
    assert files(tmp_path) == {}


# Durability.


@pytest.fixture
def flushed(monkeypatch):
    """What was flushed and made, in order: the path, and whether the watched file was there."""
    if not sys.platform.startswith("linux"):
        pytest.skip("/proc tells what a descriptor is")
    watch, events = [], []
    really_fsync, really_mkdir = os.fsync, os.mkdir

    def fsync(descriptor):
        really_fsync(descriptor)
        inode = os.fstat(descriptor).st_ino
        published = [path.stat().st_ino for path in watch if path.exists()]
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(("fsync", path, bool(published), inode))

    def mkdir(path, *rest, **options):
        really_mkdir(path, *rest, **options)
        events.append(("mkdir", Path(path), None, None))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "mkdir", mkdir)
    return watch, events


def fsyncs(events, path=None):
    return [event for event in events if event[0] == "fsync" and path in (None, event[1])]


def new_folders_are_durable(root: Path, events) -> bool:
    """Whether each folder made below a store's root was flushed into the one that holds it."""
    made = [(n, event[1]) for n, event in enumerate(events) if event[0] == "mkdir"]
    below = [(n, path) for n, path in made if root in path.parents]
    assert below
    return all(fsyncs(events[n:], path.parent) for n, path in below)


def test_the_file_is_flushed_before_it_is_published_and_its_folder_after(tmp_path, way, flushed):
    for publish, name in ((Publish.REPLACE, "a/b/one"), (Publish.CREATE, "c/d/two")):
        root = Path(os.path.realpath(tmp_path)) / "new" / "root"
        watch, events = flushed
        watch[:] = [root / name]
        events.clear()
        assert write_in_store(root, name, [DATA], publish=publish)
        inode = (root / name).stat().st_ino
        of_file = [event for event in fsyncs(events) if event[3] == inode]
        assert len(of_file) == 1
        assert of_file[0][2] is False, "published before it was flushed"
        assert of_file[0][1].parent == root / "tmp"
        after = [event[1] for event in fsyncs(events) if event[2]]
        assert after[-3:] == [(root / name).parent, (root / name).parent.parent, root]
        assert new_folders_are_durable(root, events)


def test_what_is_flushed_is_complete_and_read_only(tmp_path, monkeypatch):
    really_fsync, seen = os.fsync, []

    def fsync(descriptor):
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            seen.append((status.st_size, stat.S_IMODE(status.st_mode) & 0o222))
        really_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_in_store(tmp_path, "name", [DATA, DATA])
    assert seen == [(2 * len(DATA), 0)]


def test_a_writer_flushes_each_folder_once_and_those_of_reused_objects_too(tmp_path, flushed):
    root = Path(os.path.realpath(tmp_path)) / "store"
    store, (_, events) = FolderObjectStore(root), flushed
    first = store.writer()
    first.put(NAME, [DATA])
    first.flush()
    writer = store.writer()
    events.clear()
    digests = [Digest.of(bytes([n])) for n in range(20)]
    for n, digest in enumerate(digests):
        writer.put(digest, [bytes([n])])
        writer.put(digest, [bytes([n])])
        last = store.path(digest).parent
        assert not fsyncs(events, last), "one flush is enough"
    assert writer.reuse(NAME, len(DATA))
    before = list(events)
    events.clear()
    writer.flush()
    assert new_folders_are_durable(root, before + events)
    expected = {store.path(digest).parent for digest in [*digests, NAME]}
    expected |= {root / "objects", root}  # another process may have made those above
    assert sorted(event[1] for event in fsyncs(events)) == sorted(expected)
    events.clear()
    writer.flush()
    assert events == []


def test_the_settings_are_durable_before_the_first_object(tmp_path, flushed):
    root = Path(os.path.realpath(tmp_path)) / "store"
    watch, events = flushed
    watch[:] = [root / "mlstate.toml"]
    FolderObjectStore(root).writer()
    assert fsyncs(events)[-1][1:3] == (root, True)
    assert not (root / "objects").exists()


# Crashes.

WRITE_FOREVER = """
import random, sys
from pathlib import Path
from mlstate.digests import Digest
from mlstate.objects import FolderObjectStore
from mlstate.objects.durable import write_in_store
from mlstate.objects.durable import Publish
root, seed = Path(sys.argv[1]), int(sys.argv[2])
chance, store = random.Random(seed), FolderObjectStore(root)
print("ready", flush=True)
while True:
    writer = store.writer()
    for n in range(3):
        data = chance.randbytes(chance.choice([0, 10, 5_000, 200_000, 3_000_000]))
        writer.put(Digest.of(data), [data[:1000], data[1000:]])
    writer.flush()
    state = chance.randbytes(20_000)
    text = f"{Digest.of(state)} {state.hex()}".encode()
    for publish in Publish:
        write_in_store(root, f"states/{seed}.{chance.randrange(99)}", [text], publish=publish)
"""


def test_after_a_kill_every_object_has_the_bytes_that_its_name_says(tmp_path):
    root, chance = tmp_path / "store", random.Random()
    for attempt in range(5):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", WRITE_FOREVER, str(root), str(seed)], stdout=subprocess.PIPE
            )
            for seed in (attempt, attempt // 2 + 100, 200)
        ]
        for process in processes:
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            time.sleep(chance.uniform(0, 0.06))
            process.kill()
            process.wait()
            process.stdout.close()
    objects = list(root.glob("objects/*/*"))
    assert all(re.fullmatch("[0-9a-f]{62}", path.name) for path in objects)
    assert [path for path in objects if Digest.of(path.read_bytes()) != digest_of(path)] == []
    for path in root.glob("states/*"):
        digest, _, state = path.read_text().partition(" ")
        assert Digest.of(bytes.fromhex(state)) == digest
    assert len(objects) > 5, "killed too early to say anything"
    writer = FolderObjectStore(root).writer()  # and it still is a store
    writer.put(NAME, [DATA])
    writer.flush()
    assert FolderObjectStore(root).size(NAME) == len(DATA)


def test_a_server_that_refuses_before_it_looks_is_asked_whether_the_folder_is_there(
    tmp_path, monkeypatch
):
    """NFS does so with a folder that exists, below one that may not be written to."""
    (tmp_path / "there").mkdir()

    def refuse(path, mode=0o777):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    make_folders(tmp_path, tmp_path / "there")
    with pytest.raises(PermissionError):
        make_folders(tmp_path, tmp_path / "not there")


def test_a_full_disk_is_named_by_a_folder_of_it(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "sync_open", full)
    with durable.NewFile(tmp_path / "x") as file:
        file.write([b"x"])
        with pytest.raises(OSError, match="No space left") as caught:
            file.flush()
    assert caught.value.filename == str(tmp_path)
