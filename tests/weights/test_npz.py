"""Archives of NumPy arrays: what NumPy wrote is the state of these arrays, and nothing runs."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

from mlstate import MemoryStateStore, StateKey, adopt, diff, file_digest, state_digest
from mlstate.errors import FormatError
from mlstate.pickled import gather, gzipped

KEY = StateKey.parse("pytorch.net.a")
SAVES = pytest.mark.parametrize("save", [numpy.savez, numpy.savez_compressed])


def adopted(path: Path, **options: Any) -> dict[str, Any]:
    store = MemoryStateStore()
    adopt(path, KEY, store, **options)
    return store.load_state_dict(KEY, framework="numpy")


def refused(path: Path | str, match: str, **options: Any) -> FormatError:
    store = MemoryStateStore()
    with pytest.raises(FormatError, match=match) as caught:
        adopt(path, KEY, store, **options)
    assert store.get_state_keys() == []
    return caught.value


def digest_of(arrays: dict[str, Any]) -> str:
    """The digest of the same arrays, given to `save_state_dict`."""
    store = MemoryStateStore()
    return store.digest(store.save_state_dict(arrays, KEY))


DTYPES = ["b1", "i1", "u1", "i2", "u2", "f2", "i4", "u4", "f4", "i8", "u8", "f8", "c8"]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_array_of_numbers_is_what_save_state_dict_makes_of_it(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    arrays = {}
    for name in ("a", "layer/b.c"):
        shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
        kind = data.draw(st.sampled_from("<>")) + data.draw(st.sampled_from(DTYPES))
        count = int(numpy.prod(shape))
        array = numpy.arange(-1, count - 1).reshape(shape).astype(kind)
        arrays[name] = numpy.asarray(array, order=data.draw(st.sampled_from("CF")))
    data.draw(st.sampled_from([numpy.savez, numpy.savez_compressed]))(path, **arrays)
    assert file_digest(path) == digest_of(arrays)
    found = adopted(path)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        assert numpy.array_equal(found[name], array)


@SAVES
@pytest.mark.parametrize("kind", ["<f8", ">f8", ">c8"])
def test_arrays_of_several_blocks_in_any_order(tmp_path, save, kind, monkeypatch):
    monkeypatch.setattr(gather, "_BLOCK", 1 << 12)
    monkeypatch.setattr(gather, "_WINDOW", 1 << 13)
    arrays = {
        "rows": numpy.random.default_rng(1).normal(size=(130, 70)).astype(kind),
        "columns": numpy.asfortranarray(numpy.arange(9100.0).reshape(70, 130).astype(kind)),
    }
    save(tmp_path / "x.npz", **arrays)
    assert file_digest(tmp_path / "x.npz") == digest_of(arrays)
    torch.save({name: torch.from_numpy(a.astype(a.dtype.newbyteorder("="))) for name, a in
                arrays.items()}, tmp_path / "x.pth")  # fmt: skip
    assert diff(tmp_path / "x.npz", tmp_path / "x.pth").same_weights


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_header(tmp_path, version):
    file = io.BytesIO()
    npy.write_array(file, numpy.arange(3.0), version=version)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", file.getvalue())
    assert adopted(tmp_path / "x.npz")["a"].tolist() == [0, 1, 2]


UNFIT = {
    "objects": (numpy.array([{}], dtype=object), "never unpickled"),
    "texts": (numpy.array(["a"]), "an array of texts"),
    "bytes": (numpy.array([b"a"]), "byte strings"),
    "records": (numpy.zeros(2, dtype=[("a", "f4")]), "an array of records"),
    "dates": (numpy.array(["2020-01-01"], "M8[D]"), "an array of dates"),
    "durations": (numpy.zeros(1, "m8[s]"), "durations"),
    "raw": (numpy.zeros(2, "V2"), "as NumPy stores bfloat16"),
    "long": (numpy.ones(2, numpy.longdouble), "f16"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_is_no_array_of_numbers_is_refused_by_name_or_passed_over(tmp_path, name):
    array, found = UNFIT[name]
    numpy.savez(tmp_path / "x.npz", allow_pickle=True, w=numpy.ones(2), **{name: array})
    error = refused(tmp_path / "x.npz", "is no tensor")
    assert error.tensor == name
    assert found in str(error.found)
    assert str(error.remedy).startswith("tensors_only=True")
    store = MemoryStateStore()
    report = adopt(tmp_path / "x.npz", KEY, store, tensors_only=True)
    assert report.passed_over == (name,)
    assert report.digest == digest_of({"w": numpy.ones(2)})


def test_a_dtype_that_the_format_has_not_is_refused_by_name(tmp_path):
    numpy.savez(tmp_path / "x.npz", w=numpy.ones(2, "c16"))
    error = refused(tmp_path / "x.npz", "no such element type")
    assert (error.tensor, error.found) == ("w", "torch.complex128")


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_nothing_is_unpickled(tmp_path):
    mark = tmp_path / "it-ran"
    path = tmp_path / "x.npz"
    numpy.savez(path, allow_pickle=True, w=numpy.ones(2), evil=numpy.array([_Evil(mark)]))
    refused(path, "is no tensor")
    assert adopted(path, tensors_only=True).keys() == {"w"}
    with zipfile.ZipFile(path, "a") as archive:  # a bare pickle, and one in the place of a header
        archive.writestr("data.pkl", pickle.dumps(_Evil(mark)))
    assert adopted(path, tensors_only=True).keys() == {"w"}
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b.npy", pickle.dumps(_Evil(mark)))
    refused(path, "damaged archive of arrays", tensors_only=True)
    assert not mark.exists()
    with numpy.load(path, allow_pickle=True) as loaded:
        loaded["evil"]
    assert mark.exists()  # so it would have run


def header(text: str, version: int = 1) -> bytes:
    data = text.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(data)) + data


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (header(GOOD) + bytes(4), "another size than it claims"),
        (header(GOOD) + bytes(12), "another size than it claims"),
        (header(GOOD.replace("(2,)", f"({2**62}, {2**62})")) + bytes(8), "another size"),
        (header(GOOD.replace("(2,)", f"({2**64},)")) + bytes(8), "no whole number"),
        (header(GOOD.replace("(2,)", "(-2,)")) + bytes(8), "no whole number"),
        (header(GOOD.replace("(2,)", "(True, 2)")) + bytes(8), "no whole number"),
        (header(GOOD.replace("(2,)", "[2]")) + bytes(8), "without order or shape"),
        (header(GOOD.replace("(2,)", "(" + "1, " * 65 + ")")) + bytes(4), "too many dimensions"),
        (header(GOOD.replace("False", "0")) + bytes(8), "without order or shape"),
        (header(GOOD.replace("'descr'", "'dtype'")) + bytes(8), "describes no array"),
        (header("__import__('os').system('false')") + bytes(8), "describes no array"),
        (header("(" * 9000) + bytes(8), "describes no array"),
        (header(GOOD.replace("<f4", "<f4\\d")) + bytes(8), "describes no array"),
        (header("-" * 9000 + "1") + bytes(8), "describes no array"),
        (header(" " * 10_001) + bytes(8), "header is too long"),
        (header(GOOD)[:20], "ends within its header"),
        (header(GOOD, version=4) + bytes(8), "without the header of an array"),
        (b"", "without the header of an array"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, data, match):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("w.npy", data)
    assert refused(tmp_path / "x.npz", match).tensor == "w"


def test_two_arrays_of_one_name_are_refused(tmp_path):
    numpy.savez(tmp_path / "x.npz", w=numpy.ones(2))
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("w", b"x")
    refused(tmp_path / "x.npz", "two arrays of one name", tensors_only=True)


@SAVES
def test_one_that_is_cut_or_damaged_is_refused(tmp_path, save):
    path = tmp_path / "x.npz"
    save(path, w=numpy.arange(40.0))
    data = path.read_bytes()
    for size in range(30, len(data), 17):
        path.write_bytes(data[:size])
        refused(path, "damaged")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        middle = archive.infolist()[0].compress_size // 2 + 60
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :])
    refused(path, "damaged")


def test_a_bomb_is_refused_before_the_disk_is_spent(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    numpy.savez_compressed(path, w=numpy.zeros(1 << 20))
    assert adopted(path)["w"].shape == (1 << 20,)
    refused(path, "larger than it may be when decompressed", max_size="1MB")
    monkeypatch.setattr(gzipped, "_SMALL", 1 << 10)
    size = path.stat().st_size
    error = refused(path, "larger than it may be when decompressed")
    assert error.expected == f"at most {100 * size} bytes"
    assert adopted(path, max_size="10MB")["w"].shape == (1 << 20,)


def test_a_directory_that_lies_about_a_size_does_not_spend_the_disk(tmp_path):
    path = tmp_path / "x.npz"
    numpy.savez_compressed(path, w=numpy.zeros(1 << 20))
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2") + 24
    assert struct.unpack_from("<I", data, at) == ((8 << 20) + 128,)
    struct.pack_into("<I", data, at, 1000)
    path.write_bytes(data)
    tracemalloc.start()
    error = refused(path, "an entry of this archive is damaged")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert str(error.found).startswith("more")


def test_a_folder_gives_it_where_there_is_nothing_else(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    numpy.savez(tmp_path / "w.npz", w=numpy.ones(2))
    store = MemoryStateStore()
    assert adopt(tmp_path, KEY, store).taken == ("config.json", "w.npz")
    numpy.savez(tmp_path / "v.npz", w=numpy.ones(2))
    assert refused(tmp_path, "several files of weights").found == "v.npz, w.npz"
    torch.save({"head": torch.ones(2)}, tmp_path / "head.pth")
    report = adopt(tmp_path, KEY, store, overwrite=True)
    assert (report.taken, report.skipped) == (("config.json", "head.pth"), ("v.npz", "w.npz"))
    assert adopted(tmp_path, weights="v.npz").keys() == {"w"}


def test_names_are_translated_and_nothing_is_selected(tmp_path):
    numpy.savez(tmp_path / "x.npz", **{"module.w": numpy.ones(2)})
    store = MemoryStateStore()
    assert adopt(tmp_path / "x.npz", KEY, store).prefix == "module."
    assert adopted(tmp_path / "x.npz", strip_prefix="module.", add_prefix="a.").keys() == {"a.w"}
    refused(tmp_path / "x.npz", "nothing inside that could be selected", select="w")
    with pytest.raises(FormatError, match="an archive of arrays has nothing inside"):
        file_digest(tmp_path / "x.npz", select="w")


def test_elsewhere_and_as_a_mirror_it_is_refused_with_the_way_out(tmp_path, start_nginx, hub_only):
    site = tmp_path / "site"
    site.mkdir()
    numpy.savez(site / "x.npz", w=numpy.ones(2))
    server = start_nginx(site)
    error = refused(server.url("x.npz"), "adopted from this machine only")
    assert error.remedy == "download it, and give its path"
    said = refused(site / "x.npz", "no file of weights", format="torch")
    assert said.remedy == "give its path on this machine, and no format"
    assert adopted(site / "x.npz").keys() == {"w"}
    hub_only.add("org/model", site)
    error = refused("hf://org/model", "adopted from this machine only")
    assert error.remedy == "download it, and give its path"
    with pytest.raises(FormatError, match="can be no mirror"):
        adopt(site / "x.npz", KEY, tmp_path / "m.toml", mirror=True)
    assert not (tmp_path / "m.toml").exists()


def test_the_remedy_for_a_single_array_helps(tmp_path):
    numpy.save(tmp_path / "x.npy", numpy.ones(3))
    error = refused(tmp_path / "x.npy", "no file of weights")
    assert "by saving it with numpy.savez into a .npz" in str(error.remedy)
    numpy.savez(tmp_path / "weights.npz", weight=numpy.load(tmp_path / "x.npy"))
    assert adopted(tmp_path / "weights.npz")["weight"].tolist() == [1, 1, 1]


def test_neither_numpy_nor_torch_is_needed(tmp_path):
    numpy.savez_compressed(tmp_path / "x.npz", w=numpy.ones(2, ">f4"))
    code = (
        "import sys, mlstate; from mlstate import file_digest\n"
        f"print(file_digest({str(tmp_path / 'x.npz')!r}))\n"
        "assert not {'torch', 'numpy'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == state_digest({"w": torch.ones(2)})
