"""Saving hashes and writes what is new in one pass, and leaves what is there."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate import LocalStateStore, StateKey
from mlstate.digests import Digest
from mlstate.errors import IntegrityError
from mlstate.objects import FolderObjectStore, MemoryObjectStore
from mlstate.objects.durable import NewFile
from mlstate.objects.mapped import MAP_FROM
from mlstate.objects.saving import ObjectSaver

KEY = StateKey.parse("pytorch.net.one")


def parts(number: int) -> tuple[bytes, bytes]:
    return (b"head", number.to_bytes(4, "little") * 5000)


def digest(number: int) -> Digest:
    return Digest.of(*parts(number))


def leftovers(store: FolderObjectStore) -> list[str]:
    return [path.name for path in store.root.glob("tmp/*")]


@settings(max_examples=60, deadline=None)
@given(there=st.sets(st.integers(0, 9)), wanted=st.lists(st.integers(0, 9)))
def test_whatever_is_there_all_is_there_afterwards(there, wanted, tmp_path_factory):
    store = FolderObjectStore(tmp_path_factory.mktemp("store"))
    before = ObjectSaver(store, verify=False)
    for number in there:
        before.take(digest(number), parts(number))
    before.flush()
    which = {number: store.path(digest(number)).stat().st_ino for number in there}
    act = ObjectSaver(store, verify=False)
    for number in wanted:
        assert act.store(parts(number)) == digest(number)
    act.flush()
    for number in {*wanted, *there}:
        assert store.path(digest(number)).read_bytes() == b"".join(parts(number))
    assert {n: store.path(digest(n)).stat().st_ino for n in there} == which
    assert act.reused.keys() == {digest(number) for number in there & set(wanted)}
    assert leftovers(store) == []


def test_what_is_new_is_written_without_being_hashed_before(tmp_path, monkeypatch):
    act = ObjectSaver(FolderObjectStore(tmp_path), verify=False)
    hashed = []
    of = Digest.of
    monkeypatch.setattr(Digest, "of", lambda *parts: hashed.append(parts) or of(*parts))
    for number in range(20):
        act.store(parts(number))
    assert len(hashed) == 2  # until it is clear that these are new


def test_what_is_there_is_hashed_and_not_written(tmp_path, monkeypatch):
    store = FolderObjectStore(tmp_path)
    first = ObjectSaver(store, verify=False)
    for number in range(20):
        first.store(parts(number))
    first.settle()
    act = ObjectSaver(store, verify=False)
    monkeypatch.setattr("mlstate.objects.folder.NewFile", None)
    monkeypatch.setattr("mlstate.objects.folder.write_in_store", None)
    for number in range(20):
        assert act.store(parts(number)) == digest(number)
    assert len(act.reused) == 20


def test_a_damaged_object_is_written_again_if_that_is_asked_for(tmp_path):
    store = FolderObjectStore(tmp_path)
    act = ObjectSaver(store, verify=False)
    for number in range(5):
        act.store(parts(number))
    act.flush()
    path = store.path(digest(4))
    path.chmod(0o644)
    path.write_bytes(bytes(path.stat().st_size))
    again = ObjectSaver(store, verify=True)
    for number in (100, 101, 102, 4):
        again.store(parts(number))
    again.flush()
    assert path.read_bytes() == b"".join(parts(4))


def test_a_store_that_cannot_write_in_one_pass_is_served_too():
    store = MemoryObjectStore()
    act = ObjectSaver(store, verify=False)
    for number in (1, 2, 3, 1, 3):
        assert act.store(parts(number)) == digest(number)
    assert {store.size(digest(number)) for number in (1, 2, 3)} == {20004}


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    store = FolderObjectStore(tmp_path)
    act = ObjectSaver(store, verify=False)
    act.store(parts(1))
    act.store(parts(2))

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlstate.objects.mapped.write_all", full)
    with pytest.raises(OSError, match="No space"):
        act.store(parts(3))
    act.settle()
    assert leftovers(store) == []
    assert store.size(digest(3)) is None


@pytest.mark.parametrize("call", ["settle", "flush"])
def test_what_the_disk_refuses_in_the_background_is_told(tmp_path, monkeypatch, call):
    store = FolderObjectStore(tmp_path)
    act = ObjectSaver(store, verify=False)
    act.store(parts(1))
    act.store(parts(2))
    act.settle()

    def broken(file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("mlstate.objects.durable.NewFile.flush", broken)
    act.store(parts(3))
    with pytest.raises(OSError, match="Input/output"):
        getattr(act, call)()
    assert leftovers(store) == []
    assert store.size(digest(3)) is None
    act.settle()  # it was told once
    monkeypatch.undo()
    assert act.store(parts(3)) == digest(3)
    act.flush()
    assert store.size(digest(3)) == sum(map(len, parts(3)))


def test_bytes_that_are_not_those_of_the_digest_are_refused(tmp_path):
    store = FolderObjectStore(tmp_path)
    act = ObjectSaver(store, verify=False)
    with pytest.raises(IntegrityError, match="changed") as caught:
        act.take(digest(1), parts(2))
    assert (caught.value.expected, caught.value.found) == (digest(1), digest(2))
    act.flush()
    assert leftovers(store) == []
    assert list(store.digests()) == []


def test_after_a_failure_nothing_more_is_taken(tmp_path, monkeypatch):
    store = FolderObjectStore(tmp_path)
    act = ObjectSaver(store, verify=False)
    act.store(parts(1))
    act.store(parts(2))
    monkeypatch.setattr("mlstate.objects.durable.os.fsync", None)

    def many() -> None:
        for number in range(3, 200):
            act.store(parts(number))

    with pytest.raises(TypeError):
        many()
    with pytest.raises(TypeError):
        act.settle()
    assert leftovers(store) == []


@pytest.mark.parametrize("size", [MAP_FROM - 1, MAP_FROM, (2 << 20) - 4096, 5_000_000])
@pytest.mark.parametrize("mapped", [True, False])
def test_large_objects_are_written_as_they_are_hashed(tmp_path, monkeypatch, size, mapped):
    """Where the file cannot be mapped, too: on a network, say."""
    if not mapped:
        monkeypatch.setattr("mlstate.objects.mapped.may_map", lambda *_: False)
    store = FolderObjectStore(tmp_path)
    head, data = bytes(4096), bytes(range(251)) * (size // 251 + 1)
    writer = store.writer()
    digest, new = writer.add([head, memoryview(data)[:size]])
    assert new
    writer.flush()
    assert store.path(digest).read_bytes() == head + data[:size]
    assert digest == Digest.of(head + data[:size])


def test_a_write_that_takes_only_a_part_is_gone_on_with(tmp_path, monkeypatch):
    really = os.writev
    monkeypatch.setattr(os, "writev", lambda file, views: really(file, [views[0][:100]]))
    store, content = FolderObjectStore(tmp_path), [bytes(range(200)), bytes(3_000_000)]
    digest, _ = store.writer().add(content)
    assert digest == Digest.of(*content)


def test_tensors_that_change_while_they_are_saved_spoil_no_object(tmp_path):
    store, over = LocalStateStore(tmp_path), threading.Event()
    tensors = {f"{number}": torch.full((500_000,), number * 10_000) for number in range(12)}
    still = {name: torch.full((5000,), ord(name)) for name in "ab"}  # so all others are new, too

    def change() -> None:
        while not over.is_set():
            for tensor in tensors.values():
                tensor.add_(1)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        store.save_state_dict(tensors | still, KEY)
    finally:
        over.set()
        changing.join()
    objects = list(tmp_path.glob("objects/*/*"))
    assert len(objects) == 15
    for path in objects:
        assert Digest.of(path.read_bytes()) == path.parent.name + path.name


def test_what_failed_first_is_told_not_what_failed_in_the_background(tmp_path, monkeypatch):
    act = ObjectSaver(FolderObjectStore(tmp_path), verify=False)
    monkeypatch.setattr("mlstate.objects.durable.NewFile.flush", None)

    def fail() -> None:
        with act.settled():
            act.take(digest(1), parts(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()


def test_a_file_that_is_closed_twice_closes_no_other(tmp_path):
    file = NewFile(tmp_path / "new")
    file.close()
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)
    file.close()
    os.close(other)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_thousands_of_parts(tmp_path):
    content = [bytes([number % 251]) * 700 for number in range(3000)]
    digest, _ = FolderObjectStore(tmp_path).writer().add(content)
    assert digest == Digest.of(*content)
