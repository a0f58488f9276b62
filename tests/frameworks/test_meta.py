"""Models of real packages, made on the meta device and loaded by `assign=True`: their outputs."""

from __future__ import annotations

import pytest
import torch

from mlstate import StateType, with_state_type
from mlstate.errors import IncompatibleStateError
from tests.frameworks.models import LANGUAGE, SIZES, Tiny, needs, on_meta, output
from tests.support.models import same, values

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]
TYPE = StateType("pytorch", "any")


def is_whole(model):
    return not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("name", sorted(LANGUAGE))
def test_a_language_model_computes_what_it_does_when_it_is_loaded_as_usual(store, name, tmp_path):
    tiny = Tiny(name)
    source = tiny.make(1)
    key = store.save(source, "a")
    source.save_pretrained(tmp_path)
    usual = tiny.kind.from_pretrained(tmp_path).eval()
    model = on_meta(tiny.make).eval()
    store.load(model, key, assign=True)
    assert is_whole(model)
    buffers, usuals = dict(model.named_buffers()), dict(usual.named_buffers())
    assert buffers.keys() == usuals.keys()
    assert all(torch.equal(buffers[name], usuals[name]) for name in buffers)
    assert torch.equal(output(model), output(usual))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.arange(3, 40)[None]
    model.train()(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert not torch.equal(output(model.eval()), output(usual))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_another_dtype_its_buffers_are_as_when_it_is_made_as_usual(store, dtype):
    tiny = Tiny("LlamaForCausalLM")
    key = store.save(tiny.make(1), "a")
    model = on_meta(lambda: tiny.kind(tiny.config).to(dtype)).eval()
    store.load(with_state_type(model, tiny.state_type), key, assign=True)
    usual = with_state_type(tiny.kind(tiny.config).to(dtype).eval(), tiny.state_type)
    store.load(usual, key)
    assert torch.equal(output(model), output(usual))


OTHERS = {
    "RobertaModel": ("RobertaConfig", {**SIZES, "intermediate_size": 96}),
    "DistilBertModel": ("DistilBertConfig", {"dim": 64, "n_layers": 2, "n_heads": 4}),
    "MistralModel": ("MistralConfig", {**SIZES, "num_key_value_heads": 2}),
    "Qwen2Model": ("Qwen2Config", {**SIZES, "num_key_value_heads": 2}),
    "GemmaModel": ("GemmaConfig", {**SIZES, "num_key_value_heads": 2, "head_dim": 16}),
}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_others_are_made_whole_or_refused_and_never_half(store, name):
    transformers = needs("transformers")
    config, options = OTHERS[name]
    settings = getattr(transformers, config)(vocab_size=300, pad_token_id=0, **options)

    def make():
        return with_state_type(getattr(transformers, name)(settings).eval(), TYPE)

    source = make()
    key = store.save(source, "a")
    model = on_meta(make)
    store.load(model, key, assign=True)
    assert is_whole(model)
    ids = torch.arange(3, 40)[None]
    assert torch.equal(model(ids).last_hidden_state, source(ids).last_hidden_state)


def test_accelerates_way_to_make_an_empty_model_needs_no_hook(store):
    """What the error advises: the buffers are there from the beginning."""
    accelerate = needs("accelerate")

    class Positions(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(70, 70)
            self.register_buffer("ids", torch.arange(70.0), persistent=False)
            self.state_type = TYPE

        def forward(self, x):
            return self.layer(x) + self.ids

    source = Positions()
    key = store.save(source, "a")
    with pytest.raises(IncompatibleStateError, match=r"init_empty_weights\(\)"):
        store.load(on_meta(Positions), key, assign=True)
    with accelerate.init_empty_weights():
        model = Positions()
    store.load(model, key, assign=True)
    data = torch.randn(2, 70)
    assert torch.equal(model(data), source(data))


def test_a_unet_of_diffusers(store):
    diffusers = needs("diffusers")

    def make():
        torch.manual_seed(1)
        return with_state_type(
            diffusers.UNet2DModel(
                sample_size=8,
                block_out_channels=(8, 16),
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
                norm_num_groups=4,
                attention_head_dim=4,
            ).eval(),
            TYPE,
        )

    source = make()
    key = store.save(source, "a")
    model = on_meta(make)
    store.load(model, key, assign=True)
    data = torch.randn(1, 3, 8, 8)
    assert torch.equal(model(data, 3).sample, source(data, 3).sample)


def test_an_adapter_of_peft_within_its_model(store):
    peft = needs("peft")
    tiny = Tiny("LlamaForCausalLM")

    def make(seed=0):
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        return with_state_type(peft.get_peft_model(tiny.make(seed), config).eval(), TYPE)

    source = make(1)
    key = store.save(source, "a")
    model = on_meta(make)
    store.load(model, key, assign=True)
    assert is_whole(model)
    assert same(values(model), values(source))
    assert torch.equal(output(model), output(source))


def test_a_sentence_transformer(store):
    sentence_transformers = needs("sentence_transformers")
    modules = needs("sentence_transformers.models")
    tiny = Tiny("BertForMaskedLM")
    transformers = needs("transformers")

    def make():
        torch.manual_seed(1)
        bert = transformers.BertModel(tiny.config)
        pooling = modules.Pooling(64)
        dense = modules.Dense(64, 32)
        return with_state_type(torch.nn.ModuleDict({"b": bert, "p": pooling, "d": dense}), TYPE)

    assert sentence_transformers
    source = make().eval()
    key = store.save(source, "a")
    model = on_meta(make).eval()
    store.load(model, key, assign=True)
    ids = torch.arange(3, 40)[None]
    found, wanted = (
        each["d"](
            each["p"](
                {
                    "token_embeddings": each["b"](ids).last_hidden_state,
                    "attention_mask": torch.ones_like(ids),
                }
            )
        )["sentence_embedding"]
        for each in (model, source)
    )
    assert torch.equal(found, wanted)
