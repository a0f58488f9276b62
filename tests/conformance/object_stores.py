"""One suite for every object store. A new one joins with a `Kit` for an empty store of its own.

A test class gives a fixture ``kit``; see tests/objects/test_conformance.py, where a list makes it.
"""

from __future__ import annotations

import io
import random
import subprocess
import sys
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier, Event

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlstate.digests import Digest
from mlstate.errors import IntegrityError, MlstateError, ObjectNotFoundError
from mlstate.objects import ObjectStore, WritableObjectStore, read_verified

DATA = b"the bytes of an object"
NAME = Digest.of(DATA)
BIG = random.Random(0).randbytes(5_000_003)

# What hypothesis puts, it puts under a name of its own or over what is there: one store will do.
LAW = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

PUT_EVERYTHING = """
import random
for data in random.sample(objects, len(objects)):
    writer = target.writer()
    writer.put(Digest.of(data), [data[:7], data[7:]])
    assert writer.reuse(Digest.of(data), len(data))
    writer.flush()
"""


@dataclass
class Kit:
    """An empty object store and what it takes to hold it against the laws."""

    store: ObjectStore
    """The store under test."""
    target: WritableObjectStore
    """Where to put what `store` shall have: the store itself, if it can be written."""
    plant: Callable[[Digest, bytes], None]
    """Puts any bytes under a name, as a failing disk would."""
    leftovers: Callable[[], list[str]] = list
    """What lies around that is no object: temporaries, half-written things."""
    elsewhere: str | None = None
    """Python for ``target`` in another process, or None if it lives in this one only."""

    def put(self, *parts: bytes | bytearray | memoryview) -> Digest:
        writer = self.target.writer()
        digest = Digest.of(b"".join(parts))
        writer.put(digest, parts)
        writer.flush()
        return digest

    def read(self, digest: Digest) -> bytes:
        with self.store.open(digest) as file:
            return file.read()


