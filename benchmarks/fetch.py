"""How fast states are fetched, hashed and all: ``python -m benchmarks.fetch``.

Everything comes from nginx on loopback, and goes to a disk, as it does with the peers: curl, a
plain loop of requests, huggingface_hub's own download, pooch, and, of small objects, one new
connection after the other. Needs nginx, curl and pooch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import requests
import torch
from safetensors.torch import save_file

from benchmarks.harness import Table, Way, arguments_parser, compare, report
from mlstate import LocalStateStore, StateKey
from mlstate.digests import Digest
from mlstate.fetch import Fetcher
from mlstate.format import layout
from mlstate.locations import parse_mirror
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore
from mlstate.objects.cache import Cache
from mlstate.reading import read_state
from mlstate.transport import Transports
from tests.servers.nginx import Nginx

LATENCY = 0.05
AWAY = f"{LATENCY * 1000:.0f} ms of latency a request"
FILE = "model.safetensors"
BERT = StateKey.parse("pytorch.bert-shaped.seed0")
SMALL = StateKey.parse("pytorch.many-small.seed0")
CONNECTIONS = 16
TUNED = StateKey.parse("pytorch.bert-shaped.tuned")
CHECKPOINT = "tuned.pth"
TABLES = ("file", "far", "small", "small-far", "tuned")


def main() -> None:
    """Make the states, start the servers, compare."""
    parser = arguments_parser(__doc__ or "")
    parser.add_argument("--only", choices=TABLES, nargs="*", default=TABLES, help="these tables")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        web, out = folder / "web", folder / "out"
        web.mkdir()
        bert = bert_shaped()
        save_file(bert, web / FILE)
        bench = Bench(LocalStateStore(web), out)
        bench.store.save_state_dict(bert, BERT)
        small = {f"{i}": torch.full((5000,), float(i)) for i in range(2000)}
        bench.store.save_state_dict(small, SMALL)
        if "tuned" in arguments.only:
            tuned = {n: t + 1 if n.startswith("pooler.") else t for n, t in bert.items()}
            bench.store.save_state_dict(tuned, TUNED)
            torch.save(tuned, web / CHECKPOINT)
            del tuned
        del bert, small
        nginx = stack.enter_context(Nginx(web, latency=LATENCY))
        near_base, far_base = nginx.url("", "plain").rstrip("/"), nginx.url("", "far").rstrip("/")
        makers = {
            "file": lambda: one_file(bench, near_base, arguments.rounds),
            "far": lambda: many_objects(bench, far_base, arguments.rounds),
            "small": lambda: small_objects(bench, near_base, "loopback", arguments.rounds),
            # Minutes of waiting, which vary little: once is enough.
            "small-far": lambda: small_objects(bench, far_base, AWAY, rounds=1),
            "tuned": lambda: fine_tune(bench, far_base, arguments.rounds),
        }
        report([makers[name]() for name in TABLES if name in arguments.only], arguments.json)


def bert_shaped() -> dict[str, torch.Tensor]:
    """438 MB in 199 tensors, as BERT-base has them."""
    torch.manual_seed(0)
    tensors = {
        "embeddings.word": torch.randn(30522, 768),
        "embeddings.position": torch.randn(512, 768),
        "embeddings.type": torch.randn(2, 768),
        "embeddings.norm.weight": torch.randn(768),
        "embeddings.norm.bias": torch.randn(768),
        "pooler.weight": torch.randn(768, 768),
        "pooler.bias": torch.randn(768),
    }
    for i in range(12):
        for name in ("query", "key", "value", "output"):
            tensors[f"layer.{i}.{name}.weight"] = torch.randn(768, 768)
            tensors[f"layer.{i}.{name}.bias"] = torch.randn(768)
        for name, shape in (("up", (3072, 768)), ("down", (768, 3072))):
            tensors[f"layer.{i}.{name}.weight"] = torch.randn(shape)
            tensors[f"layer.{i}.{name}.bias"] = torch.randn(shape[0])
        for name in ("norm1", "norm2"):
            tensors[f"layer.{i}.{name}.weight"] = torch.randn(768)
            tensors[f"layer.{i}.{name}.bias"] = torch.randn(768)
    return tensors


@dataclasses.dataclass(frozen=True)
class Bench:
    """The store that is served, and the folder that downloads go to."""

    store: LocalStateStore
    out: Path

    def clear(self) -> None:
        """Remove what the last run brought; the disk is not to be busy with it in the next."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        os.sync()

    def begin_anew(self) -> None:
        """Keep what the last run brought, and go on in a new folder.

        For thousands of files: ext4 does not give out an inode again within minutes, and looks for
        another one for long. Nobody removes as much right before a fetch.
        """
        if self.out.exists():
            self.out.rename(self.out.with_name(f"done-{uuid.uuid4().hex}"))
        self.out.mkdir()
        os.sync()

    def way(self, name: str, run: Callable[[], object], *, many_files: bool = False) -> Way:
        """A way that begins with an empty folder."""
        return Way(name, run, self.begin_anew if many_files else self.clear)

    def entry(self, key: StateKey, base: str, **mirror: str) -> StateEntry:
        """What a manifest would say: a file mirror, or without one an object mirror."""
        entry = self.store.get(key).entry
        if mirror:
            return dataclasses.replace(entry, mirrors=(parse_mirror(mirror),))
        return dataclasses.replace(entry, objects=(base,))

    def fetch(self, entry: StateEntry, *, durable: bool = False) -> None:
        """Fetch into an empty cache."""
        cache = Cache([FolderObjectStore(self.out / "cache")])
        transports = partial(Transports, connections=CONNECTIONS)
        Fetcher(cache, transports, connections=CONNECTIONS, durable=durable).fetch(entry)

    def curl(self, url: str) -> None:
        """``curl -o``."""
        subprocess.run(["curl", "-s", "-S", "-f", "-o", self.out / "file", url], check=True)

    def plain_requests(self, url: str) -> None:
        """The loop that everybody writes, unhashed."""
        reply = requests.get(url, stream=True, timeout=30)
        with reply, (self.out / "file").open("wb") as file:
            for chunk in reply.iter_content(1 << 20):
                file.write(chunk)

    def hub_download(self, url: str) -> None:
        """huggingface_hub's own download of a file, unhashed."""
        from huggingface_hub.file_download import http_get

        with (self.out / "file").open("wb") as file:
            http_get(url, file)

    def pooch(self, url: str, sha256: str) -> None:
        """Pooch's own download, verified by SHA-256."""
        import pooch

        pooch.retrieve(url, f"sha256:{sha256}", "file", self.out)

    def one_by_one(self, base: str, key: StateKey) -> None:
        """Every object by a connection of its own, one after the other, unhashed."""
        for digest in self.objects(key):
            data = requests.get(f"{base}/{layout.object_path(digest)}", timeout=30).content
            (self.out / digest).write_bytes(data)

    def objects(self, key: StateKey) -> list[Digest]:
        """The digests of a state's tensor objects."""
        return [ref.digest for ref in read_state(*self.store.get(key)).refs.values()]


