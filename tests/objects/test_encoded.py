"""Objects in encoded form: what a store says of them, and how they come back."""

from __future__ import annotations

import os
import random
import shutil
import threading
import tomllib

import pytest

from mlstate.buckets.control import BucketControl
from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError, MlstateError, ObjectNotFoundError
from mlstate.format.encoded_object import DEPTH_LIMIT, HEAD_SIZE, Head
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import DATA_OFFSET, TensorSpec, header, object_size
from mlstate.objects import ChainObjectStore, FolderObjectStore, MemoryObjectStore
from mlstate.objects.bucket import BucketObjectStore
from mlstate.objects.decoded import DecodedObject
from mlstate.objects.interface import EncodedObjectStore, EncodingObjectStore
from mlstate.objects.verified import digest_of, open_object, open_tensor, pieces_of
from tests.support.buckets import bucket_place
from tests.support.encoding import encode_all, encode_one, put_tensor

SPEC = TensorSpec("BF16", (300, 3000))  # two blocks; 1.8 MB, so that it may be mapped


def data_of(step: int, spec: TensorSpec = SPEC) -> bytes:
    """Numbers that differ a little from step to step."""
    whole = bytearray(random.Random(7).randbytes(spec.nbytes))
    chance = random.Random(step)
    for _ in range(spec.nbytes // 100 * bool(step)):
        place = 2 * chance.randrange(spec.nbytes // 2)
        whole[place] ^= 1
    return bytes(whole)


@pytest.fixture(params=["folder", "memory", "bucket"])
def store(request, tmp_path):
    if request.param == "memory":
        return MemoryObjectStore()
    if request.param == "bucket":
        moto = request.getfixturevalue("moto")
        return BucketObjectStore(bucket_place(moto, moto.new_bucket(), "a/prefix"))
    return FolderObjectStore(tmp_path / "store")


@pytest.fixture
def folder(tmp_path):
    return FolderObjectStore(tmp_path / "store")


def put_all(store, count: int) -> list[TensorRef]:
    return [put_tensor(store, SPEC, data_of(step)) for step in range(count)]


def whole(step: int) -> bytes:
    return header(SPEC) + data_of(step)


def read(store, ref: TensorRef) -> bytes:
    with open_tensor(store, ref) as file:
        file.seek(0)
        return file.read()


def trash_of(folder: FolderObjectStore) -> list[str]:
    return sorted(path.name for path in (folder.root / "trash").glob("*"))


# What a store says.


def test_it_is_what_it_claims_to_be(store):
    assert isinstance(store, EncodedObjectStore)
    assert isinstance(store, EncodingObjectStore)


def test_an_encoded_object_has_the_size_of_the_plain_one_and_another_beside_it(store):
    refs = put_all(store, 2)
    encode_one(store, refs[0])
    encode_one(store, refs[1], refs[0])
    assert [store.plain_size(ref.digest) for ref in refs] == [object_size(SPEC)] * 2
    assert sorted(store.encoded_digests()) == sorted(ref.digest for ref in refs)
    encode_all(store, refs)
    for ref in refs:
        assert store.plain_size(ref.digest) is None
        assert store.size(ref.digest) == object_size(SPEC)
        assert 0 < store.encoded_size(ref.digest) < object_size(SPEC)
    with pytest.raises(ObjectNotFoundError):
        store.open(refs[0].digest)
    assert store.encoded_size(Digest.of()) is None
    with pytest.raises(ObjectNotFoundError):
        store.open_encoded(Digest.of())


def test_an_encoded_object_lies_where_the_format_says(folder):
    refs = put_all(folder, 2)
    encode_all(folder, refs)
    for ref in refs:
        path = folder.root / "encoded" / ref.digest[:2] / ref.digest[2:]
        assert path.stat().st_mode & 0o222 == 0
        assert folder.locate(ref.digest) == str(path)
        assert folder.encoded_size(ref.digest) == path.stat().st_size
    assert list((folder.root / "tmp").iterdir()) == []


def test_the_settings_say_it_before_a_plain_object_goes(folder):
    (ref,) = put_all(folder, 1)
    encode_one(folder, ref)
    with pytest.raises(FormatError, match="do not say"):
        folder.retire_plain(ref.digest)
    folder.say_encoded()
    assert (folder.root / "mlstate.toml").read_bytes() == b'version = 1\nrequires = ["encoded"]\n'
    assert folder.retire_plain(ref.digest)
    assert not folder.retire_plain(ref.digest)
    assert [name[:65] for name in trash_of(folder)] == [f"{ref.digest}."]


def test_other_settings_stay_when_it_is_said_and_not_said(folder):
    put_all(folder, 1)
    path = folder.root / "mlstate.toml"
    before = b"# ours\r\nversion = 1\r\ncolour = 'green'\r\n[owner]\r\nname = 'me'\r\n"
    path.unlink()
    path.write_bytes(before)
    folder.say_encoded()
    said = path.read_bytes()
    assert tomllib.loads(said.decode()) == {
        **tomllib.loads(before.decode()),
        "requires": ["encoded"],
    }
    assert set(before.splitlines()) <= set(said.splitlines())
    folder.say_encoded()
    assert path.read_bytes() == said
    folder.say_plain()
    assert path.read_bytes() == said.replace(b'["encoded"]', b"[]")


def test_settings_that_need_a_newer_version_are_not_changed(folder):
    put_all(folder, 1)
    path = folder.root / "mlstate.toml"
    path.unlink()
    path.write_bytes(b'version = 1\nrequires = ["packs"]\n')
    with pytest.raises(FormatError, match="newer"):
        folder.say_encoded()
    assert path.read_bytes() == b'version = 1\nrequires = ["packs"]\n'


def test_nothing_is_given_up_that_has_no_other_form(store):
    first, second = put_all(store, 2)
    store.say_encoded()
    encode_one(store, first)
    with pytest.raises(FormatError, match="without an encoded form"):
        store.retire_plain(second.digest)
    store.retire_plain(first.digest)
    with pytest.raises(FormatError, match="only where the object is here plainly"):
        store.drop_encoded(first.digest)
    assert read(store, first) == whole(0)
    assert read(store, second) == whole(1)


def test_it_can_be_undone(store):
    (ref,) = put_all(store, 1)
    encode_all(store, [ref])
    data = read(store, ref)
    writer = store.writer()
    writer.put(ref.digest, [data])
    writer.flush()
    assert store.drop_encoded(ref.digest)
    assert not store.drop_encoded(ref.digest)
    store.say_plain()
    assert store.encoded_size(ref.digest) is None
    with open_tensor(store, ref) as file:
        assert not isinstance(file, DecodedObject)
    assert read(store, ref) == whole(0)


# Reading.


def test_chains_are_decoded_in_all_ways_of_reading(store):
    refs = put_all(store, DEPTH_LIMIT + 1)
    encode_all(store, refs)
    for step in (0, 1, DEPTH_LIMIT - 1, DEPTH_LIMIT):
        ref = refs[step]
        assert read(store, ref) == whole(step)
        assert digest_of(store, ref.digest, SPEC) == ref.digest
        assert b"".join(map(bytes, pieces_of(store, ref.digest, SPEC))) == whole(step)
        with open_object(store, ref.digest, SPEC) as file:
            assert file.seek(-5, 2) == object_size(SPEC) - 5
            assert file.read(3) == whole(step)[-5:-2]
            assert file.read() == whole(step)[-2:]
            assert file.tell() == object_size(SPEC)


@pytest.mark.parametrize("is_encoded", [False, True])
def test_the_base_may_be_plain_or_encoded(store, is_encoded):
    base, ref = put_all(store, 2)
    encode_one(store, base)
    encode_one(store, ref, base)
    store.say_encoded()
    store.retire_plain(ref.digest)
    if is_encoded:
        store.retire_plain(base.digest)
    assert read(store, ref) == whole(1)


def test_a_chain_of_stores_finds_an_object_and_its_base_in_different_ones(tmp_path):
    stores = [FolderObjectStore(tmp_path / name) for name in "ab"]
    for store in stores:
        put_all(store, 2)
    base, ref = put_all(stores[0], 2)
    encode_one(stores[0], base)
    encode_one(stores[0], ref, base)
    stores[0].say_encoded()
    stores[0].retire_plain(ref.digest)
    shutil.rmtree(tmp_path / "a" / "objects")
    (tmp_path / "a" / "encoded" / base.digest[:2] / base.digest[2:]).unlink()
    stores[1].path(ref.digest).unlink()
    chain = ChainObjectStore(stores)
    assert stores[0].size(ref.digest) is None  # not without its base
    assert chain.size(ref.digest) == object_size(SPEC)
    assert read(chain, ref) == whole(1)
    assert chain.locate(ref.digest) == stores[0].locate(ref.digest)


def test_who_has_opened_a_plain_object_keeps_it(folder):
    (ref,) = put_all(folder, 1)
    with open_tensor(folder, ref) as file:
        encode_all(folder, [ref])
        shutil.rmtree(folder.root / "trash")
        file.seek(0)
        assert file.read() == whole(0)


def test_who_has_opened_an_encoded_object_reads_it_after_it_became_plain(folder):
    (ref,) = put_all(folder, 1)
    encode_all(folder, [ref])
    with open_tensor(folder, ref) as file:
        assert isinstance(file, DecodedObject)
        assert folder.restore(ref.digest)
        folder.drop_encoded(ref.digest)
        shutil.rmtree(folder.root / "trash")
        file.seek(0)
        assert file.read() == whole(0)


def test_an_object_is_found_whatever_it_changes_into_while_it_is_looked_for(folder):
    """A compacter and one who undoes it work as fast as they can, on an object and its base."""
    base, ref = put_all(folder, 2)
    encode_one(folder, base)
    encode_one(folder, ref, base)
    folder.say_encoded()
    plain = {one.digest: folder.path(one.digest).read_bytes() for one in (base, ref)}
    forms = {one.digest: folder.encoded_path(one.digest).read_bytes() for one in (base, ref)}
    over, errors = threading.Event(), []

    def change() -> None:
        try:
            while not over.is_set():
                for digest in plain:
                    folder.put_encoded(digest, [forms[digest]])
                    folder.retire_plain(digest)
                for digest, data in plain.items():
                    writer = folder.writer()
                    writer.put(digest, [data])
                    folder.drop_encoded(digest)
                shutil.rmtree(folder.root / "trash", ignore_errors=True)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(60):
            assert read(folder, ref) == whole(1)
            assert folder.size(ref.digest) in (object_size(SPEC), None)
    finally:
        over.set()
        thread.join()
    assert errors == []


# Damage.


def damage(store, digest: Digest, place: int = HEAD_SIZE + 40) -> None:
    file = store.open_encoded(digest)
    data = bytearray(file.read(0, file.size))
    file.close()
    data[place] ^= 1
    store.put_encoded(digest, [data])


def test_a_damaged_encoded_object_is_named(store):
    base, ref = put_all(store, 2)
    encode_all(store, [base, ref])
    for place in (0, 3, 16, 24, HEAD_SIZE + 40, -1, -8):
        damage(store, ref.digest, place)
        with pytest.raises(IntegrityError) as caught:
            read(store, ref)
        assert caught.value.path == store.locate(ref.digest)
        assert read(store, base) == whole(0)
        damage(store, ref.digest, place)
    assert read(store, ref) == whole(1)


def test_a_damaged_base_is_named_as_the_one_to_blame(store):
    refs = put_all(store, 4)
    encode_all(store, refs)
    damage(store, refs[1].digest)
    for ref in refs[1:]:
        with pytest.raises(IntegrityError) as caught:
            read(store, ref)
        error = caught.value
        assert error.path == store.locate(refs[1].digest)
        assert error.expected == refs[1].digest or "encoded object is damaged" in error.message
    assert read(store, refs[0]) == whole(0)


@pytest.mark.parametrize("change", ["bit", "cut", "gone"])
def test_a_damaged_plain_base_is_named_as_the_one_to_blame(folder, change):
    base, ref = put_all(folder, 2)
    encode_one(folder, base)
    encode_one(folder, ref, base)
    folder.say_encoded()
    folder.retire_plain(ref.digest)
    folder.encoded_path(base.digest).unlink()
    path = folder.path(base.digest)
    data = bytearray(path.read_bytes())
    path.unlink()
    data[DATA_OFFSET + 1000] ^= 16
    if change != "gone":
        path.write_bytes(data if change == "bit" else data[:-1])
    with pytest.raises(IntegrityError, match="the base of an encoded object") as caught:
        read(folder, ref)
    assert caught.value.path == str(path)
    if change == "gone":
        assert isinstance(caught.value, ObjectNotFoundError)
        assert folder.size(ref.digest) is None


def test_a_form_that_is_not_known_says_so(store):
    (ref,) = put_all(store, 1)
    encode_all(store, [ref])
    damage(store, ref.digest, 9)  # the method: 0
    with pytest.raises(MlstateError, match="not known"):
        read(store, ref)
    damage(store, ref.digest, 9)
    damage(store, ref.digest, 8)  # version 0
    with pytest.raises(MlstateError, match="not known"):
        read(store, ref)


def test_circles_and_deep_chains_are_refused(store):
    refs = put_all(store, 3)
    encode_all(store, refs)
    body = bytes(SPEC.nbytes + 8)
    for number, ref in enumerate(refs):
        head = Head.of(SPEC, refs[(number + 1) % 3].digest, 5)
        store.put_encoded(ref.digest, [head.encode(), body])
    for ref in refs:
        assert store.size(ref.digest) is None
        with pytest.raises(IntegrityError, match="lower depth"):
            read(store, ref)


def test_an_object_of_another_shape_is_refused(store):
    (ref,) = put_all(store, 1)
    encode_all(store, [ref])
    for shape in [(3000, 300), (300, 3001), (300,)]:
        with pytest.raises(IntegrityError):
            read(store, TensorRef(TensorSpec("BF16", shape), ref.digest))


def test_a_bool_that_is_none_is_refused(store):
    spec = TensorSpec("BOOL", (20_000,))
    ref = put_tensor(store, spec, bytes([1, 0, 2, 1] * 5000))
    encode_all(store, [ref])
    with pytest.raises(FormatError, match="other than 0 and 1") as caught:
        read(store, ref)
    assert caught.value.path == store.locate(ref.digest)


# Writing beside it.


def test_a_saver_into_a_bucket_takes_an_encoded_object_and_makes_it_young(moto, monkeypatch):
    store = BucketObjectStore(bucket_place(moto, moto.new_bucket(), "a/prefix"))
    base, ref = put_all(store, 2)
    encode_one(store, ref, base)
    store.say_encoded()
    store.retire_plain(ref.digest)
    paths = [store.encoded_path(ref.digest), store.path(base.digest)]
    writer = BucketObjectStore(store.place).writer()
    assert writer.reuse(ref.digest, object_size(SPEC))  # young as they are
    monkeypatch.setattr("mlstate.objects.bucket._FRESH_SECONDS", 0)
    freshened: list[str] = []
    freshen = BucketControl.freshen

    def noted(control, item):
        freshened.append(item.path)
        return freshen(control, item)

    monkeypatch.setattr(BucketControl, "freshen", noted)
    assert not writer.reuse(ref.digest, object_size(SPEC) + 1)
    assert freshened == []
    assert writer.reuse(ref.digest, object_size(SPEC))
    assert freshened == paths
    store.place.client.delete(paths[1])
    assert not BucketObjectStore(store.place).writer().reuse(ref.digest, object_size(SPEC))


def test_the_presence_of_many_objects_counts_encoded_ones(moto):
    store = BucketObjectStore(bucket_place(moto, moto.new_bucket(), "a/prefix"))
    small = TensorSpec("BF16", (90, 100))
    refs = [put_tensor(store, small, data_of(step, small)) for step in range(20)]
    encode_all(store, refs[:10])
    presence = store.survey()
    assert [presence.size(ref.digest) for ref in refs] == [object_size(small)] * 20
    assert presence.size(Digest.of(b"absent")) is None


def test_a_saver_takes_an_encoded_object_and_makes_all_that_it_needs_young(folder):
    base, middle, ref = put_all(folder, 3)
    encode_one(folder, middle, base)
    encode_one(folder, ref, middle, 1)
    folder.say_encoded()
    folder.retire_plain(ref.digest)
    folder.retire_plain(middle.digest)
    paths = [folder.path(base.digest), *map(folder.encoded_path, (middle.digest, ref.digest))]
    for path in paths:
        os.utime(path, (1, 1))
    writer = folder.writer()
    assert not writer.reuse(ref.digest, object_size(SPEC) + 1)
    assert [path.stat().st_mtime for path in paths] == [1, 1, 1]
    assert writer.reuse(ref.digest, object_size(SPEC))
    writer.flush()
    assert all(path.stat().st_mtime > 1e9 for path in paths)
    paths[0].unlink()
    assert not writer.reuse(ref.digest, object_size(SPEC))
    writer.put(ref.digest, [whole(2)])
    assert folder.plain_size(ref.digest) == object_size(SPEC)
