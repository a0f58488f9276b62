"""`describe`, `enlist` and `unlist`: what is said of states, and where it is written down."""

from __future__ import annotations

import pytest
import torch

from mlstate import (
    Manifest,
    ManifestStore,
    MemoryStateStore,
    StateKey,
    describe,
    enlist,
    manifest_of,
    unlist,
)
from mlstate.errors import (
    IntegrityError,
    ManifestError,
    StateExistsError,
    StateNotFoundError,
)

ONE, TWO, OTHER = map(
    StateKey.parse, ("pytorch.net.one", "pytorch.net.two", "pytorch.another.three")
)
BIG = torch.arange(10_000.0)


@pytest.fixture
def store(store):
    tied = {"a": BIG, "b": BIG.clone(), "small": torch.ones(2, 3, dtype=torch.bfloat16)}
    store.save_state_dict(tied, ONE, files={"x.txt": b"12345"}, meta={"license": "MIT"})
    store.save_state_dict({"c": BIG, "d": -BIG}, TWO)
    store.save_state_dict({"c": BIG}, OTHER)
    return store


def test_a_tensor_is_described_with_those_that_share_it(store):
    described = describe(store, ONE)
    tensors = {tensor.name: tensor for tensor in described.tensors}
    assert tensors["a"].same_names == ("b",)
    assert tensors["b"].same_names == ("a",)
    assert tensors["a"].states == (str(OTHER), str(TWO))
    assert (tensors["small"].dtype, tensors["small"].shape) == ("BF16", (2, 3))
    assert tensors["small"].digest is None
    assert described.nbytes == sum(tensor.nbytes for tensor in described.tensors)
    assert described.digest == store.digest(ONE)
    (file,) = described.files
    assert (file.name, file.nbytes) == ("x.txt", 5)
    assert described.meta == {"license": "MIT"}


def test_a_state_that_is_elsewhere_is_described_by_its_manifest(store, tmp_path):
    manifest_of(store, objects=["store"]).write(tmp_path / "m.toml")
    view = ManifestStore(tmp_path / "m.toml", cache=tmp_path / "cache")
    described = describe(view, ONE)
    assert [tensor.name for tensor in described.tensors] == ["a", "b", "small"]
    assert described.objects == ("store",)
    assert described.files[0].nbytes is None
    # One object came: the state object.
    assert len(list((tmp_path / "cache").glob("objects/*/*"))) == 1


def test_without_a_state_object_at_hand_no_tensor_is_named(store, tmp_path):
    manifest_of(store, objects=["nowhere"]).write(tmp_path / "m.toml")
    assert describe(ManifestStore(tmp_path / "m.toml", cache=tmp_path / "c"), ONE).tensors is None
    text = 'version = 1\n[states."pytorch.net.one"]\nmirrors = ["a.safetensors"]\n'
    (tmp_path / "u.toml").write_text(text)
    described = describe(ManifestStore(tmp_path / "u.toml", cache=tmp_path / "c"), ONE)
    assert (described.digest, described.tensors) == (None, None)
    assert described.mirrors == ("a.safetensors",)


def test_a_damaged_state_is_an_error_and_a_damaged_neighbour_is_not(store):
    path = store.folder / "objects" / store.digest(TWO)[:2] / store.digest(TWO)[2:]
    path.chmod(0o644)
    path.write_bytes(b"x")
    with pytest.raises(IntegrityError):
        describe(store, TWO)
    states = {tensor.name: tensor.states for tensor in describe(store, ONE).tensors}
    assert states == {"a": (str(OTHER),), "b": (str(OTHER),), "small": ()}
    with pytest.raises(StateNotFoundError):
        describe(store, StateKey.parse("pytorch.net.three"))


def test_states_join_a_manifest_and_leave_it(store, tmp_path):
    path = tmp_path / "m.toml"
    assert enlist(path, store, [ONE], objects=["weights"]) == [ONE]
    path.write_text("# ours\n" + path.read_text())
    assert enlist(path, store, [ONE, TWO], objects=["weights"]) == [TWO]
    assert enlist(path, store, [ONE, TWO], objects=["weights"]) == []
    assert list(Manifest.read(path).states) == [ONE, TWO]
    unlist(path, [ONE])
    assert list(Manifest.read(path).states) == [TWO]
    assert path.read_text().startswith("# ours\n")
    with pytest.raises(StateNotFoundError):
        unlist(path, [TWO, ONE])
    assert list(Manifest.read(path).states) == [TWO]


def test_other_weights_under_a_key_are_refused_unless_overwritten(store, tmp_path):
    path = tmp_path / "m.toml"
    enlist(path, store, [ONE], objects=["weights"])
    other = MemoryStateStore()
    other.save_state_dict({"a": torch.zeros(2)}, ONE)
    before = path.read_bytes()
    with pytest.raises(StateExistsError):
        enlist(path, other, objects=["weights"])
    assert path.read_bytes() == before
    assert enlist(path, other, objects=["weights"], overwrite=True) == [ONE]
    assert Manifest.read(path).states[ONE].digest == other.digest(ONE)


def test_an_unpinned_entry_gets_its_digest(store, tmp_path):
    path = tmp_path / "m.toml"
    path.write_text('version = 1\nobjects = ["weights"]\n[states."pytorch.net.one"]\n')
    assert enlist(path, store, [ONE], objects=["weights"]) == [ONE]
    assert Manifest.read(path).states[ONE].digest == store.digest(ONE)


def test_other_object_mirrors_are_refused(store, tmp_path):
    path = tmp_path / "m.toml"
    enlist(path, store, [ONE], objects=["weights"])
    with pytest.raises(ManifestError, match="other object mirrors"):
        enlist(path, store, [TWO], objects=["elsewhere"])


def test_a_state_leaves_every_file_of_a_folder(store, tmp_path):
    folder = tmp_path / "manifests"
    folder.mkdir()
    enlist(folder / "a.toml", store, [ONE, TWO])
    enlist(folder / "b.toml", store, [ONE])
    unlist(folder, [ONE])
    assert list(Manifest.read(folder).states) == [TWO]