def one_file(bench: Bench, base: str, rounds: int) -> Table:
    """One file of 438 MB."""
    digest = bench.store.digest(BERT)
    url, state = f"{base}/{FILE}", f"{base}/{layout.object_path(digest)}"
    beside = bench.entry(BERT, base, url=url, state=state)
    alone = bench.entry(BERT, base, url=url)
    objects = bench.entry(BERT, base)
    with (bench.store.folder / FILE).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return compare(
        "one file of 438 MB, loopback",
        [
            bench.way("curl -o", lambda: bench.curl(url)),
            bench.way("requests, unhashed", lambda: bench.plain_requests(url)),
            bench.way("huggingface_hub, unhashed", lambda: bench.hub_download(url)),
            bench.way("pooch, sha256", lambda: bench.pooch(url, sha256)),
            bench.way("mlstate, the file", lambda: bench.fetch(beside)),
            bench.way("mlstate, the file, no state object", lambda: bench.fetch(alone)),
            bench.way("mlstate, 76 objects", lambda: bench.fetch(objects)),
            bench.way("mlstate, the file, durable", lambda: bench.fetch(beside, durable=True)),
        ],
        rounds=rounds,
        goals={"mlstate, the file": 0.75, "mlstate, the file, no state object": 0.75},
    )


def fine_tune(bench: Bench, base: str, rounds: int) -> Table:
    """A checkpoint of 438 MB of which 2.4 MB are new, 50 ms away."""
    url = f"{base}/{CHECKPOINT}"
    state = f"{base}/{layout.object_path(bench.store.digest(TUNED))}"
    checkpoint = bench.entry(TUNED, base, url=url, format="torch", state=state)
    own = set(bench.objects(TUNED)) - set(bench.objects(BERT)) | {bench.store.digest(TUNED)}
    cache = FolderObjectStore(bench.out.with_name("base"))
    fetcher = Fetcher(Cache([cache]), partial(Transports, connections=CONNECTIONS), durable=False)
    fetcher.fetch(bench.entry(BERT, base))

    def forget() -> None:
        bench.clear()
        for digest in own:
            cache.path(digest).unlink(missing_ok=True)

    return compare(
        f"a checkpoint of 438 MB whose base is there, {AWAY}",
        [
            bench.way("curl -o", lambda: bench.curl(url)),
            bench.way("requests, unhashed", lambda: bench.plain_requests(url)),
            bench.way(
                "mlstate, the file, nothing there",
                lambda: bench.fetch(checkpoint),
            ),
            Way("mlstate, what differs", lambda: fetcher.fetch(checkpoint), forget),
        ],
        rounds=rounds,
        goals={"mlstate, what differs": 0.6},
    )


def many_objects(bench: Bench, base: str, rounds: int) -> Table:
    """76 objects, 50 ms away."""
    objects = bench.entry(BERT, base)
    return compare(
        f"438 MB in 76 objects, {AWAY}",
        [
            bench.way("curl -o of the one file", lambda: bench.curl(f"{base}/{FILE}")),
            bench.way("mlstate, 76 objects", lambda: bench.fetch(objects)),
        ],
        rounds=rounds,
        goals={"mlstate, 76 objects": 0.75},
    )


def small_objects(bench: Bench, base: str, where: str, rounds: int) -> Table:
    """2,000 objects of 20 KB."""
    objects = bench.entry(SMALL, base)
    return compare(
        f"2,000 objects of 20 KB, {where}",
        [
            bench.way(
                "one connection after the other",
                lambda: bench.one_by_one(base, SMALL),
                many_files=True,
            ),
            bench.way("mlstate", lambda: bench.fetch(objects), many_files=True),
        ],
        rounds=rounds,
        warm_up=rounds > 1,
        goals={"mlstate": 0.1} if where == AWAY else None,
    )


if __name__ == "__main__":
    main()
