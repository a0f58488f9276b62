"""A long comparison with torch: ``python -m tests.pickled.differential [files] [seed]``.

Half of the files are as torch.save writes them: what is read is torch's, bit for bit. The others
are damaged: what is read of one is what torch reads, or torch refuses it for a reason in `REASONS`.
"""

from __future__ import annotations

import io
import math
import pickle
import random
import re
import sys
import time
import warnings
import zipfile
from collections import Counter, OrderedDict
from typing import Any

import numpy
import torch

from mlstate.errors import FormatError
from mlstate.pickled import BytesSource, CheckpointTensor, read_checkpoint, tensor_pieces
from mlstate.pickled.depth import children
from mlstate.pickled.dtypes import ITEMSIZES
from mlstate.pickled.values import Call, Global, Items, Pairs

DTYPES = [getattr(torch, name) for name in ITEMSIZES if hasattr(torch, name)]
INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

UNTYPED = r"'torch.storage.UntypedStorage' has no attribute 'dtype'"
"""Torch does not read its own legacy files of the newer types."""

REASONS = [
    UNTYPED,
    # Opcodes of protocols other than 2, and Python's own types that torch does not take.
    r"Unsupported operand",
    r"Unsupported global: GLOBAL",
    r"Trying to load unsupported GLOBAL .* whose module .* is blocked",
    r"unrecognized function",
    r"Can only create new object for",
    r"Can only build Tensor",
    # Entries of the archive in which the reader is not interested.
    r"This is an internal miniz error",
    r"Couldn't parse the version",
    r'hasRecord\("version"\)',
    r"file in archive is not in a subdirectory",
    r"invalid literal for int\(\) with base 10: b'",  # an empty .storage_alignment
    # Calls that stay undone, and whose results no value needs.
    r"argument after \* must be an iterable",
    r"_rebuild_\w+\(\) (takes|missing) \d+",
    # Facts that have no part in the values.
    r"codec can't decode byte",  # strings of Python 2
    r"Only Tensors of floating point and complex dtype can require gradients",
]


def values_of(rng: random.Random) -> dict[str, Any]:
    """A state dict with all that torch.save takes of tensors, and a few other things."""
    state: dict[str, Any] = OrderedDict() if rng.random() < 0.5 else {}
    tensors: list[torch.Tensor] = []
    for index in range(rng.randint(0, 5)):
        if tensors and rng.random() < 0.3:
            tensor = view_of(rng, rng.choice(tensors))
        else:
            tensor = new_tensor(rng)
            for _ in range(rng.randint(0, 2)):
                tensor = view_of(rng, tensor)
        tensors.append(tensor)
        state[f"{rng.choice(['w', 'ü', 'a.b', ''])}{index}"] = dressed(rng, tensor)
    if rng.random() < 0.4:
        state["extra"] = other(rng, tensors)
    if isinstance(state, OrderedDict) and rng.random() < 0.5:
        state._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]
    return state


def new_tensor(rng: random.Random) -> torch.Tensor:
    dtype = rng.choice(DTYPES)
    shape = [rng.choice([0, 1, 2, 3, 5]) for _ in range(rng.randint(0, 4))]
    count, itemsize = math.prod(shape), ITEMSIZES[str(dtype).removeprefix("torch.")]
    data = bytearray(rng.randbytes(count * itemsize))
    if dtype == torch.bool:
        data = bytearray(byte % 2 for byte in data)
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=torch.uint8).clone().view(dtype).reshape(shape)


