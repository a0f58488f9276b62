"""Damage: any bit of any object, and anything else that can happen to the files of a store."""

from __future__ import annotations

import os
import random
import shutil
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlstate import LocalStateStore, StateKey
from mlstate.digests import Digest
from mlstate.errors import (
    FormatError,
    IntegrityError,
    ManifestError,
    MlstateError,
    ObjectNotFoundError,
    StateNotFoundError,
)
from mlstate.format import tensor_object
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.format.tensor_object import TensorSpec
from mlstate.reading import read_state
from tests.support.models import LINEAR, net, same, values

KEY, OTHER = StateKey(LINEAR, "a"), StateKey(LINEAR, "b")


@pytest.fixture
def store(store):
    store.save(net(1), "a", files={"f": b"file"})
    store.save(net(2), "b")
    return store


def objects_of(store: LocalStateStore, key: StateKey) -> list[Digest]:
    found = store.get(key)
    state = read_state(*found)
    return [found.entry.pinned_digest, *(ref.digest for ref in state.refs.values())]


def rewrite(store: LocalStateStore, digest: Digest, data: bytes) -> None:
    path = store.objects.path(digest)
    path.unlink()
    path.write_bytes(data)


def flip(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize("assign", [False, True])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_flipped_bit_of_any_object_is_found(store, assign, data):
    digest = data.draw(st.sampled_from(objects_of(store, KEY)))
    path = store.objects.path(digest)
    good = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(good) - 1) | st.integers(0, 8 * 4200))
    rewrite(store, digest, flip(good, bit % (8 * len(good))))
    model = net(3)
    before = values(model)
    with pytest.raises(IntegrityError) as caught:
        store.load(model, KEY, assign=assign)
    error = caught.value
    assert (error.key, error.path, error.expected) == (KEY, str(path), digest)
    assert error.found not in (None, digest)
    if digest != store.digest(KEY):
        assert error.tensor in ("0.weight", "2.weight")
    assert same(values(model), before)
    with pytest.raises(IntegrityError):
        store.load_state_dict(KEY)
    store.load(model, OTHER)  # the other states still load
    assert same(values(model), values(net(2)))
    rewrite(store, digest, good)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_flipped_bit_of_a_state_file_is_an_error_or_changes_no_weights(store, data):
    path = store.folder / "states/pytorch/net/a.toml"
    good = path.read_bytes()
    path.unlink()
    path.write_bytes(flip(good, data.draw(st.integers(0, 8 * len(good) - 1))))
    model = net(3)
    try:
        store.load(model, KEY)
    except MlstateError:
        assert same(values(model), values(net(3)))
    else:
        assert same(values(model), values(net(1)))
    store.load(model, OTHER)
    assert KEY in store.get_state_keys(LINEAR)  # listing opens no state file
    path.unlink()
    path.write_bytes(good)


@pytest.mark.parametrize("which", [0, 1])
def test_a_truncated_and_an_extended_object(store, which):
    digest = objects_of(store, KEY)[which]
    good = store.objects.path(digest).read_bytes()
    for damaged in (good[:-1], good[:4096], good[:7], b"", good + b"\0"):
        rewrite(store, digest, damaged)
        with pytest.raises(IntegrityError) as caught:
            store.load(net(3), KEY)
        assert caught.value.path == str(store.objects.path(digest))
        assert caught.value.expected is not None
        assert caught.value.found is not None
        if which:
            assert caught.value.found == f"{len(damaged)} bytes"


def test_two_swapped_objects(store):
    _, first, second = objects_of(store, KEY)
    a, b = (store.objects.path(digest).read_bytes() for digest in (first, second))
    rewrite(store, first, b)
    rewrite(store, second, a)
    model = net(3)
    with pytest.raises(IntegrityError):
        store.load(model, KEY)
    assert same(values(model), values(net(3)))


@pytest.mark.parametrize("which", [0, 1])
def test_a_removed_object(store, which):
    digest = objects_of(store, KEY)[which]
    store.objects.path(digest).unlink()
    with pytest.raises(ObjectNotFoundError) as caught:
        store.load(net(3), KEY)
    assert isinstance(caught.value, FileNotFoundError)
    assert (caught.value.key, caught.value.expected) == (KEY, digest)
    assert caught.value.tensor == (None if which == 0 else "0.weight")


def test_a_damaged_file_of_a_state(store):
    digest = store.get(KEY).entry.files["f"].digest
    rewrite(store, digest, b"fi1e")
    with pytest.raises(IntegrityError, match="'f'") as caught:
        store.files(KEY)["f"]
    assert caught.value.key == KEY


def test_saving_again_mends_what_is_missing_and_with_verify_what_is_damaged(store):
    _, first, second = objects_of(store, KEY)
    good = store.objects.path(first).read_bytes()
    store.objects.path(second).unlink()
    rewrite(store, first, good[:-1])
    store.save(net(1), "a", files={"f": b"file"})
    store.load(net(3), KEY)
    rewrite(store, first, flip(good, 50_000))
    store.save(net(1), "a", files={"f": b"file"})
    with pytest.raises(IntegrityError):
        store.load(net(3), KEY)
    store.save(net(1), "a", files={"f": b"file"}, verify=True)
    store.load(net(3), KEY)


def test_verify_mends_an_object_that_another_state_reuses(store):
    first = objects_of(store, KEY)[1]
    rewrite(store, first, flip(store.objects.path(first).read_bytes(), 50_000))
    tensors = {"again": net(1)[0].weight.detach()}
    store.save_state_dict(tensors, StateKey(LINEAR, "c"), verify=True)
    store.load(net(3), KEY)


def test_a_state_file_that_names_another_state(store):
    folder = store.folder / "states/pytorch/net"
    shutil.copy(folder / "a.toml", folder / "c.toml")
    with pytest.raises(ManifestError) as caught:
        store.load(net(3), StateKey(LINEAR, "c"))
    assert caught.value.path == str(folder / "c.toml")


@pytest.mark.parametrize("text", ["", "garbage", "version = 1", "version = 2", "\0"])
def test_a_state_file_that_cannot_be_read_fails_alone_and_can_be_overwritten(store, text):
    path = store.folder / "states/pytorch/net/a.toml"
    path.unlink()
    path.write_text(text)
    with pytest.raises(ManifestError) as caught:
        store.load(net(3), KEY)
    assert str(path) in str(caught.value)
    store.load(net(3), OTHER)
    assert store.exists(KEY)
    with pytest.raises(ManifestError, match="overwrite=True"):
        store.save(net(1), "a")
    store.save(net(1), "a", overwrite=True)
    store.load(net(3), KEY)


def test_a_state_file_that_is_no_file_is_refused_and_waits_for_nobody(store):
    path = store.folder / "states/pytorch/net/a.toml"
    path.unlink()
    for make, unmake in (
        (lambda: path.symlink_to("/nowhere/a.toml"), path.unlink),
        (path.mkdir, path.rmdir),
        (lambda: os.mkfifo(path), path.unlink),
        (lambda: path.write_bytes(b"#" * (1 << 25)), path.unlink),
    ):
        make()
        for use in (
            lambda: store.load(net(3), KEY),
            lambda: store.save(net(1), "a"),
            store.prune,
        ):
            with pytest.raises(ManifestError) as caught:
                use()
            assert caught.value.path == str(path)
        store.load(net(3), OTHER)
        unmake()


def test_whatever_is_in_a_state_files_place_can_be_overwritten(store):
    path = store.folder / "states/pytorch/net/a.toml"
    for make in (lambda: path.symlink_to("/nowhere/a.toml"), lambda: os.mkfifo(path)):
        path.unlink()
        make()
        store.save(net(1), "a", overwrite=True)
        store.load(net(3), KEY)


def test_a_state_file_of_another_size_is_refused(store):
    path = store.folder / "states/pytorch/net/a.toml"
    text = path.read_text()
    path.unlink()
    path.write_text(text.replace("size = ", "size = 1"))
    with pytest.raises(IntegrityError, match="size"):
        store.load(net(3), KEY)


def test_an_object_that_is_not_what_the_state_object_says_of_it(store):
    """All digests are right, but the state object calls F32 what is I32."""
    data = bytes(16_384)
    stored = TensorSpec("I32", (4096,))
    header = tensor_object.header(stored)
    digest = Digest.of(header, data)
    state = StateObject({}, {"x": TensorRef(TensorSpec("F32", (4096,)), digest)}).encode()
    writer = store.objects.writer()
    writer.put(digest, [header, data])
    writer.put(Digest.of(state), [state])
    text = f'version = 1\n[states."pytorch.net.c"]\nblake3 = "{Digest.of(state)}"\n'
    (store.folder / "states/pytorch/net/c.toml").write_text(text)
    with pytest.raises(FormatError) as caught:
        store.load_state_dict(StateKey(LINEAR, "c"))
    assert caught.value.tensor == "x"


def test_reading_some_names_verifies_those_only(store):
    first = objects_of(store, KEY)[1]
    rewrite(store, first, flip(store.objects.path(first).read_bytes(), 50_000))
    assert list(store.load_state_dict(KEY, names=["2.weight", "0.bias"])) == ["2.weight", "0.bias"]
    with pytest.raises(IntegrityError) as caught:
        store.load_state_dict(KEY, names=["0.weight"])
    assert caught.value.tensor == "0.weight"


def test_random_garbage_in_a_store_never_crashes_otherwise(store, tmp_path):
    """Fuzz: many random damages at once give a typed error or the right weights."""
    rng = random.Random(0)
    for _ in range(40):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(store.folder, copy)
        for path in rng.sample([path for path in copy.rglob("*") if path.is_file()], 2):
            data = path.read_bytes()
            path.unlink()
            cut = rng.randrange(len(data) + 1)
            path.write_bytes(
                rng.choice([data[:cut], data + rng.randbytes(9), flip(data, cut), b"", data[::-1]])
            )
        model = net(3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                LocalStateStore(copy).load(model, KEY)
            except (MlstateError, StateNotFoundError):
                assert same(values(model), values(net(3)))
            else:
                assert same(values(model), values(net(1)))


def test_a_bool_object_with_other_bytes_is_refused(store):
    spec = TensorSpec("BOOL", (20_000,))
    header, data = tensor_object.header(spec), b"\x01" * 19_999 + b"\x02"
    digest = Digest.of(header, data)
    state = StateObject({}, {"mask": TensorRef(spec, digest)}).encode()
    writer = store.objects.writer()
    writer.put(digest, [header, data])
    writer.put(Digest.of(state), [state])
    text = f'version = 1\n[states."pytorch.net.c"]\nblake3 = "{Digest.of(state)}"\n'
    (store.folder / "states/pytorch/net/c.toml").write_text(text)
    with pytest.raises(FormatError, match="BOOL"):
        store.load_state_dict(StateKey(LINEAR, "c"))


def test_the_store_given_is_whole_after_all_this(store):
    """The fixture itself: what it saves loads, so the failures above are the damage's."""
    for key, seed in ((KEY, 1), (OTHER, 2)):
        model = net(3)
        store.load(model, key)
        assert same(values(model), values(net(seed)))
    assert torch.equal(store.load_state_dict(KEY)["0.weight"], net(1)[0].weight)
