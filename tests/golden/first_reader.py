"""The first reader of a store: a folder as format version 1 had it before anything was added.

It knows docs/format.md as it was then: `requires = []`, plain objects. No mlstate, no torch; only
BLAKE3 and the standard library. Usage: `python first_reader.py STORE KEY`. Prints a line for each
tensor: name, type, shape, and the digest of its data. A store that it does not know is refused, by
a line on stderr and exit status 1.
"""

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

from blake3 import blake3


def refuse(what: str) -> None:
    """End with a line that says why."""
    sys.exit(f"refused: {what}")


def settings_of(store: Path) -> None:
    """Refuse a store of another version, or one that asks for more of its readers."""
    settings = tomllib.loads((store / "mlstate.toml").read_text(encoding="utf-8"))
    if settings.get("version") != 1:
        refuse(f"version {settings.get('version')}")
    if settings.get("requires", []) != []:
        refuse(f"requires {settings['requires']}")


def verified(store: Path, digest: str) -> bytes:
    """Return an object's bytes, which are those of its name."""
    data = (store / "objects" / digest[:2] / digest[2:]).read_bytes()
    if blake3(data).hexdigest() != digest:
        refuse(f"damaged: {digest}")
    return data


def header_of(data: bytes) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, and where its data begins."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), 8 + length


def tensors_of(store: Path, key: str) -> dict[str, tuple[str, list[int], bytes]]:
    """Return the tensors of a state: name to type, shape and data."""
    backend, architecture, rest = key.split(".", 2)
    path = store / "states" / backend / architecture / f"{rest}.toml"
    state = tomllib.loads(path.read_text(encoding="utf-8"))["states"][key]
    data = verified(store, state["blake3"])
    header, start = header_of(data)
    refs = json.loads(header.pop("__metadata__")["tensors"])
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        found[name] = (entry["dtype"], entry["shape"], data[start + begin : start + end])
    for name, ref in refs.items():
        found[name] = (ref["dtype"], ref["shape"], verified(store, ref["blake3"])[4096:])
    return found


def main() -> None:
    """Print the tensors of a state."""
    store, key = Path(sys.argv[1]), sys.argv[2]
    settings_of(store)
    for name, (dtype, shape, data) in sorted(tensors_of(store, key).items()):
        print(name, dtype, shape, blake3(data).hexdigest())


if __name__ == "__main__":
    main()