def view_of(rng: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    kind = rng.randrange(6)
    if kind == 0 and tensor.dim() > 1:
        return tensor.permute(rng.sample(range(tensor.dim()), tensor.dim()))
    if kind == 1 and tensor.dim() and tensor.shape[0] > 1:
        return tensor[rng.randrange(tensor.shape[0]) :: rng.randint(1, 2)]
    if kind == 2 and tensor.dim() < 5:
        return tensor.unsqueeze(0).expand(rng.randint(1, 4), *tensor.shape)
    if kind == 3 and tensor.dim() and tensor.shape[-1] > 1:
        return tensor[..., 1:]
    if kind == 4 and tensor.dtype in (torch.complex64, torch.complex128):
        return rng.choice([tensor.conj(), tensor.conj().imag, tensor.real])
    return tensor


def dressed(rng: random.Random, tensor: torch.Tensor) -> Any:
    if rng.random() < 0.3:
        grad = tensor.is_floating_point() and rng.random() < 0.5
        parameter = torch.nn.Parameter(tensor, requires_grad=grad)
        if rng.random() < 0.2:
            parameter.note = "attribute"  # type: ignore[attr-defined]
        return parameter
    if rng.random() < 0.1:
        tensor = tensor.clone() if tensor.is_contiguous() and tensor.numel() else tensor
        tensor.note = {"a": 1}  # type: ignore[attr-defined]
    return tensor


def other(rng: random.Random, tensors: list[torch.Tensor]) -> Any:
    return rng.choice(
        [
            None,
            True,
            -(2**70),
            0.5,
            float("nan"),
            complex(1, 2),
            b"bytes\xff",
            "text \U0001f600",
            [1, (2, [3, {4: 5}]), ()],
            {1: "a", 2.5: "c", None: "d", ("t", 1): "e", b"b": "f"},
            {"set": {1, 2}},
            Counter("abca"),
            torch.Size([2, 3]),
            torch.float16,
            torch.device("cpu"),
            numpy.arange(3.0),
            numpy.float32(1.5),
            {"inside": dict(enumerate(tensors))},
            bytearray(b"abc"),
            torch.eye(2).to_sparse(),
        ]
    )


def saved(rng: random.Random, state: Any) -> tuple[bytes, bool]:
    """The file, and whether it is of the protocol that torch reads with ``weights_only=True``."""
    file = io.BytesIO()
    zipped, protocol = rng.random() < 0.6, rng.choice([2, 2, 2, 3, 4, 5])
    torch.save(state, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return file.getvalue(), protocol == 2


def torch_reads(data: bytes, weights_only: bool = True) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=weights_only)


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's elements in their order."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    if not plain.numel():
        return b""
    if plain.element_size() == 16:
        plain = torch.view_as_real(plain)
    plain = plain.view(INTS[plain.element_size()]).contiguous()
    return plain.numpy().tobytes()


def read(data: bytes) -> tuple[Any, dict[CheckpointTensor, bytes]]:
    """What the reader makes of a file: the root, and the bytes of each tensor."""
    source = BytesSource(data)
    checkpoint = read_checkpoint(source)
    found: dict[CheckpointTensor, bytes] = {}
    queue, seen = [checkpoint.root], set()
    while queue:
        value = queue.pop()
        if isinstance(value, CheckpointTensor):
            if value not in found:
                found[value] = b"".join(map(bytes, tensor_pieces(checkpoint, source, value)))
        elif id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, list | tuple):
                queue += value
            elif isinstance(value, Pairs):
                queue += children(value)
    return checkpoint.root, found


def compare(mine: Any, theirs: Any, data: dict[CheckpointTensor, bytes], depth: int = 0) -> None:
    """Fail unless two values are the same, as far as the first is not inert."""
    if isinstance(mine, Call | Global) or depth > 50:
        return
    if isinstance(mine, CheckpointTensor):
        assert isinstance(theirs, torch.Tensor), type(theirs)
        assert mine.shape == tuple(theirs.shape)
        assert f"torch.{mine.dtype}" == str(theirs.dtype)
        assert data[mine] == raw(theirs), mine
    elif isinstance(mine, Pairs):
        assert type(theirs).__name__ == mine.kind
        pairs = list(mine.items())
        assert len(pairs) == len(theirs)
        for (key, value), (other_key, other_value) in zip(pairs, theirs.items(), strict=True):
            compare(key, other_key, data, depth + 1)
            compare(value, other_value, data, depth + 1)
    elif isinstance(mine, Items):
        assert type(theirs).__name__ == mine.kind
    elif isinstance(mine, list | tuple):
        assert isinstance(theirs, list if isinstance(mine, list) else tuple)
        assert len(mine) == len(theirs)
        for one, another in zip(mine, theirs, strict=True):
            compare(one, another, data, depth + 1)
    elif not hasattr(mine, "nbytes"):  # a bare storage
        assert type(mine) is type(theirs), (mine, theirs)
        assert repr(mine) == repr(theirs)


