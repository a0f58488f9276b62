"""How fast states go to a bucket and come back: ``python -m benchmarks.s3``.

Held against boto3's own upload_file and download_file of one file of that size, which hash
nothing. The server is Ceph's gateway on loopback, with its data in memory; without Ceph it is moto,
which is slow itself. Needs twice the size in memory, and once on the disk.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.harness import Row, Table, Way, arguments_parser, compare, report
from mlstate import S3StateStore, StateKey
from mlstate.buckets.open import open_bucket
from tests.servers.ceph import Ceph
from tests.servers.moto import Moto
from tests.servers.ports import MissingProgramError
from tests.servers.s3 import S3Server
from tests.support.buckets import options_for

TENSORS = 64
FIRST = StateKey.parse("pytorch.large.first")
SECOND = StateKey.parse("pytorch.large.second")


def main() -> None:
    """Make a state, start the server, compare."""
    parser = arguments_parser(__doc__ or "")
    parser.add_argument("--size", type=int, default=2000, help="of the state, in MB (2000)")
    parser.add_argument("--server", choices=["ceph", "moto"], default="ceph")
    parser.add_argument(
        "--only", choices=[*PARTS], action="append", help="some tables; the file keeps the others"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        server = stack.enter_context(_start(arguments.server, arguments.size))
        torch.manual_seed(0)
        elements = arguments.size * 1_000_000 // 4 // TENSORS
        tensors = {f"layer.{number}": torch.randn(elements) for number in range(TENSORS)}
        bench = Bench(server, server.new_bucket(), Path(name), tensors, arguments.size)
        save_file(tensors, bench.file)
        parts = [PARTS[name] for name in arguments.only or PARTS]
        tables = [part(bench, arguments.rounds) for part in parts]
    report([*_others(arguments.json, tables), *tables], arguments.json)


def _others(path: Path | None, tables: list[Table]) -> list[Table]:
    """The tables of earlier runs in a file of results, less those that were just made anew."""
    if path is None or not path.exists():
        return []
    found = [
        Table(table["title"], table["rounds"], tuple(Row(**row) for row in table["rows"]))
        for table in json.loads(path.read_text())["tables"]
    ]
    return [table for table in found if table.title not in {new.title for new in tables}]


def _start(name: str, megabytes: int) -> S3Server:
    if name == "ceph":
        try:
            return Ceph(size=6 * megabytes << 20)
        except MissingProgramError as missing:
            print(f"{missing}: moto serves")
    return Moto()


@dataclass(frozen=True)
class Bench:
    """The server, the state, and a folder for files."""

    server: S3Server
    bucket: str
    folder: Path
    tensors: dict[str, torch.Tensor]
    megabytes: int

    @property
    def file(self) -> Path:
        """The state as one file, for boto3."""
        return self.folder / "model.safetensors"

    @property
    def what(self) -> str:
        """What is moved, for titles."""
        return f"{self.megabytes} MB in {TENSORS} tensors, {type(self.server).__name__}"

    def store(self, *, durable: bool = True) -> S3StateStore:
        """A store that nobody has used yet."""
        keys = self.server.session_kwargs
        cache = self.folder / "cache"
        store = S3StateStore(self.bucket, keys, self.server.url, "models", cache=cache)
        store.fetcher.durable = durable
        return store

    def clear(self) -> None:
        """Empty the bucket and the cache."""
        self.clear_local()
        client = open_bucket(f"s3://{self.bucket}", options_for(self.server))
        for item in list(client.items("")):
            client.delete(item.path)
        if isinstance(self.server, Ceph):
            time.sleep(5)  # it gives the memory back a while later

    def clear_local(self) -> None:
        """Empty the cache."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        (self.folder / "downloaded").unlink(missing_ok=True)

    def upload_file(self) -> None:
        """What boto3 does by itself."""
        self.server.boto.upload_file(str(self.file), self.bucket, "file")

    def download_file(self) -> None:
        """What boto3 does by itself."""
        self.server.boto.download_file(self.bucket, "file", str(self.folder / "downloaded"))

    def save(self) -> None:
        """Save the state."""
        self.store().save_state_dict(self.tensors, FIRST)

    def save_fine_tune(self) -> None:
        """Save the state with one tensor changed."""
        tensors = {**self.tensors, "layer.0": self.tensors["layer.0"] + 1}
        self.store().save_state_dict(tensors, SECOND)

    def fetch(self, *, durable: bool = False) -> None:
        """Bring the state into an empty cache."""
        self.store(durable=durable).fetch(FIRST)


def up(bench: Bench, rounds: int) -> Table:
    """Into an empty bucket."""
    return compare(
        f"up: {bench.what}",
        [
            Way("boto3 upload_file, unhashed", bench.upload_file, bench.clear),
            Way("mlstate save", bench.save, bench.clear),
        ],
        rounds=rounds,
        goals={"mlstate save": 1.1},
    )


def down(bench: Bench, rounds: int) -> Table:
    """To the disk."""
    bench.clear()
    bench.upload_file()
    bench.save()
    return compare(
        f"down: {bench.what}",
        [
            Way("boto3 download_file, unhashed", bench.download_file, bench.clear_local),
            Way("mlstate fetch", bench.fetch, bench.clear_local),
            Way("mlstate fetch, durable", lambda: bench.fetch(durable=True), bench.clear_local),
        ],
        rounds=rounds,
        goals={"mlstate fetch": 1.1},
    )


def frozen(bench: Bench, rounds: int) -> Table:
    """A fine-tune of what is there: one tensor of them all differs."""
    bench.clear()

    def clear_fine_tune() -> None:
        bench.clear()
        bench.save()

    return compare(
        f"the second save: one tensor of {TENSORS} differs, {bench.what}",
        [
            Way("the first save", bench.save, bench.clear),
            Way("the second save", bench.save_fine_tune, clear_fine_tune),
        ],
        rounds=rounds,
        warm_up=False,
        goals={"the second save": 0.25},
    )


PARTS = {"up": up, "down": down, "second": frozen}


if __name__ == "__main__":
    main()
