"""Stores that users write themselves."""

from __future__ import annotations

import pytest
import torch

from mlstate import AbstractListStateStore, AbstractStateStore, StateKey, StateType
from mlstate.errors import IncompatibleStateError, ReadOnlyStoreError, StateNotFoundError
from tests.support.models import LINEAR, net, same, values


class Constant(AbstractListStateStore[torch.nn.Module]):
    @property
    def available_state_keys(self):
        return [StateKey(LINEAR, "two"), StateKey(LINEAR, "one"), StateKey.parse("jax.net.one")]

    def state_downloader(self, model, state_key):
        model.load_state_dict(net({"one": 1, "two": 2}[state_key.training_id]).state_dict())


def test_a_fixed_list_and_one_method():
    store = Constant()
    assert store.get_state_keys(LINEAR) == [StateKey(LINEAR, "one"), StateKey(LINEAR, "two")]
    assert store.exists(StateKey(LINEAR, "one"))
    assert not store.exists(StateKey(LINEAR, "three"))
    model = net(3)
    store.load(model, StateKey(LINEAR, "two"))
    assert same(values(model), values(net(2)))


def test_it_refuses_what_it_has_not_and_what_does_not_fit():
    model = net(3)
    with pytest.raises(StateNotFoundError, match=r"pytorch\.net\.one"):
        Constant().load(model, StateKey(LINEAR, "three"))
    with pytest.raises(IncompatibleStateError):
        Constant().load(model, StateKey.parse("jax.net.one"))
    with pytest.raises(ReadOnlyStoreError):
        Constant().save(model, "four")
    with pytest.raises(NotImplementedError):
        Constant().save(model, "four")
    assert same(values(model), values(net(3)))


def test_three_methods_make_a_store():
    class Dictionary(AbstractStateStore[torch.nn.Module]):
        def __init__(self):
            self.states = {}

        def get_state_keys(self, state_type):
            return sorted(k for k in self.states if k.state_type.is_compatible_with(state_type))

        def load(self, model, state_key):
            model.load_state_dict(self.states[state_key])

        def save(self, model, training_id):
            key = StateKey(model.state_type, training_id)
            self.states[key] = values(model)
            return key

    store = Dictionary()
    key = store.save(net(1), "a")
    assert store.exists(key)
    assert not store.exists(StateKey(StateType("pytorch", "net"), "b"))
    model = net(2)
    store.load(model, key)
    assert same(values(model), values(net(1)))


def test_all_three_are_needed():
    class Incomplete(AbstractStateStore[torch.nn.Module]):
        def get_state_keys(self, state_type):
            return []

    with pytest.raises(TypeError):
        Incomplete()
