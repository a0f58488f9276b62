"""Stores that users write themselves."""

from __future__ import annotations

import pytest
import torch

from mlstate import AbstractListStateStore, AbstractStateStore, LoadResult, StateKey, StateType
from mlstate.errors import (
    FormatError,
    IncompatibleStateError,
    ReadOnlyStoreError,
    StateNotFoundError,
)
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


class Returning(AbstractListStateStore[torch.nn.Module]):
    available_state_keys = (str(StateKey(LINEAR, "one")), StateKey(LINEAR, "two"))

    def __init__(self, returned):
        self.returned = returned

    def state_downloader(self, model, state_key):
        return self.returned(model)


def test_keys_of_a_list_may_be_texts():
    store = Returning(lambda model: None)
    assert store.get_state_keys(LINEAR) == [StateKey(LINEAR, "one"), StateKey(LINEAR, "two")]
    assert store.exists(StateKey(LINEAR, "one"))


@pytest.mark.parametrize("keys", ["pytorch.net.one", ["pytorch.net"], [7], 7])
def test_a_list_that_is_none_is_refused_with_what_it_has_to_be(keys):
    store = Returning(lambda model: None)
    store.available_state_keys = keys
    with pytest.raises(FormatError):
        store.get_state_keys(LINEAR)


def test_a_downloader_may_return_what_it_brought():
    model = net(3)
    state = net(1).state_dict()
    result = Returning(lambda _: state).load(model, StateKey(LINEAR, "one"))
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert same(values(model), values(net(1)))


def test_a_downloader_may_return_what_torch_said():
    partial = {"no such name": torch.ones(2)}
    store = Returning(lambda model: model.load_state_dict(partial, strict=False))
    result = store.load(net(3), StateKey(LINEAR, "one"))
    assert isinstance(result, LoadResult)
    assert result.unexpected_keys == ["no such name"]


def test_what_a_downloader_may_not_return_is_refused():
    store = Returning(lambda model: "weights.pt")
    with pytest.raises(FormatError, match="state_downloader of Returning") as caught:
        store.load(net(3), StateKey(LINEAR, "one"))
    assert caught.value.found == "a str"


def test_a_key_given_as_text_says_what_to_write():
    with pytest.raises(FormatError) as caught:
        Returning(lambda model: None).load(net(3), "pytorch.net.one")
    assert caught.value.remedy == "StateKey.parse('pytorch.net.one')"
