"""Models in the wrappers of real trainers."""

from __future__ import annotations

import pytest
import torch

from mlstate import StateKey, adopt, state_digest
from tests.frameworks.models import Tiny, needs, output
from tests.support.models import same, values

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, torch.compile])
def test_a_wrapped_model_of_transformers_is_stored_under_its_own_names(store, wrap):
    tiny = Tiny("BertForMaskedLM")
    model = tiny.make(1)
    key = store.save(wrap(model), "a")
    assert store.digest(key) == state_digest(model.state_dict())
    other = tiny.make(2)
    store.load(wrap(other), key)
    assert torch.equal(output(other), output(model))


def test_a_checkpoint_of_lightning_tells_its_prefix(store, tmp_path):
    lightning = needs("lightning")
    tiny = Tiny("LlamaForCausalLM")

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = tiny.make(1)

        def training_step(self, batch, index):
            return self.model(input_ids=batch, labels=batch).loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    task = Task()
    trainer = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, torch.utils.data.DataLoader(torch.arange(3, 11).repeat(2, 1), batch_size=2))
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    key = StateKey(tiny.state_type, "a")
    report = adopt(tmp_path / "last.ckpt", key, store, select="state_dict")
    assert report.prefix == "model."
    assert same(store.load_state_dict(key), values(task))


def test_a_model_that_accelerate_prepared(store):
    accelerate = needs("accelerate")
    tiny = Tiny("GPT2LMHeadModel")
    model = accelerate.Accelerator(cpu=True).prepare(tiny.make(1))
    key = store.save(model, "a")
    other = tiny.make(2)
    store.load(other, key)
    assert torch.equal(output(other), output(model))