def check_whole(rng: random.Random) -> bytes:
    """Write a file and compare what torch and the reader make of it."""
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls some of its types experimental
                state = values_of(rng)
                data, plain = saved(rng, state)
            break
        except RuntimeError as error:
            # Torch does not save one memory under two types.
            if "view the same data as different types" not in str(error):
                raise
    root, found = read(data)
    compare(root, state, found)
    try:
        theirs = torch_reads(data, weights_only=plain)
    except (pickle.UnpicklingError, AttributeError) as error:  # NumPy, and the like
        reason_of(error)
    else:
        compare(root, theirs, found)
    return data


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A damaged or forged file. In an archive the pickle is changed, and the sums are made good."""
    if data.startswith(b"PK") and rng.random() < 0.8:
        target = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, "w") as new:
            for entry in old.infolist():
                content = old.read(entry)
                if entry.filename.endswith("/data.pkl"):
                    content = damaged(rng, content)
                elif rng.random() < 0.05:
                    content = content[: rng.randint(0, len(content))]
                new.writestr(entry.filename, content)
        return target.getvalue()
    return damaged(rng, data)


def damaged(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del changed[at : at + rng.choice([1, 1, 2, 8, 64])]
        elif kind == 2:
            changed[at:at] = rng.randbytes(rng.choice([1, 2, 4]))
        elif kind == 3:
            other_at, size = rng.randrange(len(changed) + 1), rng.choice([1, 2, 8, 40])
            changed[at:at] = changed[other_at : other_at + size]
        elif kind == 4:
            changed[at : at + 1] = rng.choice(OPCODES)
        else:
            numbers = [match.start() for match in re.finditer(rb"[KM]", changed)]
            if numbers:
                changed[rng.choice(numbers) + 1 :][:1] = bytes([rng.randrange(9)])
                place = rng.choice(numbers) + 1
                changed[place : place + 1] = bytes([rng.randrange(9)])
    return bytes(changed)


OPCODES = [bytes([code]) for code in b"(0aeshtqruRQbc}])N\x80\x81\x85\x86\x87\x88\x89."]


def reason_of(error: Exception) -> str:
    """Which of the reasons an error of torch is; an AssertionError if none."""
    for reason in REASONS:
        if re.search(reason, str(error), re.DOTALL):
            return reason
    raise AssertionError(f"torch refuses: {type(error).__name__}: {error}"[:600]) from error


def has_calls(root: Any) -> bool:
    """Whether something stays undone, of which torch may find that it cannot be done."""
    queue, seen = [root], set()
    while queue:
        value = queue.pop()
        if isinstance(value, Call):
            return True
        if id(value) not in seen:
            seen.add(id(value))
            queue += children(value)
    return False


def check_mutated(rng: random.Random, data: bytes) -> str:
    """Read a damaged file; what became of it: refused, same, or the reason why torch refuses."""
    try:
        root, found = read(data)
    except FormatError:
        return "refused"
    try:
        theirs = torch_reads(data)
    except Exception as error:
        return "a call stays undone" if has_calls(root) else reason_of(error)
    compare(root, theirs, found)
    return "same"


def run(count: int, seed: int, *, verbose: bool = False) -> Counter[str]:
    """Compare so many files, half of them damaged; what became of them."""
    results: Counter[str] = Counter()
    begin = time.monotonic()
    for number in range(count // 2):
        rng = random.Random(f"{seed}.{number}")
        try:
            data = check_whole(rng)
            results["whole"] += 1
            results[check_mutated(rng, mutated(rng, data))] += 1
        except Exception as error:
            error.add_note(f"seed {seed}.{number}")
            raise
        if verbose and number % 5000 == 4999:
            print(2 * number + 2, f"{time.monotonic() - begin:.0f} s", flush=True)
    return results


if __name__ == "__main__":
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    for name, times in run(total, int(([*sys.argv, "", ""])[2] or 0), verbose=True).most_common():
        print(f"{times:8} {name}")
