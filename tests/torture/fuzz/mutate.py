"""A fuzzer that needs nothing installed: inputs of the corpus, changed at random, by a seed.

    python -m tests.torture.fuzz.mutate --seed 1 --inputs 500

Prints how many inputs each target had and refused, and how many failed, as JSON; what failed is
written to a folder, by its digest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import struct
import sys
import time
import traceback
from pathlib import Path

from tests.torture.fuzz.check import Rules, try_input
from tests.torture.fuzz.targets import TARGETS

__all__ = ["CORPUS", "corpus_of", "mutated"]

CORPUS = Path(__file__).parents[1] / "corpus"
_MOST = 1 << 18
_WORDS = [
    *(b"\x00", b"\xff", b"\x80\x04", b"\n", b"\r\n", b"\t", b'"', b"'", b"\\", b"\xef\xbb\xbf"),
    *(b"[", b"]", b"{", b"}", b"[[", b"]]", b"a.a.a.a.", b" = ", b"= 1\n", b"0x", b"1e999", b"nan"),
    *(b"-1", b"9" * 30, b"18446744073709551616", b"true", b"null", b"1979-05-27T07:32:00Z"),
    *(b"__metadata__", b"mlstate", b"data_offsets", b"shape", b"dtype", b"F32", b"F4", b"C64"),
    *(b"version", b"states", b"blake3", b"size", b"mirrors", b"files", b"objects", b"../", b"/"),
    *(b"file:///etc/passwd", b"https://", b"hf://", b"s3://", b"@", b"%00", b"%2F", b"://", b"?"),
    *(b"machine ", b"default ", b"login ", b"password ", b"macdef x\n", b"# ", b"ssh-ed25519 "),
    *(b"cert-authority ", b'namespaces="', b'valid-after="20200101"', b"*", b"!", b"SSHSIG"),
    *(b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"ustar", b"\x1f\x8b\x08"),
    *(b"\x8a\xff", b"\x95" + b"\xff" * 8, b"(", b"t", b".", b"R", b"b", b"\x81", b"Q", b"cos\n"),
    *(b"\xe2\x80\xae", b"\x1b[2J", b"\xc2\x9b", b"\xed\xa0\x80", b"\xf0\x9f\x92\xa9"),
]
_NUMBER = re.compile(rb"\d+")
_Chance = random.Random


def corpus_of(target: str) -> list[bytes]:
    """The inputs to begin with."""
    return [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """An input, changed in a few ways."""
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        data = _changed(data, others, chance)
    return data[:_MOST]


def _changed(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    at, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    if chance.random() < 0.5:
        end = min(end, at + chance.randrange(1, 17))
    return chance.choice(_WAYS)(data[:at], data[at:end], data[end:], others, chance)


# Each is given what is before, in, and after a range that was chosen by chance.


def _flip(front: bytes, part: bytes, rest: bytes, others: list[bytes], chance: _Chance) -> bytes:
    changed = bytearray(part or b"\0")
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return front + changed + rest


def _noise(front: bytes, part: bytes, rest: bytes, others: list[bytes], chance: _Chance) -> bytes:
    return front + chance.randbytes(chance.choice((1, len(part), 8, 64))) + rest


def _remove(front: bytes, part: bytes, rest: bytes, others: list[bytes], chance: _Chance) -> bytes:
    return front + rest


def _repeat(front: bytes, part: bytes, rest: bytes, others: list[bytes], chance: _Chance) -> bytes:
    return front + part * chance.choice((2, 3, 50)) + rest


def _insert(front: bytes, part: bytes, rest: bytes, others: list[bytes], chance: _Chance) -> bytes:
    return front + chance.choice(_WORDS) * chance.choice((1, 1, 3, 300)) + part + rest


def _replace(front: bytes, part: bytes, rest: bytes, others: list[bytes], chance: _Chance) -> bytes:
    return front + chance.choice(_WORDS) + rest


def _splice(front: bytes, part: bytes, rest: bytes, others: list[bytes], chance: _Chance) -> bytes:
    other = chance.choice(others)
    return front + other[chance.randrange(len(other) + 1) :]


def _cut(front: bytes, part: bytes, rest: bytes, others: list[bytes], chance: _Chance) -> bytes:
    return front


def _binary(front: bytes, part: bytes, rest: bytes, others: list[bytes], chance: _Chance) -> bytes:
    form, bits = chance.choice((("<H", 16), ("<I", 32), (">I", 32), ("<Q", 64), (">Q", 64)))
    value = chance.choice((0, 1, (1 << bits) - 1, 1 << (bits - 1), chance.getrandbits(bits)))
    piece = struct.pack(form, value)
    return front + piece + (part + rest)[len(piece) :]


def _digits(front: bytes, part: bytes, rest: bytes, others: list[bytes], chance: _Chance) -> bytes:
    data = front + part + rest
    numbers = [*_NUMBER.finditer(data)]
    if not numbers:
        return rest + part + front
    found = chance.choice(numbers)
    value = chance.choice((b"0", b"-1", b"1" * 5000, b"4294967296", b"9223372036854775808"))
    return data[: found.start()] + value + data[found.end() :]


_WAYS = (_flip, _noise, _remove, _repeat, _insert, _replace, _splice, _cut, _binary, _digits)


def run(targets: list[str], seed: int, inputs: int, seconds: float, failures: Path) -> int:
    """Fuzz targets by turns; returns how many inputs failed."""
    rules, figures = Rules(), {target: {"inputs": 0, "refused": 0} for target in targets}
    begun, failed = time.monotonic(), 0
    corpora = {target: corpus_of(target) for target in targets}
    for number in range(inputs):
        if time.monotonic() - begun > seconds:
            break
        for target in targets:
            chance = random.Random(f"{target} {seed} {number}")
            corpus = corpora[target]
            # All of the corpus first, as it is.
            given = corpus[number] if number < len(corpus) else None
            data = given or mutated(chance.choice(corpus), corpus, chance)
            figures[target]["inputs"] += 1
            try:
                figures[target]["refused"] += try_input(target, data, rules)
            except BaseException:
                failed += 1
                failures.mkdir(parents=True, exist_ok=True)
                name = f"{target}-{hashlib.sha256(data).hexdigest()[:16]}"
                (failures / name).write_bytes(data)
                print(f"{target}: {failures / name}\n{traceback.format_exc()}", file=sys.stderr)
    print(json.dumps({"targets": figures, "failed": failed}))
    return failed


def main() -> None:
    """Fuzz, as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=1 << 60, help="for each target")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    given = parser.parse_args()
    failed = run(given.targets, given.seed, given.inputs, given.seconds, given.failures)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
