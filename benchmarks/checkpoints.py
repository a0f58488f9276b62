"""A base and ten fine-tunes, kept by several tools: ``python -m benchmarks.checkpoints``.

Disk used, time to add one, time to restore one. The tools get each fine-tune as a file, in the page
cache; the time to write that file is not counted. mlstate gets it as tensors, in this process, and
makes it durable; the tools do what they do by default. Only the ratios are worth quoting.

BERT-base needs 12 GB of disk and five minutes, MiniLM 3 GB and one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.harness import Figure, Figures, Table, Way, arguments_parser, compare, report, show
from benchmarks.peers import PEERS, Dvc, MissingPeerError, Peer, disk_used
from benchmarks.states import MODELS, state_bytes
from mlstate import LocalStateStore, StateKey, StateType

FINE_TUNES = 10
TYPE = StateType("pytorch", "fine-tuned")
CHANGING = {
    "BERT-base": ("layers.10.", "layers.11.", "pooler."),
    "MiniLM": ("encoder.layer.5.", "pooler."),
}
"""The parts that a fine-tune with a frozen backbone changes: the last layers."""


def main() -> None:
    """Make the states, run the tools, compare."""
    parser = arguments_parser(__doc__ or "")
    parser.add_argument("--model", choices=sorted(CHANGING), default="BERT-base")
    parser.add_argument("--folder", type=Path, help="for all that is written (a temporary one)")
    arguments = parser.parse_args()
    model = next(model for model in MODELS if model.name == arguments.model)
    base = {name: value.detach() for name, value in model.make().state_dict().items()}
    results: list[Table | Figures] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        contest = Contest(Path(name), Series(base, CHANGING[model.name]))
        what = f"{model.name} and {FINE_TUNES} fine-tunes with a frozen backbone"
        results += frozen_backbone(contest, what, arguments.rounds)
        report(results, arguments.json)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        half = {name: value.to(torch.bfloat16) for name, value in base.items()}
        contest = Contest(Path(name), Series(half, ("",)))
        what = f"{model.name} in bf16 and {FINE_TUNES} fine-tunes, every weight changed"
        results.append(every_weight(contest, what))
    report(results, arguments.json)


@dataclass
class Series:
    """A base, and fine-tunes of it from seeds: one at a time is at hand.

    Attributes:
        base: The tensors of the base.
        changing: How the names of those begin that a fine-tune changes.
        number: Which is at hand; the base is number 0.
        tensors: Its tensors.
    """

    base: dict[str, torch.Tensor]
    changing: tuple[str, ...]
    number: int = -1
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def turn_to(self, number: int) -> bool:
        """Make a fine-tune, unless it is the one at hand."""
        if number == self.number:
            return False
        generator = torch.Generator().manual_seed(number)
        self.number, self.tensors = number, dict(self.base)
        for name, value in self.base.items() if number else ():
            if name.startswith(self.changing) and value.is_floating_point():
                # A step of 1 % of a weight's usual size: it changes most values, even in bf16.
                step = torch.randn(value.shape, generator=generator) * 2e-4
                self.tensors[name] = (value.float() + step).to(value.dtype)
        return True


class Contest:
    """The tools, each with its repository, and mlstate with its store.

    Args:
        folder: Where all is written.
        series: What is kept.
    """

    def __init__(self, folder: Path, series: Series) -> None:
        self.series = series
        self.store = LocalStateStore(folder / "mlstate")
        self.peers: list[Peer] = []
        self.missing: dict[str, str] = {}
        for peer in PEERS:
            try:
                self.peers.append(peer(folder / peer.__name__))
            except MissingPeerError as error:
                self.missing[peer.name] = str(error)
        # Of all tools DVC alone wants the file in its own folder, so it lies there for all.
        work = next((peer.repository for peer in self.peers if isinstance(peer, Dvc)), folder)
        self.file = work / "model.safetensors"
        self.materialized = folder / "materialized"
        self.raw = 0

    def key(self, number: int) -> StateKey:
        """The key of a fine-tune."""
        return StateKey(TYPE, f"tune-{number}")

    def turn_to(self, number: int) -> None:
        """Make a fine-tune and its file, unless it is the one at hand, and let the disk rest."""
        if self.series.turn_to(number):
            self.file.unlink(missing_ok=True)
            save_file(self.series.tensors, self.file)
            self.raw += self.file.stat().st_size
        os.sync()

    def adding(self) -> list[Way]:
        """Ways to add the next fine-tune: those of the tools, and last mlstate's."""

        def way(name: str, add: Callable[[int], object]) -> Way:
            numbers = iter(range(FINE_TUNES + 1))
            turns = iter(range(FINE_TUNES + 1))
            return Way(name, lambda: add(next(numbers)), lambda: self.turn_to(next(turns)))

        def by(peer: Peer) -> Way:
            return way(peer.name, lambda number: peer.add(self.file, number))

        def save(number: int) -> None:
            self.store.save_state_dict(self.series.tensors, self.key(number))

        return [*map(by, self.peers), way("mlstate, durable", save)]

    def restoring(self) -> list[Way]:
        """Ways to restore a fine-tune, another in each round."""

        def way(name: str, restore: Callable[[int], object], clear: Callable[[], object]) -> Way:
            numbers = _round_and_round()
            return Way(name, lambda: restore(next(numbers)), clear)

        def clear_out(peer: Peer) -> None:
            peer.clear()
            os.sync()

        def clear_materialized() -> None:
            shutil.rmtree(self.materialized, ignore_errors=True)
            os.sync()

        def load(number: int) -> None:
            self.store.load_state_dict(self.key(number))

        def materialize(number: int) -> None:
            self.store.materialize(self.key(number), self.materialized)

        return [
            *(way(peer.name, peer.restore, partial(clear_out, peer)) for peer in self.peers),
            way("mlstate load_state_dict", load, lambda: None),
            way("mlstate materialize, durable", materialize, clear_materialized),
        ]

    def disk(self, title: str) -> Figures:
        """What is on the disk now."""
        os.sync()
        rows = [Figure("the files themselves", self.raw / 1e6)]
        for peer in self.peers:
            rows.append(Figure(peer.name, peer.disk() / 1e6, note=peer.version()))
        rows.append(Figure("mlstate", disk_used(self.store.folder) / 1e6))
        rows += [Figure(name, None, note=why) for name, why in self.missing.items()]
        return show(Figures(title, "MB of disk", tuple(rows)))