class ObjectStoreSuite:
    def test_it_is_what_it_claims_to_be(self, kit):
        assert isinstance(kit.store, ObjectStore)
        assert isinstance(kit.target, WritableObjectStore)

    @LAW
    @given(parts=st.lists(st.binary(max_size=40), max_size=5))
    def test_put_then_open_gives_the_bytes(self, kit, parts):
        digest = kit.put(*parts)
        whole = b"".join(parts)
        assert kit.read(digest) == whole
        assert kit.store.size(digest) == len(whole)
        assert read_verified(kit.store, digest, what="it") == whole
        assert kit.leftovers() == []

    def test_the_empty_object(self, kit):
        assert kit.store.size(Digest.of()) is None
        for parts in ([], [b""], [b"", b""]):
            assert kit.put(*parts) == Digest.of()
            assert kit.store.size(Digest.of()) == 0
            assert kit.read(Digest.of()) == b""
        assert kit.target.writer().reuse(Digest.of(), 0)

    def test_a_big_object_in_several_parts(self, kit):
        view = memoryview(BIG)
        digest = kit.put(view[:3], view[3:1_048_576], view[1_048_576:4_000_001], view[4_000_001:])
        assert digest == Digest.of(BIG)
        assert kit.store.size(digest) == len(BIG)
        assert read_verified(kit.store, digest, what="it") == BIG

    @pytest.mark.parametrize("size", [1_048_575, 1_048_576, 1_048_577, 2_097_152])
    def test_parts_about_as_long_as_a_chunk(self, kit, size):
        digest = kit.put(BIG[:size], BIG[size : 2 * size])
        assert kit.read(digest) == BIG[: 2 * size]

    @pytest.mark.parametrize(
        "part",
        [
            bytearray(b"abc"),
            memoryview(b"abc")[1:2],
            memoryview(bytes(range(100))).cast("B", (2, 50)),
            memoryview(array("d", [1.0, 2.0, 3.0])),
        ],
        ids=["bytearray", "slice", "two dimensions", "float64"],
    )
    def test_parts_of_every_kind(self, kit, part):
        digest = kit.put(b"before", part, b"after")
        assert kit.read(digest) == b"before" + bytes(part) + b"after"

    def test_a_copy_is_kept(self, kit):
        buffer = bytearray(DATA)
        kit.put(buffer)
        buffer[:] = bytes(len(buffer))
        assert kit.read(NAME) == DATA

    def test_an_open_object_is_seekable_and_readers_do_not_disturb_each_other(self, kit):
        kit.put(DATA)
        with kit.store.open(NAME) as one, kit.store.open(NAME) as other:
            assert one.seekable()
            assert one.seek(4) == 4
            assert one.read(5) == b"bytes"
            assert other.read(3) == b"the"
            assert one.tell() == 9
            kit.put(DATA)  # replaced by its equal while it is open
            assert one.seek(-6, 2) == len(DATA) - 6
            assert one.read() == b"object"

    def test_what_is_absent_is_none_and_an_error(self, kit):
        kit.put(b"another")
        assert kit.store.size(NAME) is None
        with pytest.raises(ObjectNotFoundError) as caught:
            kit.store.open(NAME)
        with pytest.raises(ObjectNotFoundError):
            read_verified(kit.store, NAME, what="it")
        error = caught.value
        assert isinstance(error, FileNotFoundError)
        assert isinstance(error, IntegrityError)
        assert isinstance(error, MlstateError)
        assert error.expected == NAME
        assert error.path == kit.store.locate(NAME)
        assert NAME in str(error)

    def test_in_an_empty_store_everything_is_absent(self, kit):
        assert kit.store.size(NAME) is None
        with pytest.raises(ObjectNotFoundError):
            kit.store.open(NAME)

    def test_places_of_objects_differ(self, kit):
        kit.put(DATA)
        assert kit.store.locate(NAME) != kit.store.locate(Digest.of())

    @LAW
    @given(data=st.binary(max_size=60), other=st.binary(max_size=60))
    def test_bytes_under_a_wrong_digest_are_refused_and_leave_nothing(self, kit, data, other):
        data, other = b"put:" + data, b"named:" + other
        digest = Digest.of(other)
        with pytest.raises(IntegrityError) as caught:
            kit.target.writer().put(digest, [data])
        assert not isinstance(caught.value, ObjectNotFoundError)
        assert (caught.value.expected, caught.value.found) == (digest, Digest.of(data))
        assert kit.store.size(digest) is None
        assert kit.store.size(Digest.of(data)) is None
        assert kit.leftovers() == []

    def test_a_refused_put_leaves_what_was_there(self, kit):
        kit.put(DATA)
        with pytest.raises(IntegrityError):
            kit.target.writer().put(NAME, [DATA[:-1]])
        assert kit.read(NAME) == DATA

    def test_put_twice_is_harmless(self, kit):
        for _ in range(2):
            kit.put(DATA)
            assert kit.read(NAME) == DATA
        writer = kit.target.writer()
        writer.put(NAME, [DATA])
        writer.put(NAME, [DATA])
        writer.flush()
        writer.flush()
        assert kit.read(NAME) == DATA
        assert kit.leftovers() == []

    def test_put_repairs_what_is_damaged(self, kit):
        kit.plant(NAME, DATA[::-1])
        kit.put(DATA)
        assert read_verified(kit.store, NAME, what="it") == DATA

    def test_reuse_goes_by_name_and_size(self, kit):
        writer = kit.target.writer()
        assert not writer.reuse(NAME, len(DATA))
        writer.put(NAME, [DATA])
        assert writer.reuse(NAME, len(DATA))
        assert not writer.reuse(Digest.of(b"other"), len(DATA))
        writer.flush()
        assert kit.target.writer().reuse(NAME, len(DATA))
        assert kit.read(NAME) == DATA

    @pytest.mark.parametrize("there", [b"", DATA[:-1], DATA + b"!"])
    def test_an_object_of_the_wrong_size_is_not_reused_but_replaced(self, kit, there):
        kit.plant(NAME, there)
        writer = kit.target.writer()
        assert not writer.reuse(NAME, len(DATA))
        writer.put(NAME, [DATA])
        writer.flush()
        assert kit.read(NAME) == DATA
        assert writer.reuse(NAME, len(DATA))

    @LAW
    @given(data=st.binary(min_size=1, max_size=300), where=st.data())
    def test_any_flipped_byte_is_detected(self, kit, data, where):
        position = where.draw(st.integers(0, len(data) - 1))
        damaged = bytearray(data)
        damaged[position] ^= where.draw(st.integers(1, 255))
        self._is_detected(kit, data, bytes(damaged))

    @LAW
    @given(data=st.binary(min_size=1, max_size=300), where=st.data())
    def test_any_truncation_is_detected(self, kit, data, where):
        self._is_detected(kit, data, data[: where.draw(st.integers(0, len(data) - 1))])

    @LAW
    @given(data=st.binary(max_size=300), more=st.binary(min_size=1, max_size=10))
    def test_any_extension_is_detected(self, kit, data, more):
        self._is_detected(kit, data, data + more)

    def _is_detected(self, kit, data, damaged):
        digest = Digest.of(data)
        kit.plant(digest, damaged)
        with pytest.raises(IntegrityError, match="the thing") as caught:
            read_verified(kit.store, digest, what="the thing")
        assert not isinstance(caught.value, FileNotFoundError)
        assert caught.value.expected == digest
        assert caught.value.found == Digest.of(damaged)
        assert caught.value.path == kit.store.locate(digest)
        kit.plant(digest, data)
        assert read_verified(kit.store, digest, what="the thing") == data

    def test_an_object_as_large_as_allowed_is_read_and_one_byte_more_is_not(self, kit):
        kit.put(DATA)
        assert read_verified(kit.store, NAME, what="it", max_size=len(DATA)) == DATA
        with pytest.raises(IntegrityError, match="the index is too large"):
            read_verified(kit.store, NAME, what="the index", max_size=len(DATA) - 1)
        with pytest.raises(IntegrityError):
            read_verified(kit.store, NAME, what="it", max_size=0)

    def test_what_is_too_large_is_refused_before_it_is_read(self, kit):
        kit.put(DATA)
        store = Unreadable(kit.store)
        with pytest.raises(IntegrityError):
            read_verified(store, NAME, what="it", max_size=len(DATA) - 1)
        with pytest.raises(NotImplementedError):
            read_verified(store, NAME, what="it", max_size=len(DATA))

    def test_threads_put_the_same_and_others_at_once_and_readers_see_all_or_nothing(self, kit):
        objects = [bytes([n]) * (n * 9_001) for n in range(12)]
        writers, shared = 6, kit.target.writer()
        barrier, done = Barrier(writers + 1), Event()

        def write(seed):
            writer = shared if seed % 2 else kit.target.writer()
            barrier.wait(20)
            for data in random.Random(seed).sample(objects, len(objects)):
                writer.put(Digest.of(data), [data[:5], data[5:]])
                assert writer.reuse(Digest.of(data), len(data))
            writer.flush()

        def read():
            barrier.wait(20)
            seen = 0
            while not done.is_set():
                for data in objects:
                    try:
                        assert read_verified(kit.store, Digest.of(data), what="it") == data
                        seen += 1
                    except ObjectNotFoundError:
                        pass
            return seen

        with ThreadPoolExecutor(writers + 1) as pool:
            reader = pool.submit(read)
            try:
                list(pool.map(write, range(writers)))
            finally:
                done.set()
            reader.result()
        assert [kit.read(Digest.of(data)) for data in objects] == objects
        assert kit.leftovers() == []

    def test_processes_put_the_same_and_others_at_once(self, kit):
        if kit.elsewhere is None:
            pytest.skip("this store lives in one process")
        objects = [bytes([n]) * (n * 9_001) for n in range(12)]
        common = (
            f"from mlstate.digests import Digest\n{kit.elsewhere}\n"
            f"objects = [bytes([n]) * (n * 9_001) for n in range(12)]\n{PUT_EVERYTHING}"
        )
        processes = [
            subprocess.Popen([sys.executable, "-c", common], stderr=subprocess.PIPE)
            for _ in range(4)
        ]
        errors = [process.communicate(timeout=50)[1].decode() for process in processes]
        assert errors == [""] * 4
        assert [process.returncode for process in processes] == [0] * 4
        assert [read_verified(kit.store, Digest.of(d), what="it") for d in objects] == objects
        assert kit.leftovers() == []


class Unreadable:
    """A store whose objects have a size, but whose bytes must not be asked for."""

    def __init__(self, store: ObjectStore) -> None:
        self.size, self.locate = store.size, store.locate

    def open(self, digest: Digest) -> io.RawIOBase:
        size = self.size(digest)

        class File(io.RawIOBase):
            def seekable(self):
                return True

            def seek(self, offset, whence=0):
                return offset + (size if whence == 2 else 0)

            def read(self, size=-1):
                raise NotImplementedError("these bytes must not be read")

        return File()
