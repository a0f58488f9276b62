"""The integration with transformers: a real `Trainer`; and `from_pretrained`, without a network."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlstate import LocalStateStore, ManifestStore, StateKey, StateType, adopt, manifest_of
from mlstate.errors import (
    FormatError,
    IntegrityError,
    ReadOnlyStoreError,
    StateExistsError,
    StateNotFoundError,
)
from tests.frameworks.models import LANGUAGE, Tiny, needs, output
from tests.support.models import same, values

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]
TYPE = StateType("pytorch", "BertForSequenceClassification")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def integration():
    needs("transformers")
    import mlstate.integrations.transformers

    return mlstate.integrations.transformers


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def tokenizer(folder):
    """A real tokenizer, made of nothing."""
    transformers = needs("transformers")
    tokenizers = needs("tokenizers")
    words = {word: number for number, word in enumerate(["[UNK]", "[PAD]", "one", "two", "three"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]"
    )
    fast.save_pretrained(folder)
    return fast


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(3, 60, (8,), generator=generator)
        return {"input_ids": ids, "labels": index % 2}


def classifier(seed=0):
    transformers = needs("transformers")
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=64, intermediate_size=64, num_labels=2, **sizes)
    return transformers.BertForSequenceClassification(config)


def trainer(folder, callback, *, metrics=None, model=None, epochs=3, processing=None, **more):
    transformers = needs("transformers")
    scores = iter(metrics or ())
    options = {"save_strategy": "no", "eval_strategy": "epoch" if metrics else "no", **more}
    return transformers.Trainer(
        model or classifier(),
        transformers.TrainingArguments(
            str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **options,
        ),
        train_dataset=Rows(),
        eval_dataset=Rows(),
        compute_metrics=(lambda _: {"score": next(scores)}) if metrics else None,
        callbacks=[callback],
        processing_class=processing,
    )


def names(store):
    return {key.training_id for key in store.get_state_keys(TYPE)}


def test_each_epoch_is_saved_with_its_files_and_opens_again(integration, store, tmp_path):
    fast = tokenizer(tmp_path / "tokenizer")
    seen = []

    class Watch(needs("transformers").TrainerCallback):
        def on_epoch_end(self, args, state, control, model=None, **kwargs):
            seen.append(values(model))

    training = trainer(tmp_path, integration.SaveStates(store, "a"), processing=fast)
    training.add_callback(Watch)
    training.train()
    assert names(store) == {"a-e1", "a-e2", "a-e3"}
    for number, wanted in enumerate(seen, 1):
        key = StateKey(TYPE, f"a-e{number}")
        assert same(store.load_state_dict(key), wanted)
        assert (store.meta(key)["epoch"], store.meta(key)["step"]) == (number, number * 4)
    transformers = needs("transformers")
    auto = transformers.AutoModelForSequenceClassification
    again = integration.from_pretrained(auto, key, store)
    assert type(again) is transformers.BertForSequenceClassification
    assert same(values(again), values(training.model))
    assert again.state_type == TYPE
    text = integration.from_pretrained(transformers.AutoTokenizer, key, store)
    assert text("one three")["input_ids"] == fast("one three")["input_ids"] == [2, 4]


def test_at_the_trainers_own_save_steps(integration, store, tmp_path):
    callback = integration.SaveStates(store, "a", every="save")
    trainer(tmp_path, callback, epochs=1, save_strategy="steps", save_steps=2).train()
    assert names(store) == {"a-s2", "a-s4"}


@pytest.mark.parametrize(
    ("wanted", "scores", "best"),
    [
        ({"keep_best": "score"}, [0.1, 0.9, 0.3, 0.2], 2),
        ({"keep_best": "eval_score", "greater_is_better": False}, [0.5, 0.9, 0.1, 0.2], 3),
        ({"keep_best": "score"}, [0.9, 0.9, 0.1, float("nan")], 1),
    ],
)
def test_the_last_and_the_best_stay(integration, tmp_path, wanted, scores, best):
    store = LocalStateStore(tmp_path / "store")
    callback = integration.SaveStates(store, "a", keep_last=1, **wanted)
    trainer(tmp_path, callback, metrics=scores, epochs=4).train()
    assert names(store) == {"a-best", f"a-e{best}", "a-e4"}
    alias, named = StateKey(TYPE, "a-best"), StateKey(TYPE, f"a-e{best}")
    assert store.digest(alias) == store.digest(named)
    assert store.meta(alias)["alias_of"] == str(named)
    assert store.meta(alias)["eval_score"] == scores[best - 1]
    assert dict(store.files(alias)) == dict(store.files(named))


def test_a_loss_is_better_if_it_is_less(integration, store, tmp_path):
    callback = integration.SaveStates(store, "a", keep_best="loss")
    trainer(tmp_path, callback, metrics=[0.0, 0.0, 0.0]).train()
    losses = {n: store.meta(StateKey(TYPE, f"a-e{n}"))["eval_loss"] for n in (1, 2, 3)}
    best = min(losses, key=losses.get)
    assert store.meta(StateKey(TYPE, "a-best"))["alias_of"].endswith(f"a-e{best}")


def test_a_run_that_is_resumed_ends_as_one_that_was_not(integration, tmp_path):
    stores = {}
    for name in ("whole", "parts"):
        store = stores[name] = LocalStateStore(tmp_path / name / "store")
        options = {"keep_last": 2, "keep_best": "score"}
        more = {"save_strategy": "epoch", "seed": 3}
        scores = [0.9, 0.2, 0.3, 0.4]
        folder = tmp_path / name / "trainer"
        if name == "parts":

            class Stop(needs("transformers").TrainerCallback):
                def on_save(self, args, state, control, **kwargs):
                    control.should_training_stop = state.epoch >= 2

            callback = integration.SaveStates(store, "a", **options)
            first = trainer(folder, callback, metrics=scores[:2], epochs=4, **more)
            first.add_callback(Stop)
            first.train()
            assert names(store) == {"a-best", "a-e1", "a-e2"}
            callback = integration.SaveStates(store, "a", **options)
            second = trainer(
                folder, callback, metrics=scores[2:], epochs=4, model=classifier(9), **more
            )
            second.train(resume_from_checkpoint=True)
        else:
            callback = integration.SaveStates(store, "a", **options)
            trainer(folder, callback, metrics=scores, epochs=4, **more).train()
    whole, parts = stores.values()
    assert names(whole) == names(parts) == {"a-best", "a-e1", "a-e3", "a-e4"}
    for key in whole.get_state_keys(TYPE):
        assert whole.digest(key) == parts.digest(key)


def test_a_run_that_goes_back_has_the_best_of_what_counts(integration, tmp_path):
    """Later states of an abandoned branch count no more, and stay until they are replaced."""
    runs = needs("mlstate.integrations.runs")
    store = LocalStateStore(tmp_path / "store")
    run = runs.Run(store, TYPE, "a", keep_last=1, metric="score", greater=True)

    def save(number, score):
        tensors = {"x": torch.full((3,), float(number) + score)}
        run.save(tensors, runs.Point(f"e{number}", number, {"score": score}), {})

    for number, score in ((1, 0.5), (2, 0.3), (3, 0.9)):
        save(number, score)
    assert names(store) == {"a-best", "a-e3"}
    save(2, 0.4)  # resumed from the end of the first epoch
    assert names(store) == {"a-best", "a-e2", "a-e3"}
    assert store.meta(run.key("best"))["alias_of"] == str(run.key("e2"))
    save(3, 0.1)
    assert names(store) == {"a-best", "a-e2", "a-e3"}
    assert store.load_state_dict(run.key("best"))["x"][0] == torch.tensor(2.4)


def test_a_new_run_does_not_take_the_name_of_another(integration, store, tmp_path):
    trainer(tmp_path, integration.SaveStates(store, "a"), epochs=1).train()
    digest = store.digest(StateKey(TYPE, "a-e1"))
    again = trainer(tmp_path, integration.SaveStates(store, "a"), epochs=1, model=classifier(5))
    with pytest.raises(StateExistsError, match="another name"):
        again.train()
    assert store.digest(StateKey(TYPE, "a-e1")) == digest
    wanted = integration.SaveStates(store, "a", overwrite=True)
    trainer(tmp_path, wanted, epochs=1, model=classifier(5)).train()
    assert store.digest(StateKey(TYPE, "a-e1")) != digest


PROGRAM = """
import os, sys, torch
from mlstate.integrations.transformers import SaveStates
from tests.frameworks.test_integration_transformers import trainer

