"""Ways to keep a tensor that is near to another: mlstate's, zstd's and blosc2's, side by side."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.harness import Figure, Figures, show
from mlstate.digests import Digest
from mlstate.encoded import Base, decode, encode
from mlstate.format import tensor_object
from mlstate.pickled.source import BytesSource
from mlstate.tensors.memory import as_bytes, spec_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["base_of", "least", "peers"]


def base_of(tensor: torch.Tensor) -> Base:
    """A tensor as a base."""
    data = as_bytes(tensor)
    return Base(Digest.of(tensor_object.header(spec_of(tensor)), data), data)


def least(run: Callable[[], object], tries: int = 15) -> float:
    """The least processor time that something takes in this thread, in seconds."""
    found = float("inf")
    for _ in range(tries):
        began = time.thread_time()
        run()
        found = min(found, time.thread_time() - began)
    return found


@dataclass(frozen=True)
class Coder:
    """A way to encode a tensor as the difference to another, or alone, and to decode it."""

    name: str
    encode: Callable[[], bytes]
    decode: Callable[[bytes], object]


def peers(title: str, value: torch.Tensor, base: torch.Tensor, rounds: int) -> list[Figures]:
    """Sizes and speeds by every way; each round runs each of them once, one after the other.

    Speeds are of processor time, of which other work on the machine takes none.
    """
    coders = [*_ours(value, base), *_zstd(value, base), *_blosc(value, base)]
    times: dict[str, dict[str, list[float]]] = {"encode": {}, "decode": {}}
    shares: dict[str, float] = {}
    for _ in range(rounds):
        for coder in coders:
            began = time.process_time()
            data = coder.encode()
            between = time.process_time()
            coder.decode(data)
            ended = time.process_time()
            shares[coder.name] = len(data) / value.nbytes
            times["encode"].setdefault(coder.name, []).append(between - began)
            times["decode"].setdefault(coder.name, []).append(ended - between)
    sizes = tuple(Figure(name, share) for name, share in shares.items())
    found = [Figures(f"{title}: size", "of the raw data", sizes)]
    for what, taken in times.items():
        rows = (Figure(name, value.nbytes / min(took) / 1e9) for name, took in taken.items())
        found.append(Figures(f"{title}: {what}", "GB for a second of a processor", tuple(rows)))
    return [show(figures) for figures in found]


def _ours(value: torch.Tensor, near: torch.Tensor) -> Iterator[Coder]:
    spec, data, base = spec_of(value), as_bytes(value), base_of(near)
    out = memoryview(bytearray(len(data)))
    for threads in (1, 2):

        def encoded(threads: int = threads) -> bytes:
            return b"".join(encode(data, spec, base, threads=threads))

        def decoded(file: bytes, threads: int = threads) -> None:
            decode(BytesSource(file), spec, out, base.data, threads=threads)

        decoded(encoded())
        if Digest.of(out) != Digest.of(data):
            raise AssertionError("what was decoded is something else")
        yield Coder(f"mlstate, {threads} thread{'s' * (threads > 1)}", encoded, decoded)


def _zstd(value: torch.Tensor, near: torch.Tensor) -> Iterator[Coder]:
    parameter, data = zstd.CompressionParameter, bytes(as_bytes(value))
    prefix = zstd.ZstdDict(bytes(as_bytes(near)), is_raw=True).as_prefix
    window: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 27}
    far: dict[int, int] = {parameter.window_log: 27, parameter.enable_long_distance_matching: 1}
    for level in (1, 3):
        options = {parameter.compression_level: level, **far}
        yield Coder(
            f"zstd -{level} --patch-from",
            partial(zstd.compress, data, options=options, zstd_dict=prefix),
            partial(zstd.decompress, zstd_dict=prefix, options=window),
        )
    yield Coder("zstd -1", lambda: zstd.compress(data, level=1), zstd.decompress)


def _blosc(value: torch.Tensor, near: torch.Tensor) -> Iterator[Coder]:
    """blosc2's shuffled bytes of the XOR, which is what it gets where nobody takes differences."""
    try:
        import blosc2
    except ImportError:
        return
    kind = {2: torch.int16, 4: torch.int32}[value.itemsize]
    ours, theirs = value.view(kind), near.view(kind)
    blosc2.set_nthreads(1)

    def encoded() -> bytes:
        mixed = bytes(as_bytes(ours ^ theirs))
        found: bytes = blosc2.compress2(
            mixed,
            typesize=value.itemsize,
            codec=blosc2.Codec.ZSTD,
            clevel=1,
            filters=[blosc2.Filter.SHUFFLE],
        )
        return found

    def decoded(file: bytes) -> torch.Tensor:
        return torch.frombuffer(bytearray(blosc2.decompress2(file)), dtype=kind) ^ theirs

    yield Coder(f"XOR, blosc2 {blosc2.__version__} shuffle + zstd 1", encoded, decoded)
