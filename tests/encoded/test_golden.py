"""The vectors of encoded objects, and a second decoder, which shares no code with the package."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate.digests import Digest
from mlstate.encoded import decode_verified, read_head
from mlstate.format.encoded_object import BLOCK
from mlstate.format.layout import encoded_path
from mlstate.format.state_object import TensorRef
from mlstate.format.tensor_object import BITS, TensorSpec
from mlstate.pickled.source import BytesSource
from tests.encoded.making import KINDS, digest_of, encoded, pair_of, spec_of

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT = (GOLDEN / "encoded.toml").read_text(encoding="utf-8")
VECTORS = {vector["name"]: vector for vector in tomllib.loads(TEXT)["vector"]}

_spec = importlib.util.spec_from_file_location("check_encoded", GOLDEN / "check_encoded.py")
plain = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plain)


def file_of(vector: dict) -> bytes:
    return b"".join(plain.literal(part, part.get("size", 0)) for part in vector["file"])


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_package_reads_every_vector(vector, threads):
    spec = TensorSpec(vector["dtype"], tuple(vector["shape"]))
    source = BytesSource(file_of(vector))
    base = plain.literal(vector["base"], spec.nbytes) if "base" in vector else None
    head = read_head(source, spec)
    assert head.depth == vector["depth"]
    assert head.base == vector.get("base", {}).get("blake3")
    out = bytearray(spec.nbytes)
    ref = TensorRef(spec, Digest(vector["blake3"]))
    decode_verified(source, ref, memoryview(out), base, threads=threads)
    assert Digest.of(out) == Digest.of(plain.literal(vector, spec.nbytes))


def test_the_vectors_have_every_width_and_kind():
    kinds = set()
    for vector in VECTORS.values():
        width = plain.WIDTHS[vector["dtype"]]
        file = file_of(vector)
        size = plain.size_of(vector["dtype"], vector["shape"])
        words = memoryview(file[-4 * width * -(-size // BLOCK) :]).cast("I")
        for number, word in enumerate(words):
            kind = word >> 30
            if kind == plain.PAIR and file[9] == 3 and number % width >= width - 2:
                kind = plain.SPARSE
            kinds.add((width, "base" in vector, kind, file[9]))
    for width in (1, 2, 4, 8):
        assert {kind[:2] for kind in kinds} >= {(width, True), (width, False)}
        assert (width, True, plain.SPARSE, 3) in kinds
    assert {kind[1:3] for kind in kinds} == {
        *((base, kind) for base in (True, False) for kind in range(4)),
        (True, plain.SPARSE),
    }
    assert {kind[1::2] for kind in kinds} == {(False, 1), (True, 1), (True, 3)}


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(list(BITS)),
    size=st.integers(0, 20_000),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
)
def test_the_second_decoder_reads_what_the_package_writes(dtype, size, kind, seed):
    spec = spec_of(dtype, size)
    data, base = pair_of(spec, kind, seed)
    digest = None if base is None else digest_of(spec, base)
    file = encoded(spec, data, base)
    assert plain.decode(file, dtype, list(spec.shape), base, digest) == data


@pytest.mark.parametrize("kind", ["near", "sparse"])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_the_second_decoder_reads_several_blocks(dtype, kind):
    spec = spec_of(dtype, BLOCK + 400)
    data, base = pair_of(spec, kind, 5)
    file = encoded(spec, data, base)
    found = plain.decode(file, dtype, list(spec.shape), base, digest_of(spec, base))
    assert Digest.of(found) == Digest.of(data)


def run_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(GOLDEN / "check_encoded.py"), *arguments]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_script_agrees_with_every_vector():
    done = run_check()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(VECTORS)} encoded objects, 0 with a difference\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('{data = "896d6c73656e630a0103', '{data = "896d6c73656e630a0102'),
        ('fill = "803f803e"', 'fill = "803f803f"'),
        ("depth = 8", "depth = 7"),
        ('{data = "896d6c73656e630a01', '{data = "896d6c73656e630a02'),
        ('base = {fill = "01a500"', 'base = {fill = "01a501"'),
        ("size = 8290", "size = 8291"),
    ],
)
def test_the_script_finds_a_difference(tmp_path, old, new):
    vector = next(vector for vector in TEXT.split("\n\n") if old in vector)
    for text, failed in ((vector, 0), (vector.replace(old, new), 1)):
        (tmp_path / "one.toml").write_text(text)
        done = run_check(str(tmp_path / "one.toml"))
        assert done.returncode == failed, done.stderr
        assert done.stdout == f"1 encoded objects, {failed} with a difference\n"


def test_the_place_of_an_encoded_object():
    digest = Digest("ab" + "c" * 62)
    assert encoded_path(digest) == f"encoded/ab/{'c' * 62}"
