"""Check the vectors of encoded objects on their own: no mlstate, no torch; BLAKE3, zstd, stdlib.

`decode` is a small reader of encoded objects, slow and in plain Python, which follows
docs/format.md and refuses what that says. Each file of encoded.toml is put together from its
literals and decoded; what comes out is compared, and hashed as the tensor object that it is.
Usage: `python check_encoded.py [encoded.toml]`. Prints every vector that fails, then exits 1.
"""

import json
import struct
import sys
import tomllib
from math import prod
from pathlib import Path
from typing import Any

from blake3 import blake3

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BLOCK = 1_048_576  # bytes of data: what is encoded together
RAW, CONSTANT, ZSTD, PAIR, SPARSE = range(5)  # in the index a sparse plane is a 3, as a pair is
DTYPES = {
    8: "F64 I64 U64",
    4: "F32 I32 U32 C64",  # a complex number is two floats
    2: "F16 BF16 I16 U16",
    1: "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ F4",
}
WIDTHS = {dtype: width for width, dtypes in DTYPES.items() for dtype in dtypes.split()}
BITS = {"F4": 4, "C64": 64}  # where they are not 8 times the width
Table = dict[str, Any]


def expect(what: str, found: object, wanted: object) -> None:
    """Raise ValueError unless both are equal."""
    if found != wanted:
        raise ValueError(f"{what}: {str(found)[:400]!a} instead of {str(wanted)[:400]!a}")


def decode(
    file: bytes, dtype: str, shape: list[int], base: bytes | None, base_digest: str | None
) -> bytes:
    """Return the data of the tensor that a file encodes; a ValueError if it does not."""
    width, size = WIDTHS[dtype], size_of(dtype, shape)
    head = struct.unpack("<8sBBBB4sQ8s32s", file[:64])
    expect("magic", head[0], b"\x89mlsenc\n")
    expect("version, width", (head[1], head[3]), (1, width))
    expect("method", head[2] in ((1, 3) if base_digest else (1,)), True)
    expect("depth", head[4] in (range(1, 9) if base_digest else [0]), True)
    expect("reserved", (head[5], head[7]), (bytes(4), bytes(8)))
    expect("size of the data", head[6], size)
    expect("base", head[8], bytes.fromhex(base_digest or "00" * 32))
    index = len(file) - 4 * width * -(-size // BLOCK)
    place, entry, data = 64, index, b""
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start) // width
        planes: list[bytes] = []
        for plane, (word,) in enumerate(struct.iter_unpack("<I", file[entry : entry + 4 * width])):
            kind, length = word >> 30, word & 0x3FFFFFFF
            if kind == PAIR and plane >= width - 2 and head[2] == 3:
                kind = SPARSE
            expect("end of the part", place + length <= index, True)
            planes += read_plane(kind, file[place : place + length], count)
            if kind == PAIR:
                expect("a plane of a pair", plane < width - 2, True)
            place += length
        expect("number of planes", len(planes), width)
        of_base = None if base is None else base[start : start + BLOCK]
        data += joined(planes, of_base, width)
        entry += 4 * width
    expect("end of the blocks", place, index)
    return data


def read_plane(kind: int, part: bytes, count: int) -> list[bytes]:
    """Return the planes that a part holds: one, both of a pair, or none."""
    if kind == PAIR:
        expect("length of a pair", len(part) in (0, 2 * count), True)
        return [part[::2], part[1::2]] if part else []
    if kind == CONSTANT:
        expect("length of a constant", len(part), 1)
        return [part * count]
    if kind == ZSTD:
        part = decompress(part, count)
    if kind == SPARSE:
        part = sparse(part, count)
    expect("length of a plane", len(part), count)
    return [part]


