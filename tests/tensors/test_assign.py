"""Assigning into a module does what torch's own load does, wherever the short way is taken."""

from __future__ import annotations

import copy
import ctypes

import pytest
import torch
from torch import nn

from mlstate import LocalStateStore, StateKey, StateType, with_state_type
from mlstate.errors import IncompatibleStateError, IntegrityError
from mlstate.tensors import load
from tests.support.models import LINEAR, net, same, values

LSTM = StateType("pytorch", "lstm")


class Twice(nn.Module):
    """A module that is there under two names, a tied weight, a scalar, and one of each dtype."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(90, 90)
        self.again = self.first
        self.head = nn.Linear(90, 90)
        self.head.weight = self.first.weight
        self.scale = nn.Parameter(torch.randn(()), requires_grad=False)
        self.turned = nn.Parameter(torch.randn(70, 80).t())
        self.register_buffer("count", torch.randint(100, (3, 5)))
        self.register_buffer("mask", torch.randint(2, (200,)).bool())
        self.register_buffer("narrow", torch.randn(9000).bfloat16())
        self.register_buffer("none", torch.empty(0, 4))
        self.register_buffer("cache", torch.randn(3), persistent=False)


class Large(nn.Module):
    """Tensors of more than a megabyte, apart from each other: of several pieces, and turned."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.pieces = nn.Parameter(torch.randn(1500, 1777))  # 10.7 MB
        self.turned = nn.Parameter(torch.randn(600, 700).t())
        self.complex = nn.Parameter(torch.randn(300, 500, dtype=torch.complex64))
        self.register_buffer("count", torch.randint(100, (700, 500)))
        self.small = nn.Linear(9, 9)


MODELS = {
    "large": lambda seed: with_state_type(Large(seed), LINEAR),
    "net": lambda seed: net(seed),
    "twice": lambda seed: with_state_type(Twice(seed), LINEAR),
}


@pytest.fixture(params=MODELS)
def make(request):
    return MODELS[request.param]


@pytest.fixture
def torchs_own(monkeypatch):
    """How often torch's own load was called."""
    calls = []
    own = nn.Module.load_state_dict

    def counted(self, *args, **options):
        calls.append(self)
        return own(self, *args, **options)

    monkeypatch.setattr(nn.Module, "load_state_dict", counted)
    return calls


@pytest.mark.parametrize("assign", [False, True])
def test_it_loads_what_torchs_own_load_does(make, assign, tmp_path, torchs_own):
    store, source = LocalStateStore(tmp_path), make(1)
    key = store.save(source, "one")
    ours, torchs = make(2), make(2)
    kept = values(ours)
    result = store.load(ours, key, assign=assign)
    assert torchs_own == []
    assert not result.missing_keys
    assert not result.unexpected_keys
    torchs.load_state_dict(values(source), assign=assign)
    assert same(values(ours), values(torchs))
    assert not same(values(ours), kept)
    for name, own in ours.named_parameters():
        assert type(own) is nn.Parameter
        assert own.requires_grad == torchs.get_parameter(name).requires_grad


def test_a_copy_leaves_the_models_own_tensors_in_place(make, tmp_path, torchs_own):
    store = LocalStateStore(tmp_path)
    key = store.save(make(1), "one")
    model = make(2)
    before = {name: (id(t), t.data_ptr(), t._version) for name, t in model.named_parameters()}
    store.load(model, key)
    assert torchs_own == []
    for name, tensor in model.named_parameters():
        same_tensor, same_memory, version = before[name]
        assert (id(tensor), tensor.data_ptr()) == (same_tensor, same_memory)
        assert tensor._version > version, "autograd is to see that the values changed"


