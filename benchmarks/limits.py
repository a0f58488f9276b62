"""What this machine can do at most, and ways that were tried: ``python -m benchmarks.limits``.

Rates in GB/s, medians. All is in the page cache; nothing is flushed to a disk.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from blake3 import blake3

from benchmarks.harness import Figure, Figures, arguments_parser, report, show
from mlstate.parallel import for_each
from mlstate.tensors.memory import as_bytes

SIZE = 64 << 20
CACHED = 256 << 10
PIECES = (256 << 10, 1 << 20, 4 << 20)


def main() -> None:
    """Measure everything in turn, round after round."""
    arguments = arguments_parser(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        limits = Limits.of(Path(folder))
        ways = dict(limits.ways())
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(arguments.rounds + 1):
            for name, run in ways.items():
                began = time.perf_counter()
                run()
                took = time.perf_counter() - began
                if number:
                    rates[name].append(SIZE / took / 1e9)
    rows = tuple(Figure(name, statistics.median(found)) for name, found in rates.items())
    report([show(Figures("what this machine can do", "GB/s", rows))], arguments.json)


@dataclass(frozen=True)
class Limits:
    """Memory to read from and to write to, and a file with the same bytes."""

    source: torch.Tensor
    target: torch.Tensor
    path: Path

    @classmethod
    def of(cls, folder: Path) -> Limits:
        """Make them."""
        torch.manual_seed(0)
        source = torch.randint(256, (SIZE,), dtype=torch.uint8)
        path = folder / "file"
        path.write_bytes(as_bytes(source))
        return cls(source, source.clone(), path)

    def ways(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """What is measured, each of it on `SIZE` bytes."""
        for threads in (1, 2):
            on = f"{threads} thread" + "s" * (threads > 1)
            yield (
                f"blake3 of what is in the core's cache, {on}",
                self._each(self._hash_same, threads),
            )
            yield f"blake3 of memory, {on}", self._each(self._hash, threads)
            yield f"copy memory, {on}", self._each(self._copy, threads)
            yield f"blake3 of a mapped file, {on}", partial(self._hash_mapped, threads)
            yield f"read 512 KB pieces and blake3 them, {on}", self._each(self._read, threads)
        yield "torch's copy_", lambda: self.target.copy_(self.source)
        yield "sha256 of memory", lambda: hashlib.sha256(as_bytes(self.source))
        yield "write to the page cache, at once", lambda: self._write([as_bytes(self.source)])
        for piece in PIECES:
            name = f"copy, blake3 and write, by {piece >> 10} KB"
            yield name, partial(self._write_hashed, piece)

    def _each(self, work: Callable[[slice], object], threads: int) -> Callable[[], None]:
        step = 4 << 20
        parts = [slice(start, start + step) for start in range(0, SIZE, step)]
        return lambda: for_each(lambda part: (work(part), None)[1], parts, threads)

    def _hash(self, part: slice) -> None:
        blake3(as_bytes(self.source)[part]).digest()

    def _hash_same(self, part: slice) -> None:
        same = as_bytes(self.source)[part][:CACHED]
        for _ in range(0, part.stop - part.start, CACHED):
            blake3(same).digest()

    def _copy(self, part: slice) -> None:
        size = part.stop - part.start
        start, end = self.target.data_ptr() + part.start, self.source.data_ptr() + part.start
        ctypes.memmove(start, end, size)

    def _hash_mapped(self, threads: int) -> None:
        with (
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as map_,
            memoryview(map_) as view,
        ):
            self._each(lambda part: _digest(view[part]), threads)()

    def _read(self, part: slice) -> None:
        hasher, buffer = blake3(), bytearray(512 << 10)
        with self.path.open("rb", buffering=0) as file:
            file.seek(part.start)
            for _ in range(part.start, part.stop, len(buffer)):
                file.readinto(buffer)
                hasher.update(buffer)

    def _write(self, pieces: Iterable[memoryview]) -> None:
        path = self.path.with_name("new")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        for piece in pieces:
            os.write(descriptor, piece)
        os.close(descriptor)
        path.unlink()

    def _write_hashed(self, size: int) -> None:
        self._write(self._hashed(size))

    def _hashed(self, size: int) -> Iterator[memoryview]:
        view, buffer, hasher = as_bytes(self.source), memoryview(bytearray(size)), blake3()
        for start in range(0, SIZE, size):
            buffer[:] = view[start : start + size]
            hasher.update(buffer)
            yield buffer


def _digest(view: memoryview) -> None:
    with view:
        blake3(view).digest()


if __name__ == "__main__":
    main()