def frozen_backbone(contest: Contest, what: str, rounds: int) -> list[Table | Figures]:
    """Most tensors stay as they are."""
    # The base is the round that does not count.
    adding = compare(f"{what}: add one", contest.adding(), rounds=FINE_TUNES)
    disk = contest.disk(f"{what}: disk")
    size = state_bytes(contest.series.base) / 1e6
    title = f"{what}: restore one of {size:.0f} MB"
    restoring = compare(title, contest.restoring(), rounds=rounds)
    advantage = (
        *_advantage("add one", adding, ["mlstate, durable"]),
        *_advantage(
            "restore one", restoring, ["mlstate load_state_dict", "mlstate materialize, durable"]
        ),
    )
    title = f"{what}: times of mlstate over those of the next best tool"
    return [adding, disk, restoring, show(Figures(title, "ratio", advantage))]


def every_weight(contest: Contest, what: str) -> Figures:
    """No tensor stays: mlstate, which does not compress, has nothing to gain here."""
    for number in range(FINE_TUNES + 1):
        contest.turn_to(number)
        for peer in contest.peers:
            peer.add(contest.file, number)
        contest.store.save_state_dict(contest.series.tensors, contest.key(number))
    return contest.disk(f"{what}: disk")


def _advantage(what: str, table: Table, own: Sequence[str]) -> Iterator[Figure]:
    """How mlstate's median time compares with that of the fastest other tool."""
    medians = {row.name: row.seconds for row in table.rows}
    others = {name: took for name, took in medians.items() if not name.startswith("mlstate")}
    if others:
        best = min(others, key=lambda name: others[name])
        for name in own:
            yield Figure(f"{what}: {name}", medians[name] / others[best], 1 / 6, note=f"of {best}")


def _round_and_round() -> Iterator[int]:
    while True:
        yield from range(1, FINE_TUNES + 1)


if __name__ == "__main__":
    main()
