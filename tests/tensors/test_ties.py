"""Names that share memory: a state may lack some, and may not contradict itself.

What is missing is held against safetensors' `load_model`, which reads the same tensors from a file.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_model, save_file
from torch import nn

from mlstate import MemoryStateStore, StateKey, with_state_type
from mlstate.errors import IncompatibleStateError
from mlstate.tensors.ties import covered, overlapping, stand_apart, tied_groups
from tests.support.models import LINEAR, NoModule, same, values

KEY = StateKey(LINEAR, "a")


class Shared(nn.Module):
    """A tied weight, a buffer with a part and a turned view of it, and one that stands apart."""

    state_type = LINEAR

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(90, 60)
        self.head = nn.Linear(60, 90, bias=False)
        self.head.weight = self.embed.weight
        whole = torch.randn(30, 40)
        self.register_buffer("whole", whole)
        self.register_buffer("part", whole[10:20])
        self.register_buffer("turned", whole.t())
        self.register_buffer("alone", torch.randn(5))


class Tied(nn.Module):
    state_type = LINEAR

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(7, 3))
        self.b = self.a
        self.c = nn.Parameter(torch.zeros(2))


def stored(store, tensors):
    store.save_state_dict({n: t.contiguous() for n, t in tensors.items()}, KEY, overwrite=True)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "lacking",
    [
        ["head.weight"],
        ["embed.weight"],
        ["part"],
        ["part", "turned"],
        ["whole", "part"],  # the turned view has all of it
        ["head.weight", "part", "turned"],
    ],
)
def test_what_others_have_in_the_model_is_not_missing(store, tmp_path, lacking, strict):
    tensors = {n: t for n, t in values(Shared(1)).items() if n not in lacking}
    stored(store, tensors)
    model = Shared(2)
    result = store.load(model, KEY, strict=strict)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert result.tied_keys == [name for name in model.state_dict() if name in lacking]
    assert same(values(model), values(Shared(1)))
    assert model.head.weight is model.embed.weight


def test_safetensors_own_load_takes_the_same_as_whole(store, tmp_path):
    tensors = values(Tied())
    for kept, dropped in (("a", "b"), ("b", "a")):
        given = {"c": tensors["c"] + 1, kept: tensors[kept] + 2}
        save_file(given, tmp_path / "x.safetensors")
        stored(store, given)
        ours, theirs = Tied(), Tied()
        assert load_model(theirs, tmp_path / "x.safetensors") == (set(), [])
        assert store.load(ours, KEY).tied_keys == [dropped]
        assert same(values(ours), values(theirs))
    save_file({"a": tensors["a"]}, tmp_path / "y.safetensors")
    stored(store, {"a": tensors["a"]})
    with pytest.raises(RuntimeError, match=r'Missing key.*: "c"'):
        load_model(Tied(), tmp_path / "y.safetensors")
    with pytest.raises(IncompatibleStateError, match=r"missing in the state: c"):
        store.load(Tied(), KEY)


@pytest.mark.parametrize(
    "lacking", [["alone"], ["whole", "turned"], ["embed.weight", "head.weight"]]
)
def test_what_nothing_has_is_missing(store, lacking):
    stored(store, {n: t for n, t in values(Shared(1)).items() if n not in lacking})
    model = Shared(2)
    before = values(model)
    with pytest.raises(IncompatibleStateError, match=f"missing in the state: {lacking[0]}"):
        store.load(model, KEY)
    assert same(values(model), before)
    result = store.load(model, KEY, strict=False)
    assert (result.missing_keys, result.tied_keys) == (lacking, [])


def test_a_whole_that_all_its_parts_make_up_is_not_missing(store):
    class Flat(nn.Module):
        state_type = LINEAR

        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            whole = torch.randn(12)
            self.register_buffer("whole", whole)
            for start in (0, 4, 8):
                self.register_buffer(f"part{start}", whole[start : start + 4])

    stored(store, {n: t for n, t in values(Flat(1)).items() if n != "whole"})
    model = Flat(2)
    assert store.load(model, KEY).tied_keys == ["whole"]
    assert same(values(model), values(Flat(1)))
    stored(store, {n: t for n, t in values(Flat(1)).items() if n not in ("whole", "part4")})
    with pytest.raises(IncompatibleStateError, match="missing in the state: whole, part4"):
        store.load(Flat(2), KEY)


@pytest.mark.parametrize(
    ("name", "at", "group"),
    [
        ("part", (0, 0), "part and turned and whole"),
        ("turned", (0, 0), "part and turned and whole"),
        ("turned", (39, 29), "part and turned and whole"),
        ("head.weight", (89, 59), "embed.weight and head.weight"),
    ],
)
def test_values_that_contradict_each_other_are_refused(store, name, at, group):
    tensors = values(Shared(1))
    stored(store, tensors)
    assert store.load(Shared(2), KEY) == ([], [])
    tensors[name] = tensors[name].clone()
    tensors[name][at] += 1
    stored(store, tensors)
    model = Shared(2)
    before = values(model)
    with pytest.raises(IncompatibleStateError, match="different values") as caught:
        store.load(model, KEY)
    assert sorted(str(caught.value.found).split(" and ")) == sorted(group.split(" and "))
    assert same(values(model), before)
    torchs = Shared(2)
    torchs.load_state_dict(tensors)
    store.load(model, KEY, strict=False)  # the last wins, as in torch
    assert same(values(model), values(torchs))


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.complex64, torch.bool, torch.bfloat16]
)
def test_they_are_compared_bit_for_bit_in_any_dtype(store, dtype):
    class Parts(nn.Module):
        state_type = LINEAR

        def __init__(self):
            super().__init__()
            whole = torch.zeros(6).to(dtype)
            self.register_buffer("whole", whole)
            self.register_buffer("part", whole[2:4])

    values_of = {"whole": torch.ones(6).to(dtype), "part": torch.ones(2).to(dtype)}
    stored(store, values_of)
    assert store.load(Parts(), KEY) == ([], [])
    stored(store, {**values_of, "part": torch.tensor([1, 0]).to(dtype)})
    with pytest.raises(IncompatibleStateError, match=r"part and whole|whole and part"):
        store.load(Parts(), KEY)


def test_views_beside_each_other_do_not_contradict_each_other(store):
    class Columns(nn.Module):
        state_type = LINEAR

        def __init__(self):
            super().__init__()
            whole = torch.zeros(4, 6)
            self.register_buffer("left", whole[:, :3])
            self.register_buffer("right", whole[:, 3:])

    tensors = {"left": torch.ones(4, 3), "right": torch.full((4, 3), 2.0)}
    stored(store, tensors)
    model = Columns()
    store.load(model, KEY)
    assert same(values(model), tensors)
    stored(store, {"left": tensors["left"]})  # within its span, and not a part of it
    with pytest.raises(IncompatibleStateError, match="missing in the state: right"):
        store.load(Columns(), KEY)


def test_a_tie_to_what_is_skipped_for_its_shape_is_not_missing_either(store):
    tensors = values(Shared(1))
    del tensors["head.weight"]
    tensors["embed.weight"] = torch.zeros(3, 60)
    stored(store, tensors)
    model = Shared(2)
    result = store.load(model, KEY, ignore_mismatched_sizes=True)
    assert list(result.mismatched_keys) == ["embed.weight"]
    assert (result.missing_keys, result.tied_keys) == ([], ["head.weight"])
    assert torch.equal(model.head.weight, Shared(2).head.weight)


def test_a_model_that_is_no_module(store):
    tensor = torch.zeros(4)
    stored(store, {"a": torch.ones(4)})
    model = NoModule(a=tensor, b=tensor)
    assert store.load(model, KEY).tied_keys == ["b"]


@pytest.mark.parametrize("assign", [False, True])
def test_a_model_with_rules_of_its_own(store, assign):
    """A name that a hook renames counts as there, and so does what is tied to it."""
    model = Tied()
    model.register_load_state_dict_pre_hook(
        lambda module, state, *rest: state.update(a=state.pop("old"))
    )
    stored(store, {"old": torch.ones(7, 3), "c": torch.ones(2)})
    assert store.load(model, KEY, assign=assign).tied_keys == ["b"]
    assert bool((model.b == 1).all())
    assert model.b is model.a
    stored(store, {"old": torch.ones(7, 3)})
    with pytest.raises(IncompatibleStateError, match="missing: c"):
        store.load(model, KEY, assign=assign)


class TestOnTheMetaDevice:
    """A storage without memory is shared all the same."""

    def own(self):
        with torch.device("meta"):
            return Shared().state_dict(keep_vars=True)

    def test_ties_and_parts_are_seen(self):
        own = self.own()
        assert not stand_apart(own)
        groups = tied_groups(own)
        assert groups == [["embed.weight", "head.weight"]]
        assert [sorted(names) for names in overlapping(own, groups)] == [
            ["part", "turned", "whole"]
        ]
        assert covered(own, ["part", "alone"], ["whole"]) == {"part"}
        with torch.device("meta"):
            assert stand_apart({"a": torch.zeros(3), "b": torch.zeros(3), "c": torch.zeros(0)})

    def test_parts_are_not_parted_there_either(self, store):
        stored(store, values(Shared(1)))
        with torch.device("meta"):
            model = Shared()
        with pytest.raises(IncompatibleStateError, match=r"would part: part, turned, whole"):
            store.load(model, KEY, assign=True)
        assert all(tensor.is_meta for tensor in model.state_dict().values())

    def test_parameters_that_would_share_memory_do_so_afterwards(self, store):
        def make():
            module = nn.Module()
            memory = torch.zeros(90, 90)
            module.p, module.q = nn.Parameter(memory), nn.Parameter(memory)
            return with_state_type(module, LINEAR)

        stored(store, {"p": torch.ones(90, 90)})
        with torch.device("meta"):
            model = make()
        assert store.load(model, KEY, assign=True).tied_keys == ["q"]
        assert model.p is not model.q
        assert model.p.data_ptr() == model.q.data_ptr()


SLICES = st.lists(
    st.tuples(st.integers(0, 11), st.integers(1, 12)).map(lambda at: (at[0], min(12, sum(at)))),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(slices=SLICES, data=st.data())
def test_a_name_is_missing_if_torch_leaves_something_of_it_unwritten(slices, data):
    """Torch writes what is there into memory without values: what has values then is there."""

    def make(memory):
        module = with_state_type(nn.Module(), LINEAR)
        for number, (start, end) in enumerate(slices):
            module.register_buffer(f"b{number}", memory[start:end])
        return module

    source = make(torch.arange(12.0))
    lacking = data.draw(st.sets(st.sampled_from([*source.state_dict()]), max_size=len(slices) - 1))
    there = {name: t.clone() for name, t in source.state_dict().items() if name not in lacking}
    ours, torchs = make(torch.full((12,), torch.nan)), make(torch.full((12,), torch.nan))
    torchs.load_state_dict(there, strict=False)
    unwritten = [name for name in torchs.state_dict() if torchs.get_buffer(name).isnan().any()]
    store = MemoryStateStore()
    store.save_state_dict(there, KEY)
    if unwritten:
        with pytest.raises(IncompatibleStateError, match=f"missing in the state: {unwritten[0]}"):
            store.load(ours, KEY)
        assert all(ours.get_buffer(name).isnan().all() for name in ours.state_dict())
    else:
        assert set(store.load(ours, KEY).tied_keys) == lacking
        assert same(values(ours), values(source))
    with torch.device("meta"):
        own = make(torch.zeros(12)).state_dict()
    assert covered(own, lacking, there) == lacking - set(unwritten)
