"""Checkpoints written by hand, with what torch.save would never write."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from typing import Any

TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
HOOKS = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(count: int, key: str = "0", kind: str = "FloatStorage", more: bytes = b"") -> bytes:
    """A storage, for the zip format; with N or a view as ``more`` for the legacy one."""
    return (
        b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu")
        + number(count) + more + b"tQ"
    )  # fmt: skip


def tensor(
    stored: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0
) -> bytes:
    return (
        TENSOR
        + b"("
        + stored
        + number(offset)
        + numbers(shape)
        + numbers(strides)
        + b"\x89"
        + (HOOKS + b"tR")
    )


def state(value: bytes) -> bytes:
    """The pickle of a state dict with one entry, w."""
    return b"\x80\x02}" + text("w") + value + b"s."


def zipped(content: bytes, storages: dict[str, bytes] | None = None, **more: bytes) -> bytes:
    """A file in the zip format with this pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for name, data in more.items():
            archive.writestr(f"archive/{name}", data)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


def legacy(content: bytes, keys: Any, storages: list[tuple[int, bytes]]) -> bytes:
    """A file in the legacy format: the pickle, the list of storages, and these."""
    info = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    front = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, info)]
    data = [struct.pack("<q", count) + data for count, data in storages]
    return b"".join([*front, content, pickle.dumps(keys, 2), *data])


def tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()
