"""Folders as real packages write them: adopted, materialized, and opened by the same packages."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from mlstate import StateKey, adopt
from tests.frameworks.models import GPT, VOCABULARY, needs

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

KEY = StateKey.parse("pytorch.net.a")
CARDS = {"README.md"}


def contents(folder):
    """Each file: its bytes; of weights the tensors, as bytes, and the metadata."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name == ".mlstate.toml" or name in CARDS:
            continue
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as opened:
                held = {n: opened.get_tensor(n) for n in opened.keys()}  # noqa: SIM118
                tensors = {n: (t.dtype, t.shape, raw(t)) for n, t in held.items()}
                found[name] = (opened.metadata(), tensors)
        else:
            found[name] = path.read_bytes()
    return found


def raw(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.fixture
def through(store, tmp_path):
    """A folder that a function wrote, adopted and materialized: the folder that comes out."""

    def through(save):
        save(tmp_path / "saved")
        adopt(tmp_path / "saved", KEY, store)
        store.materialize(KEY, tmp_path / "out")
        assert contents(tmp_path / "out") == contents(tmp_path / "saved")
        return tmp_path / "out"

    return through


def gpt():
    transformers = needs("transformers")
    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=VOCABULARY, **GPT)
    return transformers.GPT2LMHeadModel(config).eval()


def scores(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(8)[None]).logits


def unet(seed=1):
    diffusers = needs("diffusers")
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    ).eval()


def noise(model):
    torch.manual_seed(3)
    with torch.no_grad():
        return model(torch.randn(1, 3, 8, 8), 1).sample


def test_a_sharded_model(through):
    model = gpt()
    out = through(lambda folder: model.save_pretrained(folder, max_shard_size="100KB"))
    assert (out / "model.safetensors.index.json").is_file()
    assert torch.equal(scores(type(model).from_pretrained(out).eval()), scores(model))


@pytest.mark.parametrize("most", [None, "100KB"])
def test_a_variant(through, most):
    model = gpt()
    options = {} if most is None else {"max_shard_size": most}
    out = through(lambda folder: model.save_pretrained(folder, variant="fp16", **options))
    again = type(model).from_pretrained(out, variant="fp16").eval()
    assert torch.equal(scores(again), scores(model))


def test_an_adapter(through):
    peft = needs("peft")
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights=False)
    model = peft.get_peft_model(gpt(), config).eval()
    out = through(model.save_pretrained)
    again = peft.PeftModel.from_pretrained(gpt(), out).eval()
    assert torch.equal(scores(again), scores(model))
    assert not torch.equal(scores(again), scores(gpt()))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_unet(through, variant):
    model = unet()
    out = through(lambda folder: model.save_pretrained(folder, variant=variant))
    again = type(model).from_pretrained(out, variant=variant).eval()
    assert torch.equal(noise(again), noise(model))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_pipeline(through, store, tmp_path, variant):
    diffusers = needs("diffusers")
    transformers = needs("transformers")
    torch.manual_seed(2)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    (tmp_path / "words").mkdir()
    (tmp_path / "words/vocab.json").write_text(
        json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2})
    )
    (tmp_path / "words/merges.txt").write_text("#version: 0.2\n")
    words = transformers.CLIPTokenizer.from_pretrained(tmp_path / "words")
    torch.manual_seed(1)
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32,),
        cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=8,
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae,
        text,
        words,
        model,
        diffusers.DDIMScheduler(),
        None,
        None,
        requires_safety_checker=False,
    )
    out = through(lambda folder: pipe.save_pretrained(folder, variant=variant))
    again = diffusers.DiffusionPipeline.from_pretrained(out, variant=variant)
    for name in ("unet", "vae", "text_encoder"):
        one, other = getattr(pipe, name).state_dict(), getattr(again, name).state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[n], other[n]) for n in one)
        # Each component alone, too: as tensors, in a model, and as a folder.
        alone = store.load_state_dict(KEY, component=name)
        assert all(torch.equal(one[n], alone[n]) for n in alone)
        folder = store.materialize(KEY, tmp_path / name, component=name)
        opened = type(getattr(pipe, name)).from_pretrained(folder, variant=variant)
        assert all(torch.equal(one[n], value) for n, value in opened.state_dict().items())
    fresh = type(model).from_config(model.config)
    assert store.load(fresh, KEY, component="unet").missing_keys == []
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in fresh.state_dict().items())


def test_a_model_of_sentences_with_weights_in_a_folder(through, tmp_path):
    needs("sentence_transformers")
    transformers = needs("transformers")
    from sentence_transformers import SentenceTransformer, models

    torch.manual_seed(1)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "vocab.txt").write_text("\n".join(words) + "\n")
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    transformers.BertModel(config).save_pretrained(inner)
    transformers.BertTokenizer(str(inner / "vocab.txt")).save_pretrained(inner)
    first = models.Transformer(str(inner))
    model = SentenceTransformer(
        modules=[first, models.Pooling(32), models.Dense(32, 8)], device="cpu"
    )
    out = through(lambda folder: model.save_pretrained(str(folder)))
    assert (out / "2_Dense/model.safetensors").is_file()
    again = SentenceTransformer(str(out), device="cpu")
    assert (again.encode(["a b c", "h"]) == model.encode(["a b c", "h"])).all()
