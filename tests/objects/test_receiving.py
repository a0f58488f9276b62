"""Objects arrive in any order, in several runs, with a kill between any two steps."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate.digests import Digest
from mlstate.errors import IntegrityError, ObjectNotFoundError
from mlstate.fetch.plan import Segments
from mlstate.format import layout
from mlstate.objects import FolderObjectStore, MemoryObjectStore
from mlstate.objects import partial as partials
from mlstate.objects.cache import (
    Cache,
    ChainObjectStore,
    note_use,
    one_at_a_time,
    read_roots,
    write_root,
)
from mlstate.objects.durable import try_lock
from mlstate.objects.receiving import Receiver
from tests.support.fetching import folder_for_all

NAME = "ab" * 32
OTHER = "cd" * 32
SMALL_SEGMENT = 4096
DATA = random.Random(0).randbytes(5 * SMALL_SEGMENT + 100)
DIGEST = Digest.of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> FolderObjectStore:
    return FolderObjectStore(tmp_path / "cache")


@pytest.fixture
def receiver(store: FolderObjectStore) -> Receiver:
    return Receiver(store, durable=False)


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partials, "SEGMENT", SMALL_SEGMENT)
    monkeypatch.setattr(partials, "BLOCK", SMALL_SEGMENT)


def temporaries(store: FolderObjectStore) -> list[str]:
    return sorted(path.name for path in (store.root / layout.TEMPORARIES).iterdir())


# What comes from front to back.


@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=5), durable=st.booleans())
@settings(max_examples=20, deadline=None)
def test_any_pieces_in_order_make_the_same_object(cuts: list[int], durable: bool):
    with tempfile.TemporaryDirectory() as folder:
        store = FolderObjectStore(folder)
        receiver = Receiver(store, durable=durable)
        ends = [*sorted(cuts), len(DATA)]
        with receiver.arriving() as arriving:
            for start, stop in zip([0, *ends], ends, strict=False):
                arriving.write(DATA[start:stop])
            assert arriving.size == len(DATA)
            assert arriving.publish(DIGEST) == DIGEST
        receiver.flush()
        assert read(store, DIGEST) == DATA
        assert store.path(DIGEST).stat().st_mode & 0o222 == 0
        assert temporaries(store) == []


@pytest.mark.parametrize("durable", [False, True])
def test_folders_are_flushed_once_each_and_only_where_that_is_asked_for(
    durable: bool, store: FolderObjectStore, monkeypatch: pytest.MonkeyPatch
):
    receiver = Receiver(store, durable=durable)
    really, flushed = os.fsync, []

    def fsync(descriptor: int) -> None:
        flushed.append(os.fstat(descriptor).st_ino)
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    digests = []
    for number in range(20):
        with receiver.arriving() as arriving:
            arriving.write(b"%d" % number)
            digests.append(arriving.publish(None))
    folders = {store.path(digest).parent for digest in digests}
    above = {store.root, store.root / layout.OBJECTS}
    inodes = {path.stat().st_ino for path in folders | above}
    assert not inodes & set(flushed)
    receiver.flush()
    of_folders = [inode for inode in flushed if inode in inodes]
    assert sorted(of_folders) == (sorted(inodes) if durable else [])
    assert len(flushed) == (20 + len(inodes) if durable else 0)


def test_other_bytes_are_refused_and_leave_nothing(receiver: Receiver, store: FolderObjectStore):
    with receiver.arriving() as arriving:
        arriving.write(DATA[:-1])
        with pytest.raises(IntegrityError) as caught:
            arriving.publish(DIGEST)
    assert (caught.value.expected, caught.value.found) == (DIGEST, Digest.of(DATA[:-1]))
    assert store.size(DIGEST) is None
    assert temporaries(store) == []


def test_what_breaks_off_leaves_nothing(receiver: Receiver, store: FolderObjectStore):
    with receiver.arriving() as arriving:
        arriving.write(DATA)
    assert temporaries(store) == []


def test_what_is_staged_is_found_again_and_published(receiver: Receiver, store: FolderObjectStore):
    with receiver.arriving() as arriving:
        arriving.write(DATA)
        arriving.stage(NAME)
    assert temporaries(store) == [f"{NAME}{layout.STAGED_SUFFIX}"]
    later = Receiver(store)
    staged = later.staged(NAME, len(DATA))
    assert staged is not None
    assert staged.digest == DIGEST
    later.sync_staged(staged)
    later.publish_staged(staged)
    assert read(store, DIGEST) == DATA
    assert temporaries(store) == []


def test_what_is_staged_is_read_again_and_not_trusted(receiver: Receiver, store: FolderObjectStore):
    with receiver.arriving() as arriving:
        arriving.write(DATA)
        path = arriving.stage(NAME).path
    path.chmod(0o644)
    path.write_bytes(DATA[:-1] + b"x")
    assert receiver.staged(NAME, len(DATA) - 1) is None
    assert receiver.staged(OTHER, len(DATA)) is None
    found = receiver.staged(NAME, len(DATA))
    assert found is not None
    assert found.digest == Digest.of(DATA[:-1] + b"x")
    found.discard()
    found.discard()
    assert receiver.staged(NAME, len(DATA)) is None


def test_what_another_process_has_staged_in_its_place_is_read_again(
    receiver: Receiver, store: FolderObjectStore
):
    """Where locks do not work two processes stage the same at once."""
    stage = [DATA, DATA, b"a lie"]
    for index, data in enumerate(stage):
        with receiver.arriving() as arriving:
            arriving.write(data)
            staged = arriving.stage(NAME)
        if index == 0:
            mine = staged
        if index == 1:
            receiver.sync_staged(mine)
    with pytest.raises(IntegrityError, match="wrong bytes"):
        receiver.sync_staged(mine)
    staged.discard()
    for use in (receiver.sync_staged, receiver.publish_staged):
        with pytest.raises(IntegrityError, match="removed"):
            use(mine)
    with receiver.arriving() as arriving:  # the other has published it
        arriving.write(DATA)
        arriving.publish(DIGEST)
    receiver.sync_staged(mine)
    receiver.publish_staged(mine)


# What comes in segments.


@given(order=st.permutations(range(6)), runs=st.integers(1, 4), data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_order_of_segments_in_any_number_of_runs_makes_the_same_object(
    order: list[int], runs: int, data: st.DataObject
):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(partials, "SEGMENT", SMALL_SEGMENT)
        patch.setattr(partials, "BLOCK", SMALL_SEGMENT)
        store = FolderObjectStore(folder)
        cuts = sorted(data.draw(st.lists(st.integers(0, 6), min_size=runs, max_size=runs)))
        shares = [order[a:b] for a, b in zip([0, *cuts], [*cuts, 6], strict=True)]
        came: set[int] = set()
        for share in shares:
            receiver = Receiver(store, durable=False)
            partial = receiver.partial(NAME, len(DATA))
            assert partial.resumed == bool(came)
            missing = {start // SMALL_SEGMENT: (start, stop) for start, stop in partial.missing()}
            assert missing.keys() == set(range(6)) - came
            last = [put(partial, *missing[index]) for index in share]
            came.update(share)
            assert any(last) == (bool(share) and len(came) == 6)
            partial.close()
        partial = receiver.partial(NAME, len(DATA))
        assert partial.missing() == []
        assert partial.digest() == DIGEST
        receiver.publish_partial(partial, DIGEST)
        assert read(store, DIGEST) == DATA
        assert temporaries(store) == []


def put(partial: partials.Partial, start: int, stop: int) -> bool:
    """Put a segment where it belongs, in two pieces."""
    middle = (start + stop) // 2
    partial.write(middle, DATA[middle:stop])
    partial.write(start, DATA[start:middle])
    partial.mark(start, stop)
    return partial.claim()


@given(cuts=st.lists(st.integers(0, 23_000), max_size=8), data=st.data())
@settings(max_examples=50, deadline=None)
def test_what_is_marked_is_there_and_what_is_missing_is_asked_for_in_bounded_ranges(
    cuts: list[int], data: st.DataObject
):
    block, segment, size = 1000, 4000, 22_500
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(partials, "SEGMENT", segment)
        patch.setattr(partials, "BLOCK", block)
        partial = Receiver(FolderObjectStore(folder), durable=False).partial(NAME, size)
        there: set[int] = set()
        for cut in cuts:  # streams that were broken off
            start = data.draw(st.integers(0, 22)) * block
            stop = min(max(cut, start), size)
            partial.mark(start, stop)
            blocks = range(start // block, stop // block if stop < size else 23)
            there.update(blocks)
        missing = partial.missing()
        assert all(0 < stop - start <= segment for start, stop in missing)
        covered = [at for start, stop in missing for at in range(start // block, -(-stop // block))]
        assert covered == [at for at in range(23) if at not in there]
        assert partial.claim() == (not missing)
        assert not partial.claim()
        partial.discard()


def test_who_finds_all_marked_may_close_the_files_at_once(
    receiver: Receiver, store: FolderObjectStore, small_segments: None, monkeypatch
):
    """Streams that end together: one counted its block, another completed, and it still wrote."""
    partial = receiver.partial(NAME, len(DATA))
    *others, last = partial.missing()
    written, pwrite = [], os.pwrite

    def slow(descriptor: int, data: bytes, position: int) -> int:
        if position == last[0] // SMALL_SEGMENT and not written:  # the mark of the last block
            written.append(position)
            if partial.claim():
                partial.close()
        return pwrite(descriptor, data, position)

    for segment in others:
        put(partial, *segment)
    partial.write(last[0], DATA[last[0] :])
    monkeypatch.setattr(os, "pwrite", slow)
    partial.mark(*last)
    assert written
    assert partial.claim()
    receiver.publish_partial(partial, DIGEST)
    assert read(store, DIGEST) == DATA


def test_streams_may_go_on_after_their_object_was_given_up(
    receiver: Receiver, store: FolderObjectStore, small_segments: None
):
    """One of many found that the server gives the whole only; the others write meanwhile."""
    segments = Segments(receiver)
    first, *_ = segments.pieces(NAME, len(DATA), lambda whole: pytest.fail("it is not complete"))

    def chunks() -> Iterator[bytes]:
        yield DATA[: SMALL_SEGMENT // 2]
        segments.discard(NAME)
        yield DATA[SMALL_SEGMENT // 2 : SMALL_SEGMENT]

    first.want(chunks())
    assert temporaries(store) == []
    before = len(os.listdir("/proc/self/fd"))
    segments.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2


def test_a_new_partial_is_not_emptied_first(receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    # ext4 writes a file that was once cut to nothing to the disk when it is closed: 50 ms.
    cut: list[int] = []
    real = os.ftruncate
    monkeypatch.setattr(os, "ftruncate", lambda file, size: (cut.append(size), real(file, size))[1])
    partial = receiver.partial(Digest.of(b"new"), 3 * partials.BLOCK)
    assert os.fstat(partial.descriptor).st_size == 3 * partials.BLOCK
    partial.close()
    assert cut == [3 * partials.BLOCK]


def test_a_partial_of_another_size_begins_anew(receiver: Receiver, small_segments: None):
    first = receiver.partial(NAME, len(DATA))
    put(first, *first.missing()[0])
    first.close()
    other = receiver.partial(NAME, len(DATA) - 200)  # even the number of segments differs
    assert not other.resumed
    assert len(other.missing()) == 5
    other.discard()


@pytest.mark.parametrize("marks", [b"", b"\1", b"\1" * 100])
def test_marks_that_make_no_sense_are_not_trusted(
    receiver: Receiver, store: FolderObjectStore, small_segments: None, marks: bytes
):
    first = receiver.partial(NAME, len(DATA))
    first.close()
    path = store.root / layout.TEMPORARIES / f"{NAME}{layout.PARTIAL_SUFFIX}{layout.DONE_SUFFIX}"
    path.write_bytes(marks)
    again = receiver.partial(NAME, len(DATA))
    if len(marks) < 6:
        assert not again.resumed
    for segment in again.missing():
        put(again, *segment)
    right = again.digest() == DIGEST
    assert right == (len(marks) < 6)  # more marks are those of this file: the digest tells
    again.discard()
    assert temporaries(store) == []


def test_two_at_once_on_the_same_object_do_not_disturb_each_other(
    receiver: Receiver, store: FolderObjectStore, small_segments: None
):
    first, second = (receiver.partial(NAME, len(DATA)) for _ in range(2))
    assert first.path != second.path
    for segment in first.missing():
        put(first, *segment)
        second.write(segment[0], b"x" * 10)
    receiver.publish_partial(first, DIGEST)
    assert read(store, DIGEST) == DATA
    second.close()
    assert temporaries(store) == []


def test_a_partial_that_was_published_by_another_is_not_written_any_more(
    receiver: Receiver, store: FolderObjectStore, small_segments: None
):
    first = receiver.partial(NAME, len(DATA))
    for segment in first.missing():
        put(first, *segment)
    receiver.publish_partial(first, DIGEST)
    second = receiver.partial(NAME, len(DATA))
    second.write(0, b"x" * 10)
    assert read(store, DIGEST) == DATA
    assert not second.resumed
    second.discard()


KILLED = """
import fcntl, os, shutil, sys  # before another user may not read where Python lies
from mlstate.digests import Digest
from mlstate.objects import FolderObjectStore, partial
from mlstate.objects.receiving import Receiver
folder, way, user = sys.argv[1], sys.argv[2], int(sys.argv[3])
data = sys.stdin.buffer.read()
digest, name = Digest.of(data), "ab" * 32
partial.SEGMENT = partial.BLOCK = 4096
if user:
    os.setgroups([]); os.setgid(user); os.setuid(user)
