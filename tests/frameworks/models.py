"""Tiny models of real packages, made from their configurations: nothing is downloaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mlstate import StateType, with_state_type

__all__ = ["LANGUAGE", "Tiny", "needs", "on_meta", "output"]

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
T5 = {
    "decoder_start_token_id": 0,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
}
LLAMA = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 96, "tie_word_embeddings": True}
VOCABULARY = 300

Make = Callable[[], torch.nn.Module]

LANGUAGE: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "BertForMaskedLM": (
        "BertConfig",
        {**SIZES, "intermediate_size": 96},
        ["cls.predictions.decoder.bias", "cls.predictions.decoder.weight"],
    ),
    "LlamaForCausalLM": ("LlamaConfig", LLAMA, ["lm_head.weight"]),
    "GPT2LMHeadModel": ("GPT2Config", GPT, ["lm_head.weight"]),
    "T5ForConditionalGeneration": (
        "T5Config",
        T5,
        ["decoder.embed_tokens.weight", "encoder.embed_tokens.weight", "lm_head.weight"],
    ),
}
"""Class -> its configuration, and the names that its `save_pretrained` leaves out."""


def needs(package: str) -> Any:
    """A package, or the test is skipped; it may warn as it likes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(package)


class Tiny:
    """A language model of transformers."""

    def __init__(self, name: str, **more: Any) -> None:
        transformers = needs("transformers")
        config, options, self.dropped = LANGUAGE[name]
        self.kind = getattr(transformers, name)
        self.config = getattr(transformers, config)(vocab_size=VOCABULARY, **options, **more)
        self.state_type = StateType("pytorch", name)

    def make(self, seed: int = 0) -> Any:
        """A new model with random weights, none of them zero."""
        torch.manual_seed(seed)
        model = self.kind(self.config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        return with_state_type(model, self.state_type)


def on_meta(make: Make) -> Any:
    """What a function makes, on the meta device."""
    with torch.device("meta"):
        return make()


def output(model: torch.nn.Module) -> torch.Tensor:
    """The logits for a few tokens."""
    ids = torch.arange(3, 40)[None]
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits
