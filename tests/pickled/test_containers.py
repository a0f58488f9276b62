"""The three containers, and the bytes of tensors that lie in another order."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from mlstate.errors import FormatError
from mlstate.pickled import (
    BytesSource,
    FileSource,
    gather,
    is_contiguous,
    read_checkpoint,
    select_tensors,
    tensor_pieces,
)
from mlstate.pickled.zip_directory import read_directory
from tests.pickled.crafted import state, storage, tar, tensor, zipped
from tests.pickled.differential import raw, read

DATA = struct.pack("<4f", 1, 2, 3, 4)
GOOD = state(tensor(storage(4), (2, 2), (2, 1)))


def saved(content: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def refused(data: bytes, match: str) -> FormatError:
    with pytest.raises(FormatError, match=match) as caught:
        read(data)
    return caught.value


# Zip


def archive(entries: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as target, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in entries.items():
            target.writestr(name.removesuffix("*"), data)
    return file.getvalue()


def test_the_byte_order_is_little_or_the_file_is_refused():
    read(zipped(GOOD, {"0": DATA}, byteorder=b"little"))
    for order in (b"big", b"", b"middle", b"l" * 100):
        refused(zipped(GOOD, {"0": DATA}, byteorder=order), "little-endian|byteorder")


def test_archives_that_torch_does_not_write_are_refused():
    entries = {"a/data.pkl": GOOD, "a/data/0": DATA}
    read(archive(entries))
    refused(archive(entries, zipfile.ZIP_DEFLATED), "compressed")
    refused(archive({**entries, "a/data/0*": DATA}), "two entries have one name")
    refused(archive({**entries, "a/DATA.PKL": GOOD}), "two entries have one name")
    refused(archive({**entries, "a/constants.pkl": b""}), "TorchScript")
    refused(archive({"a/other.pkl": GOOD, "a/data/0": DATA}), "no data.pkl")
    refused(archive({"b/x": b"", **entries}), "no data.pkl")
    refused(archive({}), "not a checkpoint")
    refused(archive(entries) + b"\0", "follows its directory")
    refused(b"PK\3\4" + bytes(30), "directory is missing")


def changed(data: bytes, signature: bytes, at: int, value: bytes, number: int = 0) -> bytes:
    """The file with other bytes at a place in the header that begins with a signature."""
    place = -1
    for _ in range(number + 1):
        place = data.index(signature, place + 1)
    return data[: place + at] + value + data[place + at + len(value) :]


def test_directories_that_could_be_read_in_two_ways_are_refused():
    data = archive({"a/data.pkl": GOOD, "a/data/0": DATA})
    central, local, end = b"PK\1\2", b"PK\3\4", b"PK\5\6"
    for place, value, match in (
        (8, b"\x01\x00", "encrypted"),
        (20, struct.pack("<2I", 2**31, 2**31), "larger than the file"),
        (20, struct.pack("<2I", 8, 16), "compressed"),
        (42, struct.pack("<I", 0), "overlap"),
        (42, struct.pack("<I", 2**31), "larger than the file"),
        (38, b"\x10", "as a folder"),
        (28, b"\xff\xff", "ends too early"),
        (46, b"\xff", "no text"),
    ):
        refused(changed(data, central, place, value, 1), match)
    for place, value, match in (
        (26, b"\x01", "another's"),
        (30, b"b", "another name"),
        (28, b"\xff\xff", "overlap"),
        (8, b"\x08", "another's"),
    ):
        refused(changed(data, local, place, value, 1), match)
    for place, value, match in (
        (4, b"\x01", "several parts"),
        (8, b"\x01", "several parts"),
        (8, b"\x01\0\x01\0", "another size"),
        (8, b"\x03\0\x03\0", "ends too early"),
        (12, b"\0", "elsewhere"),
        (16, b"\0", "elsewhere"),
        (20, b"\x01", "follows"),
    ):
        refused(changed(data, end, place, value), match)


def test_archives_of_64_bits(tmp_path):
    path = tmp_path / "large.pth"
    with zipfile.ZipFile(path, "w") as target:
        with target.open("a/data.pkl", "w", force_zip64=True) as file:
            file.write(GOOD)
        with target.open("a/data/0", "w", force_zip64=True) as file:
            file.write(DATA)
    root, found = read(path.read_bytes())
    assert found[root.get("w")] == DATA
    count = 70_000  # more than 16 bits
    more = {f"a/x/{i}": b"" for i in range(count)}
    data = archive({"a/data.pkl": GOOD, "a/data/0": DATA, **more})
    assert len(read_directory(BytesSource(data))) == count + 2
    at = data.rindex(b"PK\6\6")
    refused(data[: at + 48] + b"\1" + data[at + 49 :], "two directories")


def test_an_archive_without_sums_is_read(monkeypatch):
    content = {"w": torch.ones(3)}
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        data = saved(content)
    finally:
        torch.serialization.set_crc32_options(before)
    root, found = read(data)
    assert found[root.get("w")] == raw(content["w"])


def test_a_damaged_pickle_is_noticed_by_its_sum():
    data = saved({"weight": torch.ones(3)})
    refused(data.replace(b"weight", b"height", 1), "damaged")


# Tar


def tarred(**changes: object) -> bytes:
    """A checkpoint as torch 0.1 wrote it."""
    kind = b"ctorch\nFloatStorage\n"
    parts: dict[str, object] = {
        "count": 1, "elements": 4, "data": DATA, "views": [(9, 7, 1, 2)], "storage": 7,
        "tensors": 2, "shape": (2, 2), "strides": (2, 1), "offset": 0, "name": "storages",
    }  # fmt: skip
    parts |= changes
    storages = pickle.dumps(parts["count"], 2) + b"\x80\x02K\x07X\x03\0\0\0cpu" + kind + b"\x87."
    storages += struct.pack("<q", parts["elements"]) + parts["data"]
    storages += pickle.dumps(parts["views"], 2)
    tensors = pickle.dumps(parts["tensors"], 2)
    for key, place, shape, strides in (
        (1, parts["storage"], parts["shape"], parts["strides"]),
        (2, 9, (2,), (1,)),
    ):
        tensors += (
            b"\x80\x02K" + bytes([key]) + b"K" + bytes([place]) + b"ctorch\nFloatTensor\n\x87."
        )
        tensors += struct.pack("<i4x", len(shape))
        tensors += struct.pack(f"<{2 * len(shape)}q", *shape, *strides)
        tensors += struct.pack("<q", parts["offset"] if key == 1 else 0)
    saved_ids = b"\x80\x02}(X\x01\0\0\0aX\x01\0\0\x001QX\x01\0\0\0bX\x01\0\0\x002Qu."
    members = {parts["name"]: storages, "tensors": tensors, "pickle": saved_ids}
    return tar(members)


def test_a_tar_archive_is_read_as_torch_reads_it(tmp_path):
    path = tmp_path / "old.pth"
    path.write_bytes(tarred())
    theirs = torch.load(path, weights_only=False)
    root, found = read(path.read_bytes())
    assert [key for key, _ in root.items()] == ["a", "b"] == [*theirs]
    for name, value in theirs.items():
        assert root.get(name).shape == tuple(value.shape)
        assert found[root.get(name)] == raw(value)
    assert theirs["b"].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"count": 10**9}, "too many storages"),
        ({"count": -1}, "number of storages"),
        ({"count": 0}, "no torch writes"),
        ({"elements": 5}, "pickle|list of parts|opcode|ends too early"),
        ({"elements": 2**60}, "ends too early"),
        ({"elements": -1}, "size of a storage"),
        ({"views": [(9, 7, 1, 4)]}, "larger than the storage"),
        ({"views": [(9, 8, 1, 2)]}, "that it lacks"),
        ({"views": [(7, 7, 1, 2)]}, "a key twice"),
        ({"views": 3}, "list of parts"),
        ({"storage": 3}, "without a storage"),
        ({"tensors": 3}, "ends too early"),
        ({"tensors": 1}, "no tensor"),
        ({"shape": (3, 2)}, "larger than its storage"),
        ({"strides": (-1, 1)}, "stride"),
        ({"offset": 1}, "larger than its storage"),
        ({"shape": (10**6, 10**4), "strides": (0, 0)}, "repeats"),
        ({"shape": (1,) * 65, "strides": (1,) * 65}, "dimensions"),
        ({"name": "../storages"}, "no checkpoint"),
    ],
)
def test_a_tar_archive_that_lies_is_refused(changes, match):
    refused(tarred(**changes), match)


def test_a_cut_tar_archive_is_refused():
    whole = tarred()
    end = whole.rindex(b"Qu.")
    for length in range(0, end, 7):
        with pytest.raises(FormatError):
            read(whole[:length])


# Bytes in another order


@pytest.mark.parametrize("block", [16 << 20, 64, 8])
@pytest.mark.parametrize("window", [32 << 20, 256, 16])
def test_tensors_in_any_order_and_in_small_windows(monkeypatch, block, window):
    monkeypatch.setattr(gather, "_BLOCK", block)
    monkeypatch.setattr(gather, "_WINDOW", window)
    base = torch.arange(2 * 3 * 5 * 7, dtype=torch.float32).reshape(2, 3, 5, 7)
    state_dict = {
        "transposed": base.permute(3, 1, 0, 2),
        "steps": base[:, ::2, 1::3, ::4],
        "expanded": base[:, :1].expand(2, 4, 5, 7),
        "one": base[1, 2, 3, 4],
        "row": base[1, :, 2, 3],
        "repeated": base[0, 0, 0, 1].expand(9),
        "windows": base.flatten()[:200].unfold(0, 10, 3),
        "double": base.double().permute(2, 0, 3, 1),
        "complex": torch.complex(base.double(), -base.double()).permute(2, 0, 3, 1),
        "conj": torch.complex(base, -base).permute(2, 0, 3, 1).conj(),
        "half": base.half().permute(2, 0, 3, 1),
        "byte": base.to(torch.uint8).permute(2, 0, 3, 1),
    }
    for value in state_dict.values():
        root, found = read(saved({"w": value}))
        assert found[root.get("w")] == raw(value)


def test_memory_does_not_grow_with_a_tensor(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"plain": torch.zeros(6000, 5000), "turned": torch.zeros(5000, 6000).T}, path)
    with path.open("rb") as file:
        source = FileSource(file)
        checkpoint = read_checkpoint(source)
        tensors = select_tensors(checkpoint.root, source.size)
        assert [is_contiguous(tensor) for tensor in tensors.values()] == [True, False]
        for tensor_ in tensors.values():
            tracemalloc.start()
            try:
                size = sum(map(len, tensor_pieces(checkpoint, source, tensor_)))
                assert tracemalloc.get_traced_memory()[1] < 64 << 20
            finally:
                tracemalloc.stop()
            assert size == 120_000_000


def test_a_file_that_becomes_shorter_is_noticed(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"w": torch.zeros(1000)}, path)
    with path.open("rb") as file:
        source = FileSource(file)
        checkpoint = read_checkpoint(source)
        with Path(path).open("r+b") as other:
            other.truncate(1000)
        with pytest.raises(FormatError, match="shorter"):
            list(tensor_pieces(checkpoint, source, checkpoint.root.get("w")))
