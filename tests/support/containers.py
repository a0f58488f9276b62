"""One file of every container, for the tests, and the table of docs/containers.md made of them.

``python -m tests.support.containers`` writes the table anew.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import save_file

from mlstate import MemoryStateStore, StateKey, adopt
from mlstate.errors import FormatError
from tests.support.distributed import grid, save_distributed, write_chunks

__all__ = ["CONTAINERS", "PAGE", "state", "table"]

PAGE = Path(__file__).parents[2] / "docs" / "containers.md"
BEGIN, END = "<!-- made by the tests -->\n", "<!-- end -->\n"


def state() -> dict[str, torch.Tensor]:
    """The tensors that every container is made of."""
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


def _saved(**options: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(state(), path, **options)


def _object(made: Callable[[], object], **options: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(made(), path, **options)


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: _wrote(path, content)


def _wrote(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _gzip(path: Path) -> None:
    plain = io.BytesIO()
    torch.save(state(), plain)
    path.write_bytes(gzip.compress(plain.getvalue()))


def _folder(name: str, *others: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for each in (name, *others):
            if each.endswith(".safetensors"):
                save_file(state(), path / each)
            else:
                torch.save(state(), path / each)

    return make


def _shards(path: Path, *, whole: bool = True) -> None:
    path.mkdir()
    places = {}
    for number, (name, tensor) in enumerate(state().items(), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        places[name] = shard
        if whole or number == 1:
            save_file({name: tensor}, path / shard)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def _scripted(path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))  # type: ignore[no-untyped-call]


def _zip(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"{}")
    return file.getvalue()


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("model/weights.pth")
        archive.addfile(member, io.BytesIO())


def _npz(path: Path, *, packed: bool = False, **more: Any) -> None:
    save: Any = numpy.savez_compressed if packed else numpy.savez
    save(path, **{name: tensor.numpy() for name, tensor in state().items()}, **more)


def _packed_again(path: Path, method: int = zipfile.ZIP_DEFLATED) -> None:
    plain = io.BytesIO()
    torch.save(state(), plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))


def _split(path: Path, *, whole: bool = True) -> None:
    """A distributed checkpoint of two ranks."""
    boxes = {"weight": grid((2, 3), [[1], []]), "bias": grid((2,), [[1]])}
    write_chunks(path, state(), boxes)
    if not whole:
        (path / "__1_0.distcp").unlink()


def _averaged(path: Path) -> None:
    from torch.optim.swa_utils import AveragedModel

    torch.save(AveragedModel(torch.nn.Linear(3, 2)).state_dict(), path)


_TRAINER = {"epoch": numpy.int64(3), "args": Path("x")}

CONTAINERS: tuple[tuple[str, str, Callable[[Path], None], dict[str, Any]], ...] = (
    ("a safetensors file", "x.safetensors", lambda path: save_file(state(), path), {}),
    ("shards of safetensors with their index", "folder", _shards, {}),
    ("shards, of which one is missing", "folder", lambda path: _shards(path, whole=False), {}),
    ("a folder with one file of weights, of any name", "folder", _folder("last.ckpt"), {}),
    (
        "a folder with `model.safetensors`, and beside it a `.bin`, a variant, an optimizer",
        "folder",
        _folder("model.safetensors", "pytorch_model.bin", "model.fp16.safetensors", "optimizer.pt"),
        {},
    ),
    ("a folder with several", "folder", _folder("ema.pt", "model.pth.tar"), {}),
    ("the same, with `weights=`", "folder", _folder("ema.pt", "m.pt"), {"weights": "ema.pt"}),
    ("what `torch.save` writes: a zip archive", "x.pth", _saved(), {}),
    (
        "what it wrote before 1.6: pickles",
        "x.pth",
        _saved(_use_new_zipfile_serialization=False),
        {},
    ),
    ("the same, compressed by gzip", "x.pth.gz", _gzip, {}),
    (
        "a trainer's checkpoint: a state dict, and objects of any class",
        "x.ckpt",
        _object(lambda: {"state_dict": state(), **_TRAINER}),
        {},
    ),
    (
        "one with several state dicts",
        "x.ckpt",
        _object(lambda: {"model": state(), "ema": {**state(), "bias": torch.zeros(2)}}),
        {},
    ),
    (
        'the same, with `select=["model"]`',
        "x.ckpt",
        _object(lambda: {"model": state(), "ema": {**state(), "bias": torch.zeros(2)}}),
        {"select": ["model"]},
    ),
    ("a state dict with numbers in it", "x.pth", _object(lambda: {**state(), "epoch": 3}), {}),
    (
        "the same, with `tensors_only=True`",
        "x.pth",
        _object(lambda: {**state(), "epoch": 3}),
        {"tensors_only": True},
    ),
    ("what `torch.save` wrote, packed again with compression", "x.pth", _packed_again, {}),
    (
        "the same, packed with bzip2",
        "x.pth",
        lambda path: _packed_again(path, zipfile.ZIP_BZIP2),
        {},
    ),
    (
        'an `AveragedModel`, with `strip_prefix="module."`',
        "x.pth",
        _averaged,
        {"strip_prefix": "module."},
    ),
    ("the folder of a distributed checkpoint (DCP)", "folder", _split, {}),
    ("one, of which a file is missing", "folder", lambda path: _split(path, whole=False), {}),
    (
        "one of a model, an optimizer and numbers",
        "folder",
        lambda path: save_distributed(
            {"model": state(), "optim": {"state": {"0": state()}}, "epoch": 3}, path
        ),
        {},
    ),
    (
        'the same, with `select="model"`',
        "folder",
        lambda path: save_distributed(
            {"model": state(), "optim": {"state": {"0": state()}}, "epoch": 3}, path
        ),
        {"select": "model"},
    ),
    ("a whole pickled model", "x.pth", _object(lambda: torch.nn.Linear(3, 2)), {}),
    ("TorchScript", "x.pt", _scripted, {}),
    ("torch.export", "x.pt2", _bytes(_zip("x/models/model.json", "x/archive_format")), {}),
    ("another zip archive", "x.pt", _bytes(_zip("config.json", "model.weights.h5")), {}),
    ("a tar archive", "x.tar", _tar, {}),
    ("a pickle of something else, joblib", "x.pkl", _bytes(pickle.dumps({"w": [1.0]}, 4)), {}),
    ("NumPy `.npz`", "x.npz", _npz, {}),
    ("the same, compressed", "x.npz", lambda path: _npz(path, packed=True), {}),
    (
        "one with texts, records or objects in it",
        "x.npz",
        lambda path: _npz(path, names=numpy.array(["a"])),
        {},
    ),
    (
        "the same, with `tensors_only=True`",
        "x.npz",
        lambda path: _npz(path, names=numpy.array(["a"])),
        {"tensors_only": True},
    ),
    ("NumPy `.npy`", "x.npy", lambda path: numpy.save(path, numpy.ones(3)), {}),
    ("GGUF", "x.gguf", _bytes(b"GGUF\3\0\0\0" + bytes(24)), {}),
    ("ONNX", "x.onnx", _bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.6.0" + bytes(24)), {}),
    ("HDF5 of Keras", "x.h5", _bytes(b"\x89HDF\r\n\x1a\n" + bytes(24)), {}),
    ("msgpack of Flax", "x.msgpack", _bytes(b"\x81\xa6params\x81\xa1w\xc7\x03\x01abc"), {}),
    (
        "a pointer of Git LFS",
        "x.safetensors",
        _bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        {},
    ),
    ("a web page in the place of a file", "x.pth", _bytes(b"<!DOCTYPE html>\n<html></html>"), {}),
    ("an empty file", "x.pth", _bytes(b""), {}),
)
"""What it is, the name of its file, what makes it, and the options for `adopt`."""


def outcome(place: Path, name: str, make: Callable[[Path], None], options: dict[str, Any]) -> str:
    """The two last cells of a row: what happens, and the way out."""
    make(place / name)
    store = MemoryStateStore()
    key = StateKey.parse("pytorch.t.one")
    try:
        report = adopt(place / name, key, store, **options)
    except FormatError as error:
        found = str(error.found or "").replace(str(place), "")
        why = error.message + (f": {found}" if found else "")
        return f"refused: {why} | {error.remedy or ''}".strip()
    assert {*store.load_state_dict(key)} == {*state()}, name
    said = ["taken"]
    if report.select:
        said.append(f"the report's `select` is `{report.select}`")
    if report.passed_over:
        said.append(f"its `passed_over` is `{', '.join(report.passed_over)}`")
    if report.skipped:
        said.append(f"its `skipped` is `{', '.join(report.skipped)}`")
    return "; ".join(said) + " | "


def table() -> str:
    """The table of the page."""
    rows = ["| what it is | what `adopt` does | the way out |", "|---|---|---|"]
    for what, name, make, options in CONTAINERS:
        with tempfile.TemporaryDirectory() as folder:
            cells = outcome(Path(folder), name, make, options)
        rows.append(f"| {what} | {cells} |".replace("  |", " |"))
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2])
