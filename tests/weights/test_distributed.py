"""Distributed checkpoints: what torch wrote is read as torch reads it, and nothing runs."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.distributed.checkpoint import metadata as meta
from torch.distributed.checkpoint.filesystem import SerializationFormat

from mlstate import MemoryStateStore, StateKey, adopt, diff, file_digest, state_digest
from mlstate.errors import FormatError
from mlstate.pickled import caps
from tests.pickled.crafted import zipped
from tests.pickled.test_attacks import calls
from tests.support.distributed import (
    grid,
    metadata_of,
    save_distributed,
    write_chunks,
)
from tests.support.models import net, same

KEY = StateKey.parse("pytorch.net.a")
STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


def adopted(path: Path, **options: Any) -> dict[str, torch.Tensor]:
    store = MemoryStateStore()
    adopt(path, KEY, store, **options)
    return store.load_state_dict(KEY)


def refused(path: Path | str, match: str, **options: Any) -> FormatError:
    store = MemoryStateStore()
    with pytest.raises(FormatError, match=match) as caught:
        adopt(path, KEY, store, **options)
    assert store.get_state_keys() == []
    return caught.value


ODD = {
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "scalar": torch.tensor(1.5),
    "empty": torch.zeros(0, 3),
    "bool": torch.tensor([True, False]),
    "complex": torch.tensor([1 + 2j]),
    "eighth": torch.ones(4).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("options", [{}, {"single_file_per_rank": False}, {"thread_count": 2}])
def test_what_torch_saves_is_the_same_state(tmp_path, options):
    state = {**net(1).state_dict(), **ODD}
    folder = save_distributed(state, tmp_path / "ck", **options)
    assert file_digest(folder) == state_digest(state)
    assert file_digest(folder / ".metadata") == state_digest(state)
    assert same(adopted(folder), {name: tensor.contiguous() for name, tensor in state.items()})
    torch.save(state, tmp_path / "x.pth")
    found = diff(folder, tmp_path / "x.pth")
    assert found.same_weights


def test_what_is_nested_is_chosen_as_in_other_checkpoints(tmp_path):
    ema = {name: tensor + 1 for name, tensor in STATE.items()}
    one = save_distributed({"model": STATE, "epoch": 3}, tmp_path / "one")
    store = MemoryStateStore()
    report = adopt(one, KEY, store)
    assert (report.select, report.taken) == ("model", ("__0_0.distcp",))
    assert report.digest == state_digest(STATE)
    two = save_distributed({"model": STATE, "deep": {"ema": ema}}, tmp_path / "two")
    assert refused(two, "no tensor").remedy == "select the state dict inside: model, deep.ema"
    assert file_digest(two, select="deep.ema") == state_digest(ema)
    both = adopted(two, select=["model", "deep.ema"], rename={"weight": "w"})
    assert both.keys() == {"model.w", "model.bias", "deep.ema.w", "deep.ema.bias"}
    assert adopted(two, select="model", strip_prefix="we", add_prefix="x.").keys() == {
        "x.ight",
        "x.bias",
    }
    assert refused(two, "nothing where select leads", select="other").expected == "other"


def test_what_is_no_tensor_is_refused_or_passed_over(tmp_path):
    folder = save_distributed({**STATE, "epoch": 3, "none": None}, tmp_path / "ck")
    error = refused(folder, "no tensor")
    assert error.tensor == "epoch"
    assert str(error.remedy).startswith("tensors_only=True")
    store = MemoryStateStore()
    report = adopt(folder, KEY, store, tensors_only=True)
    assert report.passed_over == ("epoch", "none")
    assert report.digest == state_digest(STATE)


def test_a_state_of_a_training_gives_its_model(tmp_path):
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4)).sum().backward()
    optimizer.step()
    training = {"model": model.state_dict(), "optim": optimizer.state_dict()}
    folder = save_distributed(training, tmp_path / "ck")
    assert "model" in str(refused(folder, "no tensor").remedy)
    assert file_digest(folder, select="model") == state_digest(model.state_dict())
    moments = optimizer.state_dict()["state"][0]
    assert file_digest(folder, select="optim.state.0") == state_digest(moments)


SHAPES = st.lists(st.integers(0, 5), min_size=0, max_size=4).map(tuple)
DTYPES = st.sampled_from([torch.float32, torch.int16, torch.bool, torch.complex64, torch.bfloat16])


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_split_in_any_way_it_is_what_torch_loads(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("ck")
    tensors, boxes = {}, {}
    for name in ("a", "b"):
        shape = data.draw(SHAPES)
        count = int(torch.Size(shape).numel())
        values = torch.arange(count).reshape(shape)
        tensors[name] = values.to(data.draw(DTYPES)) if count else values
        cuts = [data.draw(st.lists(st.integers(1, 4), max_size=3)) for _ in shape]
        boxes[name] = data.draw(st.permutations(grid(shape, cuts)))
    write_chunks(folder, tensors, boxes, ranks=data.draw(st.integers(1, 3)))
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(found, checkpoint_id=folder)
    assert same(found, tensors)  # torch itself reads what was split here
    assert file_digest(folder) == state_digest(tensors)
    assert same(adopted(folder), tensors)


def test_large_tensors_that_are_split_by_rows_or_columns(tmp_path):
    tensors = {"rows": torch.randn(600, 700), "columns": torch.randn(700, 600)}
    boxes = {
        "rows": grid((600, 700), [[150, 300], []]),
        "columns": grid((700, 600), [[], [100, 599]]),
    }
    write_chunks(tmp_path / "ck", tensors, boxes, ranks=3)
    assert file_digest(tmp_path / "ck") == state_digest(tensors)
    torch.save(tensors, tmp_path / "x.pth")
    found = diff(tmp_path / "ck", tmp_path / "x.pth")
    assert found.equal == ("columns", "rows")
    tensors["columns"][3, 4] += 1
    torch.save(tensors, tmp_path / "x.pth")
    found = diff(tmp_path / "ck", tmp_path / "x.pth")
    assert [change.name for change in found.changed] == ["columns"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """One tensor, w, of 4 by 4, in four chunks on two ranks."""
    write_chunks(
        tmp_path / "ck",
        {"w": torch.arange(16.0).reshape(4, 4)},
        {"w": grid((4, 4), [[2], [1]])},
    )
    return tmp_path / "ck"


def test_a_folder_that_lacks_a_file_is_refused_by_its_name(folder):
    assert adopted(folder).keys() == {"w"}
    for name in ("__1_0.distcp", "__0_0.distcp"):
        (folder / name).unlink()
        error = refused(folder, "some shards of this model are missing")
        assert name in str(error.found)


def test_a_folder_without_metadata_is_refused(folder):
    (folder / ".metadata").rename(folder / "__0.metadata")
    error = refused(folder, "lacks its .metadata")
    assert error.found == "__0.metadata"
    (folder / "__0.metadata").unlink()
    assert "a save that was stopped" in str(refused(folder, "lacks its .metadata").remedy)


def test_a_file_of_chunks_alone_is_no_model(folder):
    error = refused(folder / "__0_0.distcp", "a part of a distributed checkpoint")
    assert str(error.remedy).startswith("give its folder")
    with pytest.raises(FormatError, match="a part of a distributed checkpoint"):
        file_digest(folder / "__0_0.distcp")


def test_beside_other_weights_one_has_to_be_chosen(folder):
    (folder / "config.json").write_text("{}")
    torch.save({"epoch": 3}, folder / "meta.pt")  # as Lightning writes
    store = MemoryStateStore()
    report = adopt(folder, KEY, store)
    assert report.taken == ("__0_0.distcp", "__1_0.distcp", "config.json")
    assert report.skipped == ("meta.pt",)
    torch.save({"head": torch.ones(2)}, folder / "head.pth")
    error = refused(folder, "several files of weights")
    assert error.found == ".metadata, head.pth"
    assert adopted(folder, weights="head.pth").keys() == {"head"}
    assert adopted(folder, weights=".metadata").keys() == {"w"}


def test_another_programs_metadata_is_not_looked_at(tmp_path):
    torch.save(STATE, tmp_path / "x.pth")
    (tmp_path / ".metadata").write_text("{}")
    assert adopted(tmp_path).keys() == STATE.keys()


def test_on_the_hub_it_is_refused_with_the_way_out(folder, hub_only):
    hub_only.add("org/model", folder)
    for source in ("hf://org/model", "hf://org/model@main/.metadata"):
        error = refused(source, "adopted from this machine only")
        assert error.remedy == "download it, and give its path"
    error = refused("hf://org/model@main/__0_0.distcp", "is a part of a distributed checkpoint")
    assert error.remedy == "give its folder, on this machine"
    save_file(STATE, folder / "model.safetensors")
    hub_only.add("org/both", folder)
    report = adopt("hf://org/both", KEY, MemoryStateStore(), weights="model.safetensors")
    assert report.digest == state_digest(STATE)


def test_it_becomes_no_mirror(folder, tmp_path):
    with pytest.raises(FormatError, match="can be no mirror") as caught:
        adopt(folder, KEY, tmp_path / "m.toml", mirror=True)
    assert "export a safetensors file" in str(caught.value.remedy)
    assert not (tmp_path / "m.toml").exists()


def changed(folder: Path, change: Callable[[meta.Metadata], object]) -> Path:
    """The folder with another .metadata."""
    said = metadata_of(folder)
    change(said)
    (folder / ".metadata").write_bytes(pickle.dumps(said))
    return folder


def _chunks(said: meta.Metadata) -> list[Any]:
    described: Any = said.state_dict_metadata["w"]
    return described.chunks  # type: ignore[no-any-return]


LIES = {
    "a hole": (lambda said: _chunks(said).pop(), "overlap, or are not all"),
    "an overlap": (
        lambda said: _chunks(said).append(_chunks(said)[0]),
        "overlap, or are not all",
    ),
    "other chunks of the same size": (
        lambda said: setattr(_chunks(said)[3], "offsets", torch.Size((2, 0))),
        "overlap, or are not all",
    ),
    "no chunks": (lambda said: _chunks(said).clear(), "overlap, or are not all"),
    "a chunk that is nowhere": (
        lambda said: said.storage_data.pop(next(iter(said.storage_data))),
        "does not say where a chunk is",
    ),
    "another element type": (
        lambda said: setattr(said.state_dict_metadata["w"].properties, "dtype", torch.int32),
        "not what its .metadata says",
    ),
    "a place outside the folder": (
        lambda said: [setattr(i, "relative_path", "../x") for i in said.storage_data.values()],
        "a name of a file|not a plain relative path|\\.\\.",
    ),
    "bytes beyond the file": (
        lambda said: [setattr(i, "length", 1 << 40) for i in said.storage_data.values()],
        "names bytes that it does not hold",
    ),
    "a negative place": (
        lambda said: [setattr(i, "offset", -1) for i in said.storage_data.values()],
        "no whole number",
    ),
    "an extension": (
        lambda said: [
            setattr(i, "transform_descriptors", ["zstd"]) for i in said.storage_data.values()
        ],
        "through an extension",
    ),
    "another shape": (
        lambda said: setattr(said.state_dict_metadata["w"], "size", torch.Size((16,))),
        "other dimensions",
    ),
    "no tensors": (lambda said: setattr(said, "state_dict_metadata", None), "no state_dict_meta"),
    "contradicting keys": (
        lambda said: (
            said.state_dict_metadata.update({"x": meta.BytesStorageMetadata()}),
            said.planner_data.update({"w": ("a",), "x": ("a", "b")}),
        ),
        "contradict",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_metadata_that_lies_is_refused(folder, lie):
    change, match = LIES[lie]
    refused(changed(folder, change), match)


def test_chunks_of_other_bytes_are_refused(folder):
    place = next(iter(metadata_of(folder).storage_data.values()))
    path = folder / place.relative_path
    data = path.read_bytes()
    at = place.offset + data[place.offset :].index(torch.tensor([4.0]).numpy().tobytes())
    path.write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    refused(folder, "damaged")
    path.write_bytes(data[: place.offset + 10])
    refused(folder, "does not hold")


def test_one_that_was_written_as_safetensors_is_told(tmp_path):
    folder = save_distributed(
        {**STATE, "epoch": 1}, tmp_path / "ck", serialization_format=SerializationFormat.SAFETENSORS
    )
    error = refused(folder, "written as safetensors", tensors_only=True)
    assert "serialization_format" in str(error.remedy)


@pytest.mark.parametrize("way", calls(Path("mark")))
def test_nothing_in_it_ever_runs(tmp_path, way):
    mark = tmp_path / "it-ran"
    before = {*sys.modules}
    evil = calls(mark)[way]
    folder = save_distributed({**STATE, "epoch": 3}, tmp_path / "ck")
    real = (folder / ".metadata").read_bytes()
    # the whole .metadata, with or without the word that says which pickle this is
    for data in (b"\x80\x04" + evil, evil):
        (folder / ".metadata").write_bytes(data)
        refused(folder, ".", tensors_only=True)
    # before all else in it: a value that is dropped again
    (folder / ".metadata").write_bytes(real[:2] + evil.removesuffix(b".") + b"0" + real[11:])
    assert adopted(folder, tensors_only=True).keys() == STATE.keys()
    # a chunk, and an object beside the tensors
    (folder / ".metadata").write_bytes(real)
    said = metadata_of(folder)
    chunk = zipped(b"\x80\x02" + evil)
    for index, place in said.storage_data.items():
        path = folder / place.relative_path
        whole = path.read_bytes()
        path.write_bytes(whole + chunk)
        place.offset, place.length = len(whole), len(chunk)
        (folder / ".metadata").write_bytes(pickle.dumps(said))
        if index.fqn == "epoch":
            assert adopted(folder, tensors_only=True).keys() == STATE.keys()
        else:
            refused(folder, ".", tensors_only=True)
    assert not mark.exists()
    assert {name for name in {*sys.modules} - before if "subprocess" in name} == set()


def test_torch_itself_would_run_it(tmp_path):
    mark = tmp_path / "it-ran"
    folder = save_distributed(STATE, tmp_path / "ck")
    (folder / ".metadata").write_bytes(calls(mark)["REDUCE"])
    with pytest.raises(AttributeError):  # of the number that the system gives
        dcp.FileSystemReader(folder).read_metadata()
    assert mark.exists()


def test_a_bomb_of_a_metadata_is_refused(folder, monkeypatch):
    monkeypatch.setattr(caps, "MAX_OPCODES", 100)
    monkeypatch.setattr("mlstate.pickled.interpreter.MAX_OPCODES", 100)
    refused(folder, "too many opcodes")


def test_no_torch_is_needed(folder):
    code = (
        "import sys, mlstate; from mlstate import file_digest\n"
        f"print(file_digest({str(folder)!r})); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == state_digest({"w": torch.arange(16.0).reshape(4, 4)})
