"""Models in DataParallel, DistributedDataParallel, torch.compile and AveragedModel."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mlstate import StateKey, adopt, state_digest, with_state_type
from mlstate.errors import IncompatibleStateError
from mlstate.operations.adopt_report import wrapper_prefix
from tests.support.models import LINEAR, net, same, values

KEY = StateKey(LINEAR, "a")


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def compiled(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch imports for it
        return torch.compile(model)


def wrap(name, model):
    if name == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if name == "both":
        return compiled(nn.DataParallel(model))
    return {"dp": nn.DataParallel, "compiled": compiled}[name](model)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", ["dp", "ddp", "compiled", "both"])
@pytest.mark.usefixtures("process_group")
def test_the_names_of_the_model_inside_are_stored_and_loaded(store, name, assign):
    key = store.save(wrap(name, net(1)), "a")
    assert key == KEY  # the type is that of the model inside
    assert store.digest(key) == state_digest(net(1).state_dict())
    wrapped, plain = wrap(name, net(2)), net(3)
    assert store.load(wrapped, key, assign=assign) == ([], [])
    assert store.load(plain, key, assign=assign) == ([], [])
    assert same(values(plain), values(net(1)))
    assert same(dict(zip(values(plain), values(wrapped).values(), strict=True)), values(plain))


@pytest.mark.parametrize("name", ["dp", "both"])
def test_a_state_with_the_wrappers_names_loads_into_the_wrapper_as_before(store, name):
    wrapped = wrap(name, net(1))
    store.save_state_dict(wrapped.state_dict(), KEY)
    other = wrap(name, net(2))
    assert store.load(other, KEY) == ([], [])
    assert same(values(other), values(wrapped))
    with pytest.raises(IncompatibleStateError, match="as of a wrapped model"):
        store.load(net(3), KEY)


def test_a_type_on_the_wrapper_counts(store):
    wrapped = nn.DataParallel(nn.Linear(2, 2))
    with pytest.raises(IncompatibleStateError, match="no state type"):
        store.save(wrapped, "a")
    assert store.save(with_state_type(wrapped, LINEAR), "a") == KEY
    assert set(store.load_state_dict(KEY)) == {"weight", "bias"}


def test_an_averaged_model_is_stored_whole_with_a_warning(store):
    averaged = AveragedModel(net(1))
    averaged.update_parameters(net(2))
    with pytest.warns(UserWarning, match=r"save model\.module"):
        store.save(averaged, "a")
    other = AveragedModel(net(3))
    store.load(other, KEY)
    assert same(values(other), values(averaged))
    assert other.n_averaged == 1
    store.save(averaged.module, "inside")
    with pytest.raises(IncompatibleStateError, match=r"load into model\.module"):
        store.load(other, StateKey(LINEAR, "inside"))
    plain = net(4)
    with pytest.raises(IncompatibleStateError, match=r"load it into AveragedModel\(model\)"):
        store.load(plain, KEY)
    store.load(inside := AveragedModel(plain), KEY)
    assert same(values(inside.module), values(averaged.module))


def test_a_part_that_is_wrapped_is_told(store):
    model = net(1)
    model[2] = compiled(model[2])
    with pytest.warns(UserWarning, match=r"2 for one: .* with _orig_mod\. in them"):
        store.save(model, "a")
    other = net(2)
    other[2] = compiled(other[2])
    store.load(other, KEY)
    assert same(values(other), values(model))


def test_a_class_of_ones_own_that_has_a_module_is_no_such_wrapper(store):
    class Own(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    store.save(Own(net(1)), "a")
    assert all(name.startswith("module.") for name in store.load_state_dict(KEY))


@pytest.mark.parametrize(
    ("names", "lightning", "prefix"),
    [
        (["module.a", "module.b.c"], False, "module."),
        (["_orig_mod.module.a", "_orig_mod.module.b"], False, "_orig_mod.module."),
        (["model.a", "model.b"], True, "model."),
        (["model._orig_mod.a", "model._orig_mod.b"], True, "model._orig_mod."),
        (["model.a", "model.b"], False, None),  # so all names of some models begin
        (["module.a", "b"], True, None),
        (["module.model.a"], True, "module."),
        (["modules.a"], False, None),
        ([], True, None),
    ],
)
def test_what_wrappers_put_before_names(names, lightning, prefix):
    assert wrapper_prefix(names, lightning=lightning) == prefix


def test_adopting_tells_the_prefix(store, tmp_path):
    wrapped = nn.DataParallel(net(1))
    torch.save(wrapped.state_dict(), tmp_path / "w.pt")
    assert adopt(tmp_path / "w.pt", KEY, store).prefix == "module."
    report = adopt(tmp_path / "w.pt", KEY, tmp_path / "m.toml", mirror=True)
    assert report.prefix == "module."
    torch.save(net(1).state_dict(), tmp_path / "n.pt")
    assert adopt(tmp_path / "n.pt", StateKey(LINEAR, "b"), store).prefix is None
