"""Check the golden vectors on their own: no mlstate, no torch; only BLAKE3 and the stdlib.

Every object is put together from the literals of vectors.toml (header text, spaces, data), its
lengths and digest are compared, and each header is read as JSON and compared with the tensors.
Usage: `python check_vectors.py [vectors.toml]`. Prints every vector that fails, then exits 1.
"""

import json
import sys
import tomllib
from math import prod
from pathlib import Path
from typing import Any

from blake3 import blake3

INLINE_BELOW = 16_384  # bytes of data: a tensor with fewer is inline in the state object
DATA_START = 4096  # where the data of a tensor object starts
ALIGN = 64  # the data of a state object starts at the next multiple of this
DTYPES = {
    64: "F64 I64 U64 C64",
    32: "F32 I32 U32",
    16: "F16 BF16 I16 U16",
    8: "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    4: "F4",
}
BITS = {dtype: bits for bits, dtypes in DTYPES.items() for dtype in dtypes.split()}
Table = dict[str, Any]


def expect(what: str, found: object, wanted: object) -> None:
    """Raise ValueError unless both are equal."""
    if found != wanted:
        raise ValueError(f"{what}: {str(found)[:400]!a} instead of {str(wanted)[:400]!a}")


def canonical(value: object) -> str:
    """Return the canonical JSON of a value, by the format's own definition."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def expect_json(what: str, text: str, wanted: Table) -> None:
    """Check that a text says what is wanted, and that it says so in canonical JSON."""
    expect(what, json.loads(text), wanted)
    expect(f"{what}, as canonical JSON", text, canonical(wanted))


def content(what: str, table: Table, size: int) -> bytes:
    """Return the `size` bytes that `data` lists, or that `fill` gives when repeated and cut."""
    if "fill" in table:
        pattern = bytes.fromhex(table["fill"])
        return (pattern * (size // len(pattern) + 1))[:size]
    data = bytes.fromhex(table["data"])
    expect(f"length of {what}", len(data), size)
    return data


def assemble(header: str, header_length: int, data: bytes) -> bytes:
    """Return the file: the length of the padded header, the header, spaces, the data."""
    return header_length.to_bytes(8, "little") + header.encode().ljust(header_length) + data


def check(vector: Table) -> None:
    """Check one vector, raising an error at the first difference."""
    data: dict[str, bytes] = {}  # of each tensor
    kinds: dict[str, Table] = {}  # its dtype and shape, as they stand in a header
    for tensor in vector["tensors"]:
        name, dtype, shape = tensor["name"], tensor["dtype"], tensor["shape"]
        expect(f"bits of {name!a} beyond whole bytes", prod(shape) * BITS[dtype] % 8, 0)
        data[name] = content(ascii(name), tensor, prod(shape) * BITS[dtype] // 8)
        kinds[name] = {"dtype": dtype, "shape": shape}
    expect("number of distinct names", len(data), len(vector["tensors"]))

    # The tensor objects, and what the state object has to say about them.
    objects: dict[str, Table] = vector.get("objects", {})
    expect("names outside", set(objects), {n for n in data if len(data[n]) >= INLINE_BELOW})
    references = {}
    for name, entry in objects.items():
        header = {"tensor": kinds[name] | {"data_offsets": [0, len(data[name])]}}
        expect_json(f"object header of {name!a}", entry["header"], header)
        file = assemble(entry["header"], DATA_START - 8, data[name])
        expect(f"start of the data of {name!a}", len(file) - len(data[name]), DATA_START)
        expect(f"digest of {name!a}", entry["blake3"], blake3(file).hexdigest())
        references[name] = kinds[name] | {"blake3": entry["blake3"]}

    # The state object: the inline tensors, widest elements first, then by name.
    state: Table = vector["state_object"]
    header = {"__metadata__": {"mlstate": "1", "tensors": canonical(references)}}
    inline = b""
    for name in sorted(data.keys() - objects, key=lambda n: (-BITS[kinds[n]["dtype"]], n)):
        offsets = [len(inline), len(inline) + len(data[name])]
        header[name] = kinds[name] | {"data_offsets": offsets}
        inline += data[name]
    expect_json("header", state["header"], header)
    expect("inline data", content("inline data", state, len(inline)), inline)
    padding = -(8 + len(state["header"])) % ALIGN
    expect("header_length", state["header_length"], len(state["header"]) + padding)
    file = assemble(state["header"], state["header_length"], inline)
    expect("state_size", vector["state_size"], len(file))
    expect("state digest", vector["digest"], blake3(file).hexdigest())


def main() -> int:
    """Check all vectors of the file and return the exit status."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("vectors.toml")
    vectors: list[Table] = tomllib.loads(path.read_text(encoding="utf-8"))["vector"]
    failed = 0
    for vector in vectors:
        try:
            check(vector)
        except (KeyError, ValueError) as error:
            failed += 1
            print(f"{vector['name']}: {error!r}", file=sys.stderr)
    print(f"{len(vectors)} vectors, {failed} with a difference")
    return int(failed > 0 or not vectors)


if __name__ == "__main__":
    sys.exit(main())
