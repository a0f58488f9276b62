"""Encoded tensors: how small, and how fast a thread and two are: ``python -m benchmarks.encoded``.

MiniLM's published weights in fp32 and cast to bf16, alone, with noise, and after training on
seeds: first without a base, then as differences to the published ones. All tensors of the encoder
that are large enough to be objects are joined into one, so that a figure is of tens of megabytes.

Ratios of size are exact, and the same anywhere. Of speed, each round runs every way once, one after
the other; the medians of a shared machine say what it does when it is shared. Beside it is zstd,
alone and with the base as its prefix (``--patch-from``).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness import Figure, Figures, arguments_parser, report, show
from benchmarks.states import minilm
from mlstate.digests import Digest
from mlstate.encoded import Base, decode, encode
from mlstate.format import tensor_object
from mlstate.format.tensor_object import TensorSpec
from mlstate.pickled.source import BytesSource
from mlstate.tensors.memory import as_bytes, spec_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Case", "cases"]

COUNT = 4 << 20
"""The elements of the joined tensor that are measured."""
DTYPES = (torch.bfloat16, torch.float32)
NOISE = (1e-4, 1e-3, 1e-2)
STEPS, RATES = 50, (2e-5, 1e-4)


@dataclass(frozen=True)
class Case:
    """A tensor to encode, and perhaps its base.

    Attributes:
        name: What it is called in the tables.
        tensor: One dimension.
        base: Of the same type and shape, or None.
    """

    name: str
    tensor: torch.Tensor
    base: torch.Tensor | None


@dataclass(frozen=True)
class Coder:
    """A way to encode and decode; it keeps what it made."""

    name: str
    encode: Callable[[], bytes]
    decode: Callable[[bytes], object]


def main() -> None:
    """Measure every case in turn."""
    arguments = arguments_parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)  # for the training, on a machine with other work
    results: list[Figures] = []
    for case in cases():
        results += measured(case, arguments.rounds)
        report(results, arguments.json)


def cases() -> Iterator[Case]:
    """The published weights alone, with noise, and trained further."""
    weights: dict[str, torch.Tensor] = {}
    for name, value in minilm().state_dict().items():
        if "encoder" in name and value.dim() == 2 and _count(weights) < COUNT:
            weights[name] = value.detach()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_count(weights), generator=generator)
    published = _joined(weights.values())
    trained = {rate: _joined(_trained(weights, rate)) for rate in RATES}
    for dtype in DTYPES:
        kind = str(dtype).removeprefix("torch.")
        base = published.to(dtype)[:COUNT]
        yield Case(f"{kind}, alone", base, None)
        for level in NOISE:
            near = (published * (1 + level * noise)).to(dtype)[:COUNT]
            yield Case(f"{kind}, noise of {level:g}", near, base)
        for rate, values in trained.items():
            yield Case(f"{kind}, {STEPS} steps of {rate:g}", values.to(dtype)[:COUNT], base)


def _count(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _joined(tensors: Any) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _trained(weights: dict[str, torch.Tensor], rate: float) -> list[torch.Tensor]:
    """Every matrix after steps of Adam: a layer of its own, towards noisy outputs of its own.

    It stands for a fine-tune as far as the sizes of the changes go, with no text and no model.
    """
    generator = torch.Generator().manual_seed(1)
    found = []
    for value in weights.values():
        weight = torch.nn.Parameter(value.clone())
        optimizer = torch.optim.AdamW([weight], lr=rate)
        for _ in range(STEPS):
            inputs = torch.randn(16, value.shape[1], generator=generator)
            wanted = inputs @ value.t()
            wanted = wanted + 0.1 * torch.randn(wanted.shape, generator=generator)
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(inputs @ weight.t(), wanted).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        found.append(weight.detach())
    return found


def measured(case: Case, rounds: int) -> list[Figures]:
    """The sizes and speeds of a case, by every way."""
    coders = [*_ours(case), *_zstd(case)]
    size = case.tensor.nbytes
    times: dict[str, tuple[list[float], list[float]]] = {c.name: ([], []) for c in coders}
    sizes = {}
    for _ in range(rounds):
        for coder in coders:
            began = time.perf_counter()
            data = coder.encode()
            between = time.perf_counter()
            coder.decode(data)
            ended = time.perf_counter()
            sizes[coder.name] = len(data)
            times[coder.name][0].append(between - began)
            times[coder.name][1].append(ended - between)
    shares = tuple(Figure(name, found / size) for name, found in sizes.items())
    speeds = [
        tuple(
            Figure(name, size / statistics.median(found[way]) / 1e9, note=_best(size, found[way]))
            for name, found in times.items()
        )
        for way in (0, 1)
    ]
    return [
        show(Figures(f"{case.name}: size", "of the raw data", shares)),
        show(Figures(f"{case.name}: encode ({rounds} rounds)", "GB/s", speeds[0])),
        show(Figures(f"{case.name}: decode ({rounds} rounds)", "GB/s", speeds[1])),
    ]


def _best(size: int, times: list[float]) -> str:
    return f"best {size / min(times) / 1e9:.2f}"


def _ours(case: Case) -> Iterator[Coder]:
    spec, data = spec_of(case.tensor), as_bytes(case.tensor)
    base = None if case.base is None else _base(spec, as_bytes(case.base))
    out = memoryview(bytearray(len(data)))
    for threads in (1, 2):

        def encoded(threads: int = threads) -> bytes:
            return b"".join(encode(data, spec, base, threads=threads))

        def decoded(file: bytes, threads: int = threads) -> None:
            given = None if base is None else base.data
            decode(BytesSource(file), spec, out, given, threads=threads)

        decoded(encoded())
        if Digest.of(out) != Digest.of(data):
            raise AssertionError("what was decoded is something else")
        yield Coder(f"mlstate, {threads} thread{'s' * (threads > 1)}", encoded, decoded)


def _base(spec: TensorSpec, data: memoryview) -> Base:
    return Base(Digest.of(tensor_object.header(spec), data), data)


def _zstd(case: Case) -> Iterator[Coder]:
    parameter = zstd.CompressionParameter
    window: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 27}
    data = bytes(as_bytes(case.tensor))
    base = None if case.base is None else zstd.ZstdDict(bytes(as_bytes(case.base)), is_raw=True)
    for level in (1, 3):
        options: dict[int, int] = {parameter.compression_level: level}
        if base is not None:
            options |= {parameter.window_log: 27, parameter.enable_long_distance_matching: 1}

        def encoded(options: dict[int, int] = options) -> bytes:
            prefix = None if base is None else base.as_prefix
            return zstd.compress(data, options=options, zstd_dict=prefix)

        def decoded(file: bytes) -> None:
            prefix = None if base is None else base.as_prefix
            zstd.decompress(file, zstd_dict=prefix, options=window)

        yield Coder(f"zstd -{level}{'' if base is None else ' --patch-from'}", encoded, decoded)


if __name__ == "__main__":
    main()
