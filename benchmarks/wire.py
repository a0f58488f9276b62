"""What encoded objects save of a fetch: ``python -m benchmarks.wire``.

A bf16 model of 200 MB and a fine-tune of it, all weights of which differ: by noise, as large as a
part of each weight. The base is in the cache. The server gives 50 MB/s, all connections together.
The fine-tune comes plainly, and encoded by ``compact``.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import Figure, Figures, Table, Way, compare, main_arguments, report, show
from benchmarks.throttled import throttled
from mlstate import LocalStateStore, StateKey, compact
from mlstate.fetch import Fetcher
from mlstate.format import layout
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import Cache
from mlstate.transport import Transports

RATE = 50_000_000
CONNECTIONS = 16
TENSORS, ELEMENTS = 48, 1 << 21
NOISE = (1e-3, 1e-2)
GOAL = 0.4
BASE = StateKey.parse("pytorch.llm-shaped.base")


def main() -> None:
    """Make the states, start the server, compare."""
    arguments = main_arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "web").mkdir()
        entries = make_states(folder / "web")
        base = stack.enter_context(throttled(folder / "web", RATE))
        near = LocalStateStore(folder / "web" / "plain")
        found: list[Table | Figures] = []
        for noise in NOISE:
            cache = FolderObjectStore(folder / f"cache-{noise}")
            plain, encoded = f"{base}/plain", f"{base}/encoded-{noise}"
            ways = Fetches(cache, entries[f"{noise:g}"], plain, encoded)
            ways.fetcher.fetch(replace(entries["base"], objects=(str(near.folder),)))
            found += [ways.times(noise, arguments.rounds), ways.sizes(noise)]
        report(found, arguments.json)


def make_states(web: Path) -> dict[str, StateEntry]:
    """A store with the base and its fine-tunes plainly, and one for each fine-tune, compacted."""
    chance = torch.Generator().manual_seed(0)
    base = {
        f"layer.{i}.weight": torch.randn(ELEMENTS, generator=chance).mul_(0.02).bfloat16()
        for i in range(TENSORS)
    }
    plain = LocalStateStore(web / "plain")
    plain.save_state_dict(base, BASE)
    entries = {"base": plain.get(BASE).entry}
    for noise in NOISE:
        tuned = {}
        for name, tensor in base.items():
            step = torch.randn(ELEMENTS, generator=chance) * tensor.float().std() * noise
            tuned[name] = (tensor.float() + step).bfloat16()
        key = replace(BASE, training_id=f"tuned-{NOISE.index(noise)}")
        plain.save_state_dict(tuned, key)
        entries[f"{noise:g}"] = plain.get(key).entry
        shutil.copytree(web / "plain", web / f"encoded-{noise}")
        compact(LocalStateStore(web / f"encoded-{noise}"))
    return entries


class Fetches:
    """Fetches of one fine-tune into one cache that has the base."""

    def __init__(
        self, cache: FolderObjectStore, entry: StateEntry, plain: str, encoded: str
    ) -> None:
        self._cache = cache
        self._entry = entry
        self._places = {"plain": plain, "encoded": encoded}
        transports = partial(Transports, connections=CONNECTIONS)
        self.fetcher = Fetcher(Cache([cache]), transports, connections=CONNECTIONS, durable=False)
        self._kept: set[str] = set()

    def fetch(self, way: str) -> int:
        """Fetch it; the bytes that came."""
        return self.fetcher.fetch(replace(self._entry, objects=(self._places[way],))).fetched

    def forget(self) -> None:
        """Leave the base alone in the cache."""
        files = list((self._cache.root / layout.OBJECTS).glob("*/*"))
        self._kept = self._kept or {path.name for path in files}
        for path in files:
            if path.name not in self._kept:
                path.unlink()

    def times(self, noise: float, rounds: int) -> Table:
        """Both ways in turn."""
        self.forget()
        return compare(
            f"a bf16 fine-tune of 201 MB, noise {noise:g}, base cached, at 50 MB/s",
            [Way(way, partial(self.fetch, way), self.forget) for way in self._places],
            rounds=rounds,
            goals={"encoded": GOAL},
        )

    def sizes(self, noise: float) -> Figures:
        """What travels."""
        rows = []
        for way in self._places:
            self.forget()
            rows.append(Figure(way, self.fetch(way) / 1e6))
        return show(Figures(f"bytes that travel, noise {noise:g}", "MB", tuple(rows)))


if __name__ == "__main__":
    main()