def sparse(frame: bytes, count: int) -> bytes:
    """Return the bytes of a plane that are 0 but for those that a frame lists."""
    size = content_size(frame)
    expect("even size of a list", size in range(2, count // 8 * 2 + 1, 2), True)
    listed, plane, place = decompress(frame, size), bytearray(count), -1
    for distance, value in zip(listed[: size // 2], listed[size // 2 :], strict=True):
        place += distance + 1
        expect("a place in the plane", place < count, True)
        plane[place] = value
    return bytes(plane)


def content_size(frame: bytes) -> int:
    """Return how many bytes a frame gives, after a look at its header."""
    expect("frame", (frame[:4], frame[4] & 0x3F), (b"\x28\xb5\x2f\xfd", 0x20))
    length = 1 << (frame[4] >> 6)
    return int.from_bytes(frame[5 : 5 + length], "little") + (256 if length == 2 else 0)


def decompress(frame: bytes, count: int) -> bytes:
    """Return the bytes of the one frame."""
    expect("content size of a frame", content_size(frame), count)
    reader = zstd.ZstdDecompressor()
    data = reader.decompress(frame)
    expect("end of a frame", (reader.eof, reader.unused_data), (True, b""))
    return data


def joined(planes: list[bytes], base: bytes | None, width: int) -> bytes:
    """Return the data of a block from its planes."""
    bits, data = 8 * width, bytearray()
    for place, digits in enumerate(zip(*planes, strict=True)):
        number = int.from_bytes(bytes(digits), "little")
        if base is not None:
            if width > 1 and digits[-2] > 127:  # a number with a sign: 256 less than without
                number -= 1 << (bits - 8)
            number += int.from_bytes(base[width * place : width * (place + 1)], "little")
        elif width > 1:  # rotate right by one
            number = number >> 1 | (number & 1) << (bits - 1)
        data += (number % (1 << bits)).to_bytes(width, "little")
    return bytes(data)


def size_of(dtype: str, shape: list[int]) -> int:
    """Return the bytes of data of a tensor."""
    return prod(shape) * BITS.get(dtype, 8 * WIDTHS[dtype]) // 8


def literal(table: Table, size: int) -> bytes:
    """Return the bytes that `data` lists, or `size` of those that `fill` gives when repeated."""
    if "fill" not in table:
        return bytes.fromhex(table["data"])
    pattern = bytes.fromhex(table["fill"])
    return (pattern * (size // len(pattern) + 1))[:size]


def tensor_object(dtype: str, shape: list[int], data: bytes) -> bytes:
    """Return the tensor object of some data."""
    entry = {"data_offsets": [0, len(data)], "dtype": dtype, "shape": shape}
    header = json.dumps({"tensor": entry}, sort_keys=True, separators=(",", ":"))
    return (4088).to_bytes(8, "little") + header.encode().ljust(4088) + data


def check(vector: Table) -> None:
    """Check one vector, raising an error at the first difference."""
    dtype, shape, base = vector["dtype"], vector["shape"], vector.get("base", {})
    size = size_of(dtype, shape)
    file = b"".join(literal(part, part.get("size", 0)) for part in vector["file"])
    expect("size of the file", len(file), vector["size"])
    of_base = literal(base, size) if base else None
    if of_base is not None:
        found = blake3(tensor_object(dtype, shape, of_base)).hexdigest()
        expect("digest of the base", found, base["blake3"])
    data = decode(file, dtype, shape, of_base, base.get("blake3"))
    expect("depth", file[11], vector["depth"])
    expect("data", data, literal(vector, size))
    found = blake3(tensor_object(dtype, shape, data)).hexdigest()
    expect("digest", found, vector["blake3"])


def main() -> int:
    """Check all vectors of the file and return the exit status."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("encoded.toml")
    vectors: list[Table] = tomllib.loads(path.read_text(encoding="utf-8"))["vector"]
    failed = 0
    for vector in vectors:
        try:
            check(vector)
        except (KeyError, ValueError, zstd.ZstdError) as error:
            failed += 1
            print(f"{vector['name']}: {error!r}", file=sys.stderr)
    print(f"{len(vectors)} encoded objects, {failed} with a difference")
    return int(failed > 0 or not vectors)


if __name__ == "__main__":
    sys.exit(main())
