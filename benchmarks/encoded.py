"""Encoded tensors: how small, and how fast a thread and two are: ``python -m benchmarks.encoded``.

The trainings of `benchmarks.training` are done first, if their checkpoints are not there: an hour
on a core of its own; ``--steps 500`` is content with shorter ones. Sizes are exact, and the same
anywhere. Speeds are of processor time, the least that each block took, which other work on the
machine disturbs least. Beside it are zstd, alone and with the base as its prefix
(``--patch-from``), and blosc2, if it is installed.

`benchmarks.encoded_stores` measures stores: their folders, and what a load takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.encoded_peers import base_of, least, peers
from benchmarks.harness import Figure, Figures, arguments_parser, report, show
from benchmarks.training import RUNS, add_arguments, checkpoint, done, published, trained
from mlstate.encoded import encode
from mlstate.encoded.blocks import BlockDecoder, BlockEncoder
from mlstate.format.encoded_object import BLOCK, Block
from mlstate.format.state_object import INLINE_LIMIT
from mlstate.tensors.memory import as_bytes, spec_of

__all__ = ["Case", "cases", "encoded_size"]

BLOCKS = 8
"""The blocks whose times are taken, of each case."""
NOISE = (1e-4, 1e-3, 1e-2)
PEERED = "fine-tuned, 2e-5, 500 steps"
BF16, FP32 = torch.bfloat16, torch.float32
GOALS = {
    (BF16, "fine-tuned, 2e-5"): 0.33,
    (BF16, "fine-tuned, 5e-5"): 0.33,
    (BF16, "trained in bf16"): 0.09,
    (FP32, "fine-tuned, 2e-5"): 0.66,
    (FP32, "fine-tuned, 5e-5"): 0.66,
    (BF16, "published, alone"): 0.66,
}
"""Type and how a case's name begins -> what the changed tensors are to take at most."""
SMALL = "conv net from scratch, 150 steps apart"
"""A case that is too small to say how fast it is."""

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A state to encode, and perhaps its base.

    Attributes:
        name: What it is called in the tables.
        state: Its tensors.
        base: Of the same names, types and shapes, or None.
    """

    name: str
    state: State
    base: State | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The type of its tensors."""
        return next(iter(self.state.values())).dtype

    @property
    def layers(self) -> Case:
        """Without the embeddings, of most of whose rows nothing comes in a short training."""
        chosen = [name for name in self.state if "embedding" not in name]
        base = None if self.base is None else {name: self.base[name] for name in chosen}
        return Case(self.name, {name: self.state[name] for name in chosen}, base)

    def joined(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """All that is large enough to be an object as one tensor, and the same of the base."""
        chosen = [name for name, value in self.state.items() if value.nbytes >= INLINE_LIMIT]
        first, *others = (
            torch.cat([state[name].flatten() for name in chosen])
            for state in (self.state, self.base)
            if state is not None
        )
        return first, others[0] if others else None


def main() -> None:
    """Measure every case in turn."""
    parser = arguments_parser(__doc__ or "")
    add_arguments(parser)
    arguments = parser.parse_args()
    having = list(cases(trained(arguments, *RUNS)))
    results: list[Figures] = []
    for dtype in (BF16, FP32):
        wanted = [case for case in having if case.dtype is dtype]
        results += sizes(wanted, _name(dtype))
        results += speeds(wanted, _name(dtype))
        value, base = next(case for case in wanted if case.name == PEERED).layers.joined()
        assert base is not None
        results += peers(f"{PEERED}, {_name(dtype)}", value, base, arguments.rounds)
    report(results, arguments.json)


def cases(folder: Path) -> Iterator[Case]:
    """The published weights alone, trained further, and with noise; a net from nothing."""
    weights = published()
    yield from _in_both("published, alone", weights)
    for run, name in (("2e-5", "fine-tuned, 2e-5"), ("5e-5", "fine-tuned, 5e-5")):
        for step in done(run, folder):
            if step in (100, 500, 1000, 2000):
                yield from _in_both(f"{name}, {step} steps", checkpoint(run, step, folder), weights)
    wide = _cast(weights, BF16)
    for step in done("bf16", folder):
        yield Case(f"trained in bf16, {step} steps", checkpoint("bf16", step, folder), wide)
    for step in done("lora", folder):
        yield from _in_both(
            f"LoRA, merged, {step} steps", checkpoint("lora", step, folder), weights
        )
    for before, last in list(pairwise(done("conv", folder)))[-1:]:
        states = (checkpoint("conv", step, folder) for step in (last, before))
        yield from _in_both(SMALL, *states)
    generator = torch.Generator().manual_seed(0)
    shaped = {"layer": 0.02 * torch.randn(2048, 3200, generator=generator)}
    yield from _in_both("LLM's shape, alone", shaped)
    for level in NOISE:
        noise = torch.randn(2048, 3200, generator=generator)
        near = {"layer": shaped["layer"] * (1 + level * noise)}
        yield from _in_both(f"LLM's shape, noise of {level:g}", near, shaped)


def _in_both(name: str, state: State, base: State | None = None) -> Iterator[Case]:
    """A case in both types; only floats are cast, and counters are left out."""
    for dtype in (BF16, FP32):
        yield Case(name, _cast(state, dtype), None if base is None else _cast(base, dtype))


def _cast(state: State, dtype: torch.dtype) -> State:
    return {name: value.to(dtype) for name, value in state.items() if value.is_floating_point()}


def sizes(cases: list[Case], kind: str) -> list[Figures]:
    """What the layers of each case take, and all of its tensors."""
    layers, whole = [], []
    for case in cases:
        training = case.name.rsplit(", ", 1)[0] if case.name.endswith("steps") else case.name
        goal = GOALS.get((case.dtype, training))
        layers.append(Figure(case.name, encoded_size(case.layers), goal))
        whole.append(Figure(case.name, encoded_size(case)))
    return [
        show(Figures(f"size of the layers, {kind}", "of the raw data", tuple(layers))),
        show(Figures(f"size of all tensors, {kind}", "of the raw data", tuple(whole))),
    ]


def encoded_size(case: Case) -> float:
    """The share of its raw data that a case takes: small tensors, which are inline, take all."""
    taken = raw = 0
    for name, value in case.state.items():
        raw += value.nbytes
        taken += value.nbytes
        if value.nbytes >= INLINE_LIMIT:
            base = None if case.base is None else base_of(case.base[name])
            pieces = encode(as_bytes(value), spec_of(value), base)
            taken += min(0, sum(map(len, pieces)) - value.nbytes)
    return taken / raw


def speeds(cases: list[Case], kind: str) -> list[Figures]:
    """The speed of one thread, by the least processor time of each of some blocks."""
    large = [case for case in cases if case.name != SMALL]
    found = {case.name: _least_times(case) for case in large}
    return [
        show(
            Figures(
                f"{what} by a thread, {kind}",
                "GB/s",
                tuple(Figure(name, speed[what]) for name, speed in found.items()),
            )
        )
        for what in ("encode", "decode")
    ]


def _least_times(case: Case) -> dict[str, float]:
    value, base = case.layers.joined() if len(case.state) > 1 else case.joined()
    data, of_base = as_bytes(value), None if base is None else as_bytes(base)
    encoder, decoder = BlockEncoder(value.itemsize, repeats=False), BlockDecoder(value.itemsize)
    out = memoryview(bytearray(BLOCK))
    times = {"encode": 0.0, "decode": 0.0}
    count = min(BLOCKS, len(data) // BLOCK)
    for number in range(count):
        place = slice(number * BLOCK, (number + 1) * BLOCK)
        plain, near = data[place], None if of_base is None else of_base[place]
        parts, stored = encoder.encode(plain, near)
        file, block = b"".join(stored), Block(0, BLOCK // value.itemsize, tuple(parts))
        times["encode"] += least(partial(encoder.encode, plain, near))
        times["decode"] += least(partial(decoder.decode, file, block, near, out))
    return {what: count * BLOCK / took / 1e9 for what, took in times.items()}


def _name(dtype: torch.dtype) -> str:
    return {BF16: "bf16", FP32: "fp32"}[dtype]


if __name__ == "__main__":
    main()