def receive():
    receiver = Receiver(FolderObjectStore(folder), durable=False)
    if way == "arriving":
        with receiver.arriving() as arriving:
            arriving.write(data)
            arriving.publish(digest)
    elif way == "staged":
        staged = receiver.staged(name, len(data))
        if staged is None:
            with receiver.arriving() as arriving:
                arriving.write(data)
                staged = arriving.stage(name)
        receiver.sync_staged(staged)
        receiver.publish_staged(staged)
    else:
        whole = receiver.partial(name, len(data))
        for start, stop in whole.missing():
            whole.write(start, data[start:stop])
            whole.mark(start, stop)
        assert whole.digest() == digest
        receiver.publish_partial(whole, digest)
def after(steps):
    '''Receive in a process that is killed after so many calls that change the disk.'''
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    def counted(function):
        def call(*arguments, **named):
            nonlocal steps
            result = function(*arguments, **named)
            steps -= 1
            if steps < 0:
                os.kill(os.getpid(), 9)
            return result
        return call
    for each in "open write pwrite ftruncate fchmod mkdir unlink link replace".split():
        setattr(os, each, counted(getattr(os, each)))
    code = 1
    try:
        receive()
        code = 0
    finally:
        os._exit(code)
steps = sealed = 0
while (code := after(steps)) != 0:
    assert code == -9, code
    store = FolderObjectStore(folder)
    assert store.size(digest) in (None, len(data))
    path = os.path.join(folder, "tmp", name + ".partial")
    sealed += os.path.exists(path) and not os.stat(path).st_mode & 0o222
    receive()
    with store.open(digest) as file:
        assert file.read() == data
    left = os.listdir(os.path.join(folder, "tmp"))
    assert not [each for each in left if each.startswith(name)], left
    shutil.rmtree(folder)
    steps += 1
print(steps, sealed)
"""


def killed_at_every_step(folder: Path, way: str, user: int = 0) -> tuple[int, int]:
    """The steps that it takes, and before how many of them a partial was read-only."""
    command = [sys.executable, "-c", KILLED, str(folder), way, str(user)]
    done = subprocess.run(command, input=DATA, capture_output=True)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    steps, sealed = map(int, done.stdout.split())
    return steps, sealed


@pytest.mark.parametrize("way", ["arriving", "staged", "partial"])
def test_a_kill_after_any_step_leaves_what_a_later_run_completes(way: str, tmp_path: Path):
    steps, _ = killed_at_every_step(tmp_path / "cache", way)
    assert 10 < steps < 100


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_user_goes_on_with_a_partial_that_was_made_read_only_before_the_kill():
    """Root would not notice: the mode does not bind it."""
    with folder_for_all() as folder:
        os.chown(folder, 12345, 12345)
        _, sealed = killed_at_every_step(folder / "cache", "partial", 12345)
    assert sealed


# Locks.


def test_a_lock_is_held_by_one_alone(tmp_path: Path):
    path = tmp_path / "lock"
    first, second = (os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert try_lock(first) is True
    assert try_lock(second) is False
    os.close(first)
    assert try_lock(second) is True
    os.close(second)


def test_where_there_are_no_locks_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    began = time.monotonic()
    with one_at_a_time(tmp_path / "lock"), one_at_a_time(tmp_path / "lock"):
        pass
    assert time.monotonic() - began < 5
    assert [*tmp_path.iterdir()] == []


def test_who_comes_second_waits_as_long_as_the_first_shows_that_it_is_alive(tmp_path: Path):
    path, events = tmp_path / "lock", list[str]()

    def second() -> None:
        with one_at_a_time(path, patience=1):
            events.append("second")

    with one_at_a_time(path, patience=1) as alive:
        thread = threading.Thread(target=second)
        thread.start()
        for _ in range(15):
            time.sleep(0.1)
            alive()
        events.append("first")
    thread.join(10)
    assert events == ["first", "second"]
    assert [*tmp_path.iterdir()] == []


def test_who_comes_second_begins_too_when_nothing_is_heard_of_the_first(tmp_path: Path):
    path, began = tmp_path / "lock", time.monotonic()
    with one_at_a_time(path, patience=0.3), one_at_a_time(path, patience=0.3):
        assert 0.25 < time.monotonic() - began < 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_a_lock_or_a_partial_of_another_member_is_no_obstacle(mode: int):
    program = (
        "import fcntl, os, sys; from pathlib import Path\n"
        "from mlstate.objects.cache import one_at_a_time\n"
        "from mlstate.objects.partial import Partial\n"
        "os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "folder = Path(sys.argv[1])\n"
        "with one_at_a_time(folder / 'lock') as alive: alive()\n"
        "partial = Partial(folder, 'ab' * 32, 100)\n"
        "assert partial.missing() == [(0, 100)]\n"
        "partial.close()\n"
    )
    with folder_for_all() as shared:
        shared.chmod(0o777)
        lock, partial = shared / "lock", shared / f"{NAME}{layout.PARTIAL_SUFFIX}"
        for path in (lock, partial):
            path.write_bytes(b"")
            path.chmod(mode)
        subprocess.run([sys.executable, "-W", "error", "-c", program, str(shared)], check=True)
        assert {*shared.iterdir()} - {lock} == {partial}


# A cache of several stores.


def fill(root: Path, *items: bytes) -> FolderObjectStore:
    store = FolderObjectStore(root)
    writer = store.writer()
    for data in items:
        writer.put(Digest.of(data), [data])
    return store


def test_a_cache_asks_its_stores_in_order(tmp_path: Path):
    first, second = fill(tmp_path / "1", b"one"), fill(tmp_path / "2", b"one", b"two")
    cache = Cache([first, second])
    one, two, none = map(Digest.of, (b"one", b"two", b"none"))
    assert [cache.size(digest) for digest in (one, two, none)] == [3, 3, None]
    assert cache.locate(one) == first.locate(one)
    assert cache.locate(two) == second.locate(two)
    assert cache.locate(none) == second.locate(none)
    assert read(cache, two) == b"two"
    with pytest.raises(ObjectNotFoundError):
        cache.open(none)
    assert cache.own is second
    assert Cache([MemoryObjectStore()]).own is None


def test_what_is_set_aside_goes_to_the_trash_of_the_own_folder(tmp_path: Path):
    cache = Cache([fill(tmp_path / "1", b"one")])
    digest = Digest.of(b"one")
    kept = Path(cache.set_aside(digest))
    assert kept.read_bytes() == b"one"
    assert kept.parent == tmp_path / "1" / layout.TRASH
    assert cache.size(digest) is None


def test_what_is_set_aside_in_another_store_stays_there_and_is_passed_over(tmp_path: Path):
    first, second = fill(tmp_path / "1", b"one"), fill(tmp_path / "2")
    cache = Cache([first, second])
    digest = Digest.of(b"one")
    assert cache.set_aside(digest) == first.locate(digest)
    assert first.size(digest) == 3
    assert cache.size(digest) is None
    with pytest.raises(ObjectNotFoundError):
        cache.open(digest)
    fill(second.root, b"one")
    assert cache.locate(digest) == second.locate(digest)
    assert read(cache, digest) == b"one"


@pytest.mark.parametrize("wrap", [lambda stores: stores, lambda stores: [ChainObjectStore(stores)]])
def test_a_chain_in_a_cache_is_the_same_as_its_stores(tmp_path: Path, wrap):
    first, second = fill(tmp_path / "1", b"one"), fill(tmp_path / "2", b"two")
    cache = Cache(wrap([first, second]))
    one, two = map(Digest.of, (b"one", b"two"))
    assert cache.own is second
    assert cache.set_aside(one) == first.locate(one)
    assert Path(cache.set_aside(two)).parent == second.root / layout.TRASH
    assert [cache.size(digest) for digest in (one, two)] == [None, None]
    fill(second.root, b"one")
    assert cache.locate(one) == second.locate(one)


def test_a_cache_in_a_cache_keeps_what_it_knows_to_be_damaged(tmp_path: Path):
    inner = Cache([fill(tmp_path / "1", b"one"), fill(tmp_path / "2")])
    one = Digest.of(b"one")
    inner.set_aside(one)
    outer = Cache([inner])
    assert outer.size(one) is None
    assert outer.own is None  # it is another's, who fetches into it


# What a cache keeps.


def test_a_root_is_read_as_it_was_written_and_keeps_the_files_of_before(tmp_path: Path):
    files = [Digest.of(name) for name in (b"a", b"b")]
    write_root(tmp_path, DIGEST, "pytorch.net.a", files[:1])
    write_root(tmp_path, DIGEST, "pytorch.net.b", files[1:])
    (root,) = read_roots(tmp_path)
    assert (root.digest, root.key, root.files) == (DIGEST, "pytorch.net.b", set(files))
    assert abs(root.used - time.time()) < 60


def test_use_is_noted_now_and_then_and_only_of_what_is_there(tmp_path: Path):
    key = "pytorch.net.a"
    note_use(tmp_path, DIGEST, key, ())
    assert [*tmp_path.iterdir()] == []
    write_root(tmp_path, DIGEST, key, ())
    path = tmp_path / layout.ROOTS / DIGEST
    for ago, noted in ((600, False), (7200, True)):
        then = time.time() - ago
        os.utime(path, (then, then))
        note_use(tmp_path, DIGEST, key, ())
        assert (abs(path.stat().st_mtime - then) > 60) == noted


def test_a_damaged_root_is_none(tmp_path: Path):
    write_root(tmp_path, DIGEST, "pytorch.net.a", ())
    roots = tmp_path / layout.ROOTS
    (roots / "README").write_text("not mine")
    (roots / NAME).write_text("key = 1")
    (roots / OTHER).mkdir()
    (roots / ("ef" * 32)).write_text('key = "a"\nfiles = ["x"]')
    assert [root.digest for root in read_roots(tmp_path)] == [DIGEST]


def read(store: FolderObjectStore | Cache, digest: Digest) -> bytes:
    with store.open(digest) as file:
        return file.read()
