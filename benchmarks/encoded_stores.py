"""Stores of encoded objects: size, and loads: ``python -m benchmarks.encoded_stores``.

Checkpoints of one training, 100 steps apart, chained by `compact`, held against as many files. Then
a verified load of a fine-tune of BERT-base whose tensors are differences to the base, held against
a load of the plain one, warm, and with files that are not in the page cache.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.harness import Figure, Figures, Table, Way, arguments_parser, compare, report, show
from benchmarks.peers import disk_used
from benchmarks.states import bert_base
from benchmarks.training import add_arguments, checkpoint, done, trained
from mlstate import LocalStateStore, StateKey, StateType, compact

__all__ = ["chained"]

TYPE = StateType("pytorch", "minilm")
STEP = 2e-4
"""How far a weight of the fine-tune of BERT-base is from the base: 1 % of what weights are."""
KINDS = {torch.bfloat16: "bf16", torch.float32: "fp32"}
COLD_GOAL, WARM_GOAL, CHAIN_GOAL = 1.0, 3.0, 0.20


def main() -> None:
    """Measure the chain, and the loads."""
    parser = arguments_parser(__doc__ or "")
    add_arguments(parser)
    arguments = parser.parse_args()
    checkpoints = trained(arguments, "2e-5")
    results: list[Table | Figures] = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in KINDS:
            results.append(chained(Path(folder), checkpoints, dtype))
    for dtype in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            results += loads(Path(folder), dtype, arguments.rounds)
    report(results, arguments.json)


def chained(folder: Path, checkpoints: Path, dtype: torch.dtype) -> Figures:
    """What a folder with checkpoints of a run takes, beside their files."""
    steps = done("2e-5", checkpoints)
    kind = KINDS[dtype]
    store, files = LocalStateStore(folder / kind), folder / f"files-{kind}"
    files.mkdir()
    for step in steps:
        state = {
            name: value.to(dtype) for name, value in checkpoint("2e-5", step, checkpoints).items()
        }
        store.save_state_dict(state, StateKey(TYPE, f"step-{step}"))
        save_file(state, files / f"{step}.safetensors")
    plain = used(store)
    compact(store, chain=True)
    raw = disk_used(files)
    goal = CHAIN_GOAL if dtype is torch.bfloat16 else None
    rows = (
        Figure(f"{len(steps)} files", 1.0, note=f"({raw / 1e6:.0f} MB)"),
        Figure("mlstate, plain", plain / raw),
        Figure("mlstate, compact --chain", used(store) / raw, goal),
    )
    return show(Figures(f"checkpoints 100 steps apart, {kind}", "of the files", rows))


def used(store: LocalStateStore) -> int:
    """What a store takes, without its trash, which prunings delete weeks later."""
    return disk_used(store.folder) - disk_used(store.folder / "trash")


def loads(folder: Path, dtype: torch.dtype, rounds: int) -> Iterator[Table | Figures]:
    """Loads of a fine-tune of BERT-base, encoded and plain."""
    base = bert_base().to(dtype)
    generator = torch.Generator().manual_seed(1)  # other numbers than the weights
    tuned = bert_base().to(dtype)
    with torch.no_grad():
        for value in tuned.parameters():
            value.copy_(value.float() + STEP * torch.randn(value.shape, generator=generator))
    plain, encoded = LocalStateStore(folder / "plain"), LocalStateStore(folder / "encoded")
    key = plain.save(tuned, "tuned")
    encoded.save(base, "base")
    encoded.save(tuned, "tuned")
    compact(encoded, [key])
    os.sync()
    kind = KINDS[dtype]
    share = disk_used(encoded.folder / "encoded") / disk_used(plain.folder)
    found = Figure("the encoded fine-tune", share)
    yield show(Figures(f"BERT-base in {kind}", "of the plain one", (found,)))
    for how, assign in (("assign=True", True), ("into the model", False)):
        name = f"load of BERT-base in {kind}, {how}"
        ways = [
            Way("mlstate, plain", partial(plain.load, tuned, key, assign=assign)),
            Way("mlstate, encoded", partial(encoded.load, tuned, key, assign=assign)),
        ]
        yield compare(f"{name}, warm", ways, rounds=rounds, goals={ways[1].name: WARM_GOAL})
        cold = [
            Way("mlstate, plain", ways[0].run, partial(forget, plain.folder)),
            Way("mlstate, encoded", ways[1].run, partial(forget, encoded.folder)),
            Way(
                "mlstate, encoded, the base in memory",
                ways[1].run,
                partial(forget, encoded.folder / "encoded"),
            ),
        ]
        goals = {way.name: COLD_GOAL for way in cold[1:]}
        yield compare(f"{name}, cold", cold, rounds=rounds, goals=goals)


def forget(folder: Path) -> None:
    """Let the page cache forget the files of a folder, and nothing else."""
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)


if __name__ == "__main__":
    main()
