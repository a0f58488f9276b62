"""What an error says of an entry that cannot be stored is right for its kind, and works."""

from __future__ import annotations

import pytest
import torch

from mlstate import MemoryStateStore, StateKey, StateType, with_state_type
from mlstate.errors import FormatError, IncompatibleStateError

KEY = StateKey.parse("pytorch.net.one")


def advice(state_dict):
    with pytest.raises(FormatError) as caught:
        MemoryStateStore().save_state_dict(state_dict, KEY)
    return caught.value.remedy


def test_a_lazy_module_is_run_once():
    model = torch.nn.LazyLinear(3)
    assert "one batch" in advice(model.state_dict())
    model(torch.ones(1, 2))
    MemoryStateStore().save_state_dict(model.state_dict(), KEY)


class Extra(torch.nn.Module):
    def __init__(self, extra):
        super().__init__()
        self.extra = extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


def test_an_extra_state_is_a_tensor():
    said = advice({f"m.{name}": value for name, value in Extra({"a": 1}).state_dict().items()})
    assert "get_extra_state() of the module return a tensor" in said
    store, model = MemoryStateStore(), with_state_type(Extra(torch.ones(2)), KEY.state_type)
    store.save(model, "one")
    other = with_state_type(Extra(torch.zeros(2)), KEY.state_type)
    store.load(other, KEY)
    assert torch.equal(other.extra, torch.ones(2))


class Plain(torch.Tensor):
    pass


class Packed(torch.Tensor):
    def dequantize(self):
        return self.as_subclass(torch.Tensor)


class Sharded(torch.Tensor):
    def full_tensor(self):
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize(
    ("kind", "says"),
    [(Plain, "as_subclass"), (Packed, "dequantize()"), (Sharded, "full_tensor()")],
)
def test_a_subclass_becomes_plain_in_its_own_way(kind, says):
    said = advice({"w": torch.ones(3).as_subclass(kind)})
    assert says in said
    assert (says == "dequantize()") is ("dequant" in said)


def test_a_state_of_an_averaged_model_is_not_called_another_architecture():
    store = MemoryStateStore()
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 2))
    store.save_state_dict(dict(averaged.state_dict()), KEY)
    model = with_state_type(torch.nn.Linear(2, 2), StateType("pytorch", "net"))
    with pytest.raises(IncompatibleStateError) as caught:
        store.load(model, KEY)
    assert "load it into AveragedModel(model)" in caught.value.remedy
    assert "another architecture" not in caught.value.remedy