folder, rank = sys.argv[1], os.environ["RANK"]
training = trainer(folder, SaveStates(f"{folder}/store{rank}", "a"), epochs=1, ddp_backend="gloo")
training.train()
assert training.args.world_size == 2
torch.distributed.barrier()  # a process that goes first may take the other with it
torch.distributed.destroy_process_group()
"""


def test_of_several_processes_the_main_one_saves(integration, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, tmp_path / "program.py", tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert names(LocalStateStore(tmp_path / "store0")) == {"a-e1"}
    assert not (tmp_path / "store1").exists()


def test_what_could_not_be_is_refused_before_training(integration, store, tmp_path):
    with pytest.raises(FormatError, match="evaluations"):
        trainer(tmp_path, integration.SaveStates(store, "a", keep_best="score")).train()
    with pytest.raises(FormatError, match="keep_last"):
        trainer(tmp_path, integration.SaveStates(store, "a", keep_last=0)).train()
    with pytest.raises(FormatError, match="valid part"):
        trainer(tmp_path, integration.SaveStates(store, "a/b")).train()
    with pytest.raises(FormatError, match="every"):
        integration.SaveStates(store, "a", every="hour")
    with pytest.raises(ReadOnlyStoreError):
        integration.SaveStates(ManifestStore(manifest_of(store)), "a")
    assert names(store) == set()


@pytest.mark.parametrize("name", sorted(LANGUAGE))
def test_a_model_from_a_state_is_the_one_of_its_folder(
    integration, store, tmp_path, name, no_network
):
    tiny = Tiny(name)
    model = tiny.make(1)
    if model.can_generate():
        model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path / "saved")
    key = StateKey(tiny.state_type, "a")
    adopt(tmp_path / "saved", key, store)
    usual = tiny.kind.from_pretrained(tmp_path / "saved").eval()
    found, told = integration.from_pretrained(tiny.kind, key, store, output_loading_info=True)
    assert not any(told.values())
    assert not found.training
    assert same(values(found), values(usual))
    assert torch.equal(output(found), output(usual))
    assert found.config.to_diff_dict() == usual.config.to_diff_dict()
    if model.can_generate():
        wanted = usual.generation_config.to_diff_dict()
        assert found.generation_config.to_diff_dict() == wanted
    tied = found.get_input_embeddings().weight is found.get_output_embeddings().weight
    assert tied == (usual.get_input_embeddings().weight is usual.get_output_embeddings().weight)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_options_are_its_own(integration, store, tmp_path, dtype, no_network):
    tiny = Tiny("LlamaForCausalLM")
    tiny.make(1).save_pretrained(tmp_path / "saved")
    key = StateKey(tiny.state_type, "a")
    adopt(tmp_path / "saved", key, store)
    transformers = needs("transformers")
    options = {} if dtype is None else {"dtype": dtype}
    found = integration.from_pretrained(transformers.AutoModelForCausalLM, key, store, **options)
    usual = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", **options)
    assert found.dtype == usual.dtype
    assert torch.equal(output(found), output(usual))
    before = store.digest(key)
    with torch.no_grad():  # what is mapped is private
        for parameter in found.parameters():
            parameter.add_(1)
    assert same(
        values(integration.from_pretrained(tiny.kind, key, store, **options)), values(usual)
    )
    assert store.digest(key) == before


def test_by_a_manifest_it_is_fetched_and_nothing_lies_in_a_folder(integration, store, tmp_path):
    tiny = Tiny("BertForMaskedLM")
    tiny.make(1).save_pretrained(tmp_path / "saved")
    key = StateKey(tiny.state_type, "a")
    adopt(tmp_path / "saved", key, store)
    elsewhere = ManifestStore(manifest_of(store, objects=[str(store.folder)]), cache=tmp_path / "c")
    found = integration.from_pretrained(tiny.kind, key, elsewhere)
    assert same(values(found), values(tiny.kind.from_pretrained(tmp_path / "saved")))
    assert not list((tmp_path / "c").rglob("*.safetensors"))


def test_a_damaged_state_gives_no_model(integration, store, tmp_path):
    tiny = Tiny("BertForMaskedLM")
    tiny.make(1).save_pretrained(tmp_path / "saved")
    key = StateKey(tiny.state_type, "a")
    adopt(tmp_path / "saved", key, store)
    largest = max(store.folder.glob("objects/*/*"), key=lambda path: path.stat().st_size)
    largest.chmod(0o600)
    data = bytearray(largest.read_bytes())
    data[-1] ^= 1
    largest.write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged"):
        integration.from_pretrained(tiny.kind, key, store)


def test_without_a_config_it_says_what_is_missing(integration, store):
    tiny = Tiny("BertForMaskedLM")
    key = store.save(tiny.make(1), "a")
    with pytest.raises(StateNotFoundError, match=r"no config\.json"):
        integration.from_pretrained(tiny.kind, key, store)
    found = integration.from_pretrained(tiny.kind, key, store, config=tiny.config)
    assert torch.equal(output(found), output(tiny.make(1)))


def test_a_unet_of_diffusers(store, tmp_path, no_network):
    diffusers = needs("diffusers")
    from mlstate.integrations.diffusers import from_pretrained

    torch.manual_seed(1)
    model = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    ).eval()
    model.save_pretrained(tmp_path / "saved")
    key = StateKey(StateType("pytorch", "unet"), "a")
    files = {"config.json": (tmp_path / "saved" / "config.json").read_bytes()}
    store.save_state_dict(model.state_dict(), key, files=files)
    found = from_pretrained(diffusers.UNet2DModel, key, store)
    usual = diffusers.UNet2DModel.from_pretrained(tmp_path / "saved")
    assert same(values(found), values(usual))
    data = torch.randn(1, 3, 8, 8)  # convolutions look at how their weights are aligned
    torch.testing.assert_close(found(data, 3).sample, usual(data, 3).sample)
    assert found.training is usual.training is False
    half = from_pretrained(diffusers.UNet2DModel, key, store, torch_dtype=torch.float16)
    usual = diffusers.UNet2DModel.from_pretrained(tmp_path / "saved", torch_dtype=torch.float16)
    assert same(values(half), values(usual))
    key = store.save_state_dict(half.state_dict(), StateKey(key.state_type, "half"), files=files)
    assert from_pretrained(diffusers.UNet2DModel, key, store).dtype == torch.float32  # as its own


def test_a_pipeline_and_its_parts(store, tmp_path, no_network):
    diffusers = needs("diffusers")
    from mlstate.integrations.diffusers import from_pretrained

    torch.manual_seed(1)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    vqvae = diffusers.VQModel(block_out_channels=(32,), sample_size=8)
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=7)
    pipe = diffusers.LDMPipeline(vqvae, unet, scheduler)
    pipe.save_pretrained(tmp_path / "saved")
    key = StateKey(StateType("pytorch", "ddpm"), "a")
    adopt(tmp_path / "saved", key, store)
    found = from_pretrained(diffusers.DiffusionPipeline, key, store)
    assert type(found) is diffusers.LDMPipeline
    assert found.scheduler.config.num_train_timesteps == 7
    assert same(values(found.unet), values(unet))
    assert same(values(found.vqvae), values(vqvae))
    part = from_pretrained(diffusers.UNet2DModel, key, store, subfolder="unet")
    assert same(values(part), values(unet))


def test_a_part_of_a_pipeline(integration, store, tmp_path, no_network):
    transformers = needs("transformers")
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = transformers.CLIPTextConfig(vocab_size=64, num_hidden_layers=1, **sizes)
    model = transformers.CLIPTextModel(config)
    model.save_pretrained(tmp_path / "saved" / "text_encoder")
    (tmp_path / "saved" / "text_encoder_2").mkdir()
    other = {"x": torch.ones(3)}
    save_file(other, tmp_path / "saved" / "text_encoder_2" / "model.safetensors", {"format": "pt"})
    kind = ["transformers", "CLIPTextModel"]
    index = {"_class_name": "X", "text_encoder": kind, "text_encoder_2": kind}
    (tmp_path / "saved" / "model_index.json").write_text(json.dumps(index))
    key = StateKey(StateType("pytorch", "pipeline"), "a")
    adopt(tmp_path / "saved", key, store)
    found = integration.from_pretrained(
        transformers.CLIPTextModel, key, store, subfolder="text_encoder"
    )
    assert same(values(found), values(model))


def test_a_sentence_transformer(store, tmp_path, no_network):
    sentence = needs("sentence_transformers")
    modules = needs("sentence_transformers.models")
    from mlstate.integrations.sentence_transformers import from_pretrained

    tiny = Tiny("BertForMaskedLM")
    folder = tmp_path / "bert"
    torch.manual_seed(1)
    needs("transformers").BertModel(tiny.config).save_pretrained(folder)
    tokenizer(folder)
    model = sentence.SentenceTransformer(
        modules=[modules.Transformer(str(folder)), modules.Pooling(64)], device="cpu"
    )
    model.save_pretrained(str(tmp_path / "saved"))
    saved = tmp_path / "saved"
    key = StateKey(StateType("pytorch", "sentence"), "a")
    files = {
        path.relative_to(saved).as_posix(): path.read_bytes()
        for path in saved.rglob("*")
        if path.is_file() and path.suffix != ".safetensors"
    }
    adopt(saved / "model.safetensors", key, store, files=files)
    found = [from_pretrained(sentence.SentenceTransformer, key, store, device="cpu") for _ in "ab"]
    texts = ["one two", "three"]
    for one in found:
        assert (one.encode(texts) == model.encode(texts)).all()