def test_gradients_of_values_that_a_load_replaced_are_refused(tmp_path):
    store, model = LocalStateStore(tmp_path), net(1)
    key = store.save(model, "one")
    loss = model(torch.randn(4, 64)).square().sum()
    store.load(model, key)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_module_that_keeps_its_parameters_elsewhere_too_sees_the_new_ones(tmp_path, torchs_own):
    def lstm(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return with_state_type(nn.LSTM(32, 64), LSTM)

    store, source, model = LocalStateStore(tmp_path), lstm(1), lstm(2)
    store.load(model, store.save(source, "one"), assign=True)
    assert torchs_own == []
    data = torch.randn(5, 2, 32)
    assert torch.equal(model(data)[0], source(data)[0])


def test_who_wants_to_hear_of_new_parameters_does(tmp_path, torchs_own):
    store, source, model = LocalStateStore(tmp_path), net(1), net(2)
    key = store.save(source, "one")
    heard = []
    hooks = [
        nn.modules.module.register_module_parameter_registration_hook(
            lambda module, name, parameter: heard.append(name)
        ),
        nn.modules.module.register_module_buffer_registration_hook(
            lambda module, name, buffer: heard.append(name)
        ),
    ]
    try:
        store.load(model, key, assign=True)
    finally:
        for hook in hooks:
            hook.remove()
    assert torchs_own == []
    assert sorted(heard) == sorted(name.rpartition(".")[2] for name in model.state_dict())
    assert same(values(model), values(source))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("shapes", [[(900, 900)], [(3,)], [(900, 900), (700, 800)]])
def test_a_model_of_large_ones_or_of_small_ones_alone(assign, shapes, tmp_path):
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        tensors = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        return with_state_type(nn.ParameterList(tensors), LINEAR)

    store, source, model = LocalStateStore(tmp_path), make(1), make(2)
    store.load(model, store.save(source, "one"), assign=assign)
    assert same(values(model), values(source))


@pytest.mark.parametrize("assign", [False, True])
def test_a_conjugate_view_in_a_model_takes_the_values(assign, tmp_path):
    """Torch refuses to copy into such views by one call for several."""
    source, model = (with_state_type(nn.Module(), LINEAR) for _ in "ab")
    source.register_buffer("view", torch.full((400, 500), 1 + 2j).conj())
    model.register_buffer("view", torch.full((400, 500), 3 + 4j).conj())
    store = LocalStateStore(tmp_path)
    store.load(model, store.save(source, "one"), assign=assign)
    assert torch.equal(model.view, source.view)


def test_a_large_tensor_of_another_dtype_is_cast(tmp_path):
    store, source = LocalStateStore(tmp_path), MODELS["large"](1)
    key = store.save(source, "one")
    model = MODELS["large"](2)
    model.pieces.data = model.pieces.data.double()
    assert store.load(model, key).cast_keys == ["pieces"]
    assert torch.equal(model.pieces, source.pieces.double())


def test_each_assigned_tensor_has_a_memory_of_its_own(tmp_path):
    """Small tensors lie together in the state object, and not in the model."""
    store, model = LocalStateStore(tmp_path), net(2)
    store.load(model, store.save(net(1), "one"), assign=True)
    storages = [entry.untyped_storage() for entry in model.state_dict().values()]
    assert len({storage.data_ptr() for storage in storages}) == len(storages)
    for entry, storage in zip(model.state_dict().values(), storages, strict=True):
        assert storage.nbytes() == entry.nbytes


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("way", ["hook", "fewer names", "swapping"])
def test_where_torchs_own_rules_matter_they_are_asked(way, assign, tmp_path, torchs_own):
    store, model = LocalStateStore(tmp_path), net(2)
    key = store.save(net(1), "one")
    swapping = torch.__future__.get_swap_module_params_on_conversion()
    try:
        if way == "hook":
            model.register_load_state_dict_post_hook(lambda module, keys: None)
        elif way == "fewer names":
            model = with_state_type(nn.Sequential(*model[:3]), LINEAR)
        else:
            torch.__future__.set_swap_module_params_on_conversion(True)
        store.load(model, key, assign=assign, strict=way != "fewer names")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapping)
    assert torchs_own == [model]
    loaded, source = values(model), values(net(1))
    assert same(loaded, {name: source[name] for name in loaded})


@pytest.mark.parametrize("assign", [False, True])
def test_damage_leaves_the_model_as_it_was(assign, tmp_path):
    store, model = LocalStateStore(tmp_path), net(2)
    key = store.save(net(1), "one")
    damaged = max(tmp_path.glob("objects/*/*"), key=lambda path: path.stat().st_size)
    damaged.chmod(0o644)
    with damaged.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    before, tensors = copy.deepcopy(values(model)), dict(model.named_parameters())
    with pytest.raises(IntegrityError):
        store.load(model, key, assign=assign)
    assert same(values(model), before)
    assert all(model.get_parameter(name) is tensor for name, tensor in tensors.items())


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_copy_is_completed_before_it_is_told(after, tmp_path, monkeypatch):
    """All is verified by then, and a model that is half loaded is of no use."""
    store, source, model = LocalStateStore(tmp_path), MODELS["large"](1), MODELS["large"](2)
    key = store.save(source, "one")
    really, calls = ctypes.memmove, []

    def memmove(*arguments):
        calls.append(arguments)
        if len(calls) > after:
            raise KeyboardInterrupt
        return really(*arguments)

    monkeypatch.setattr(ctypes, "memmove", memmove)
    with pytest.raises(KeyboardInterrupt):
        store.load(model, key)
    assert same(values(model), values(source))


def test_an_interrupted_assignment_is_completed_before_it_is_told(tmp_path, monkeypatch):
    store, source, model = LocalStateStore(tmp_path), MODELS["twice"](1), MODELS["twice"](2)
    key = store.save(source, "one")
    really, calls = load._assign, []

    def once(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        really(*arguments)

    monkeypatch.setattr(load, "_assign", once)
    with pytest.raises(KeyboardInterrupt):
        store.load(model, key, assign=True)
    assert same(values(model), values(source))


@pytest.mark.parametrize("assign", [False, True])
def test_an_extra_state_that_is_a_tensor_goes_to_its_module(assign, tmp_path):
    class Extra(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def get_extra_state(self) -> torch.Tensor:
            return torch.tensor(self.number)

        def set_extra_state(self, state: torch.Tensor) -> None:
            self.number = int(state)

    store = LocalStateStore(tmp_path)
    source, model = (with_state_type(Extra(number), LINEAR) for number in (5, 1))
    store.load(model, store.save(source, "one"), assign=assign)
    assert model.number == 5


def test_that_it_does_not_fit_is_told_before_that_something_is_missing(tmp_path):
    store, source = LocalStateStore(tmp_path), MODELS["large"](1)
    key = store.save(source, "one")
    for path in tmp_path.glob("objects/*/*"):
        if path.stat().st_size > 1 << 20:
            path.unlink()
    with pytest.raises(IncompatibleStateError, match="does not fit"):
        store.load(net(1), StateKey(LINEAR, "one"))
    with pytest.raises(IntegrityError, match="missing"):
        store.load(MODELS["large"](2), key)
