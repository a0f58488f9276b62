"""Tied weights of real models: as their packages write them, and as they read them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, load_model, save_model

from mlstate import StateKey, adopt, diff, export, file_digest, state_digest
from mlstate.errors import IncompatibleStateError
from tests.frameworks.models import LANGUAGE, Tiny, on_meta, output
from tests.support.models import same, values

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(params=sorted(LANGUAGE))
def tiny(request):
    return Tiny(request.param)


@pytest.fixture
def saved(tiny, store, tmp_path):
    """A model, its folder as `save_pretrained` writes it, and the key of the adopted state."""
    model = tiny.make(1)
    model.save_pretrained(tmp_path / "saved")
    key = StateKey(tiny.state_type, "saved")
    adopt(tmp_path / "saved", key, store)
    return model, tmp_path / "saved", key


def is_tied(model):
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("way", ["copy", "assign", "meta"])
def test_what_save_pretrained_wrote_loads_strictly(tiny, store, saved, way):
    model, _, key = saved
    other = on_meta(tiny.make) if way == "meta" else tiny.make(2)
    result = store.load(other.eval(), key, assign=way != "copy")
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert sorted(result.tied_keys) == tiny.dropped
    assert torch.equal(output(other), output(model))
    assert same(values(other), values(model))
    assert is_tied(other)


def test_untied_it_lacks_what_was_dropped(store, saved, tiny):
    _, _, key = saved
    untied = Tiny(tiny.kind.__name__)
    untied.config.tie_word_embeddings = False
    model = untied.make(2)
    before = values(model)
    with pytest.raises(IncompatibleStateError, match="missing in the state"):
        store.load(model, key)
    assert same(values(model), before)


def test_diff_says_the_same_but_for_tied_names(tiny, store, saved):
    model, folder, key = saved
    live = store.save(model, "live")
    assert file_digest(folder) == store.digest(key) != state_digest(model.state_dict())
    for first, second in ((folder, (store, live)), ((store, live), (store, key))):
        found = diff(first, second)
        assert found.same_but_for_ties
        assert sorted(name for name, _ in found.tied) == tiny.dropped
    assert not diff((store, live), (store, live)).same_but_for_ties


@pytest.mark.parametrize(("state", "most"), [("live", None), ("saved", None), ("live", "100kB")])
def test_its_own_package_opens_what_is_materialized_and_ties_again(store, saved, state, most, tiny):
    model, folder, key = saved
    if state == "live":
        key = store.save(model, "live", files={"config.json": str(folder / "config.json")})
    plain = store.materialize(key, folder / "plain", max_shard_size=most)
    opened, told = tiny.kind.from_pretrained(plain, output_loading_info=True)
    assert not any(told.values())
    assert is_tied(opened)
    assert torch.equal(output(opened.eval()), output(model))
    assert file_digest(plain) == store.digest(key)


def test_a_checkpoint_keeps_what_was_one_tensor(store, saved, tmp_path):
    model, _, _ = saved
    key = store.save(model, "live")
    tensors = torch.load(export(store, key, tmp_path / "x.pth"))
    assert same(tensors, values(model))
    name = next(n for n, t in model.named_parameters() if t is model.get_input_embeddings().weight)
    tied = [
        n for n, t in model.state_dict(keep_vars=True).items() if t is model.get_parameter(name)
    ]
    assert len(tied) > 1
    assert len({tensors[other].data_ptr() for other in tied}) == 1
    assert file_digest(tmp_path / "x.pth") == store.digest(key)


def test_safetensors_own_pair_of_calls(tiny, store, tmp_path):
    """`save_model` keeps another name of a tie than transformers does, if it likes."""
    model = tiny.make(1)
    save_model(model, str(tmp_path / "m.safetensors"))
    key = StateKey(tiny.state_type, "a")
    adopt(tmp_path / "m.safetensors", key, store)
    ours, theirs = tiny.make(2), tiny.make(2)
    assert store.load(ours, key).missing_keys == []
    assert load_model(theirs, tmp_path / "m.safetensors") == (set(), [])
    assert same(values(ours), values(theirs))
    assert torch.equal(output(ours), output(model))
    whole = export(store, store.save(model, "whole"), tmp_path / "w.safetensors")
    tiny.make(3).load_state_dict(load_file(whole))
