"""What an assigned load would leave on the meta device: made again where that is certain, or told.

Real models of transformers are in tests/frameworks.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlstate import StateKey
from mlstate.errors import IncompatibleStateError, IntegrityError
from tests.support.models import LINEAR, same, values

KEY = StateKey(LINEAR, "a")


class Positions(nn.Module):
    """A layer with a buffer that no state has, and nothing to make it again."""

    state_type = LINEAR

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("ids", torch.arange(4.0).expand(2, -1), persistent=False)

    def forward(self, x):
        return self.layer(x) + self.ids


class Resetting(Positions):
    """One whose own hook makes it, as torch's FSDP asks of modules."""

    def reset_parameters(self):
        self.ids.copy_(torch.arange(4.0))


class Replacing(Positions):
    """One whose hook makes a new tensor, and does other things."""

    resets = 0

    def reset_parameters(self):
        self.layer.reset_parameters()
        self.layer.weight = nn.Parameter(torch.zeros(4, 4))
        self.ids = torch.arange(4.0).expand(2, -1)
        self.resets += 1
        self.more = torch.zeros(1)


class Around(nn.Module):
    """A module with the hook of transformers, around one without."""

    state_type = LINEAR

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Positions(), nn.Linear(4, 4))

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
        if isinstance(module, Positions):
            module.ids.copy_(torch.arange(4.0))

    def forward(self, x):
        return self.inner(x)


def on_meta(make):
    with torch.device("meta"):
        return make()


def refused(store, model, *names, **options):
    before = {id(module): (vars(module).copy(), *_held(module)) for module in model.modules()}
    with pytest.raises(IncompatibleStateError, match="no part of a state") as caught:
        store.load(model, KEY, assign=True, **options)
    assert caught.value.found == ", ".join(names)
    assert before == {id(m): (vars(m).copy(), *_held(m)) for m in model.modules()}
    return caught.value


def _held(module):
    return [
        {name: id(tensor) for name, tensor in entries.items()}
        for entries in (module._parameters, module._buffers)
    ]


@pytest.mark.parametrize("make", [Resetting, Replacing, Around])
def test_what_a_hook_makes_is_made(store, make):
    torch.manual_seed(0)
    source = make()
    store.save(source, "a")
    random = torch.get_rng_state()
    model = on_meta(make)
    result = store.load(model, KEY, assign=True)
    assert result == ([], [])
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert torch.equal(torch.get_rng_state(), random)
    data = torch.randn(2, 4)
    assert torch.equal(model(data), source(data))
    assert vars(model).keys() == vars(source).keys()
    if make is Replacing:
        assert model.resets == 0


def test_without_a_hook_it_is_refused_before_anything_is_read_or_assigned(store):
    store.save(Positions(), "a")
    for path in (store.folder / "objects").glob("*/*"):
        assert path.exists()
    model = on_meta(Positions)
    error = refused(store, model, "ids")
    assert "model.ids = ..." in error.remedy
    model.ids = torch.arange(4.0).expand(2, -1)  # as the remedy says
    store.load(model, KEY, assign=True)
    assert model(torch.zeros(2, 4)).isfinite().all()


@pytest.mark.parametrize(
    "hook",
    [
        lambda self: None,
        lambda self: self.ids[:1].copy_(torch.arange(4.0)),  # a part of it
        lambda self: self.ids.normal_(),  # other values than those of the model that was saved
        lambda self: self.ids.add_(1),
        lambda self: setattr(self, "ids", torch.arange(5.0)),
        lambda self: setattr(self, "ids", torch.arange(4)),
        lambda self: setattr(self, "ids", None),
        lambda self: setattr(self, "ids", torch.empty(2, 4, device="meta")),
        lambda self: self.missing,
        lambda self: setattr(self, "count", self.layer.weight.sum().item()),
    ],
)
def test_a_hook_that_does_not_write_all_of_it_twice_alike_is_not_believed(store, hook):
    class Hooked(Positions):
        def reset_parameters(self):
            hook(self)

    store.save(Positions(), "a")
    refused(store, on_meta(Hooked), "ids")


def test_a_hook_runs_only_where_it_has_nothing_to_overwrite(store):
    store.save(Positions(), "a")
    model = on_meta(Replacing)
    model.layer.weight = nn.Parameter(torch.ones(4, 4))
    refused(store, model, "ids")
    assert bool((model.layer.weight == 1).all())


def test_plain_attributes_and_what_is_in_lists_count_too(store):
    class Attributes(nn.Module):
        state_type = LINEAR

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.scale = torch.ones(3)
            self.tables = [torch.ones(3), torch.zeros(2)]
            self.by_name = {"a": torch.ones(3)}
            self.names = ["a", "b"]
            self.held = [self.layer.weight]  # an entry: whether it is kept up to date is its affair

    store.save(Attributes(), "a")
    refused(store, on_meta(Attributes), "by_name", "scale", "tables", "tables")

    class Scaled(nn.Module):
        state_type = LINEAR

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.scale = torch.ones(3)

        def reset_parameters(self):
            self.scale.fill_(1)

    model = on_meta(Scaled)
    store.load(model, KEY, assign=True)
    assert model.scale.tolist() == [1, 1, 1]


def test_what_has_no_elements_needs_no_values(store):
    class Empty(nn.Module):
        state_type = LINEAR

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("none", torch.zeros(0, 3), persistent=False)
            self.plain = torch.zeros(0)
            self.listed = [torch.zeros(0)]

    store.save(Empty(), "a")
    model = on_meta(Empty)
    store.load(model, KEY, assign=True)
    assert model.none.is_cpu
    assert model.none.shape == (0, 3)
    assert model.plain.is_cpu


def test_a_recurrent_module_keeps_its_own_list_up_to_date(store):
    class Recurrent(nn.LSTM):
        state_type = LINEAR

    source = Recurrent(4, 4)
    store.save(source, "a")
    with torch.device("meta"):
        model = Recurrent(4, 4)
    store.load(model, KEY, assign=True)
    data = torch.randn(3, 1, 4)
    assert torch.equal(model(data)[0], source(data)[0])


@pytest.mark.parametrize("meta", [False, True])
def test_a_buffer_that_is_an_entry_too_follows_it(store, meta):
    class Twice(nn.Module):
        state_type = LINEAR

        def __init__(self):
            super().__init__()
            shared = torch.zeros(70, 80)
            self.register_buffer("kept", shared)
            self.register_buffer("again", shared, persistent=False)
            if meta:
                self.plain = shared

    store.save_state_dict({"kept": torch.ones(70, 80)}, KEY)
    model = on_meta(Twice) if meta else Twice()
    store.load(model, KEY, assign=True)
    assert model.again is model.kept
    assert bool((model.again == 1).all())
    if meta:
        assert model.plain is model.kept


def test_two_names_of_one_tensor_stay_one(store):
    class Both(Resetting):
        def __init__(self):
            super().__init__()
            self.register_buffer("other", self.ids, persistent=False)

    store.save(Both(), "a")
    model = on_meta(Both)
    store.load(model, KEY, assign=True)
    assert model.other is model.ids


def test_a_load_that_fails_afterwards_leaves_it_on_the_meta_device(store):
    store.save(Resetting(), "a")
    model = on_meta(Resetting)
    (path,) = (store.folder / "objects").glob("*/*")
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + b"\xff")
    with pytest.raises(IntegrityError):
        store.load(model, KEY, assign=True)
    assert model.ids.is_meta
    path.write_bytes(content)
    handle = model.register_load_state_dict_pre_hook(lambda *arguments: 1 / 0)
    with pytest.raises(IncompatibleStateError, match="division"):
        store.load(model, KEY, assign=True)
    assert model.ids.is_meta
    assert model.layer.weight.is_meta
    handle.remove()
    store.load(model, KEY, assign=True)
    assert not model.ids.is_meta


def test_under_a_default_device_it_is_made_on_the_cpu(store):
    store.save(Resetting(), "a")
    with torch.device("meta"):
        model = Resetting()
        store.load(model, KEY, assign=True)
    assert model.ids.is_cpu
    assert model.ids[1].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.complex64])
def test_any_dtype(store, dtype):
    class Typed(nn.Module):
        state_type = LINEAR

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("mask", torch.tensor([1, 0, 1]).to(dtype), persistent=False)
            self.register_buffer("none", torch.zeros(0, dtype=dtype), persistent=False)

        def reset_parameters(self):
            self.mask.copy_(torch.tensor([1, 0, 1]))

    store.save(Typed(), "a")
    model = on_meta(Typed)
    store.load(model, KEY, assign=True)
    assert torch.equal(model.mask, Typed().mask)


def test_what_is_missing_may_stay_and_is_told(store):
    store.save_state_dict({"layer.bias": torch.zeros(4)}, KEY)
    model = on_meta(Resetting)
    result = store.load(model, KEY, assign=True, strict=False)
    assert result.missing_keys == ["layer.weight"]
    assert model.layer.weight.is_meta
    assert not model.ids.is_meta
    store.save_state_dict(values(nn.ModuleDict({"layer": nn.Linear(4, 4)})), StateKey(LINEAR, "b"))
    store.load(model, StateKey(LINEAR, "b"), assign=True)  # the rest comes from elsewhere
    assert same(values(model), store.load_state_dict(StateKey(LINEAR, "b")))


def test_a_model_on_the_meta_device_is_not_copied_into(store):
    store.save(Resetting(), "a")
    with pytest.raises(IncompatibleStateError, match="nothing to copy into") as caught:
        store.load(on_meta(Resetting), KEY)
    assert caught.value.remedy == "load with assign=True"
