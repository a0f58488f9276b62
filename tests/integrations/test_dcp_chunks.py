"""Checkpoints of DCP whose tensors are split in any way, and documents that are no index."""

from __future__ import annotations

import io
import json
import pickle
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from mlstate import LocalStateStore, MemoryStateStore, verify
from mlstate.errors import FormatError, IncompatibleStateError
from mlstate.format.tensor_object import TensorSpec
from mlstate.integrations.dcp import MlstateReader, MlstateWriter
from mlstate.tensors.dcp_index import (
    INDEX_NAME,
    ChunkBox,
    ChunkedTensor,
    DcpIndex,
    is_plain_value,
)
from tests.support.dcp import ALONE, STEP, cause, chunked, load_all, load_into
from tests.support.distributed import grid

pytestmark = pytest.mark.filterwarnings(ALONE)

SPLIT = {
    "version": 1,
    "bytes": [],
    "paths": {},
    "tensors": {"a": {"dtype": "F32", "shape": [4], "chunks": [[0, 2], [2, 2]]}},
    "values": {"step": 1},
}
HALVES = {"a[0:2]": torch.ones(2), "a[2:4]": torch.zeros(2)}


@st.composite
def splits(draw: st.DrawFn) -> tuple[torch.Tensor, list[Any]]:
    """A tensor, and boxes that are all of it."""
    shape = draw(st.lists(st.integers(0, 7), max_size=3))
    cuts = [draw(st.lists(st.integers(1, 6), max_size=2)) for _ in shape]
    count = int(torch.Size(shape).numel())
    boxes = grid(shape, cuts) or [((0,) * len(shape), tuple(shape))]  # of an empty one
    return torch.arange(float(count)).reshape(shape), boxes


class Region(dcp.DefaultLoadPlanner):
    """Loads one region of one tensor."""

    def __init__(self, size: torch.Size) -> None:
        super().__init__()
        self.target = torch.full(size, -1.0)

    def resolve_tensor(self, read_item: Any) -> torch.Tensor:
        part = self.target
        for at, (offset, size) in enumerate(
            zip(read_item.dest_offsets, read_item.lengths, strict=True)
        ):
            part = part.narrow(at, offset, size)
        return part


@settings(max_examples=60)
@given(splits(), st.data())
def test_any_region_of_any_split_is_read(split, data):
    tensor, boxes = split
    store = MemoryStateStore()
    metadata, results = chunked(store, {"a": tensor}, {"a": boxes})
    MlstateWriter(store, STEP).finish(metadata, [results])
    assert torch.equal(load_all(MlstateReader(store, STEP))["a"], tensor)

    low = [data.draw(st.integers(0, max(0, size - 1))) for size in tensor.shape]
    size = [
        data.draw(st.integers(1, most - at)) if most else 0
        for at, most in zip(low, tensor.shape, strict=True)
    ]
    reader = MlstateReader(store, STEP)
    said = reader.read_metadata()
    reader.set_up_storage_reader(said, True)
    wanted = [ChunkStorageMetadata(torch.Size(low), torch.Size(size))]
    items = create_read_items_for_chunk_list("a", said.state_dict_metadata["a"], wanted)
    (plan,) = reader.prepare_global_plan([reader.prepare_local_plan(LoadPlan(items))])
    planner = Region(torch.Size(size))
    reader.read_data(plan, planner).wait()
    expected = tensor[tuple(slice(a, a + b) for a, b in zip(low, size, strict=True))]
    assert torch.equal(planner.target, expected)


def test_the_digest_goes_by_the_split():
    digests = set()
    for boxes in ([((0,), (4,))], [((0,), (2,)), ((2,), (2,))]):
        store = MemoryStateStore()
        metadata, results = chunked(store, {"a": torch.ones(4)}, {"a": boxes})
        MlstateWriter(store, STEP).finish(metadata, [results])
        assert [*store.load_state_dict(STEP)] == (["a"] if len(boxes) == 1 else [*HALVES])
        digests.add(store.digest(STEP))
    assert len(digests) == 2


def test_a_tensor_of_another_shape_is_refused_by_the_reader():
    store = MemoryStateStore()
    metadata, results = chunked(store, {"a": torch.ones(4)}, {"a": [((0,), (4,))]})
    MlstateWriter(store, STEP).finish(metadata, [results])
    reader = MlstateReader(store, STEP)
    said = reader.read_metadata()
    reader.set_up_storage_reader(said, True)
    wanted = [ChunkStorageMetadata(torch.Size([0]), torch.Size([4]))]
    items = create_read_items_for_chunk_list("a", said.state_dict_metadata["a"], wanted)

    class Wrong(dcp.DefaultLoadPlanner):
        def resolve_tensor(self, read_item: Any) -> torch.Tensor:
            return torch.zeros(3)

    with pytest.raises(IncompatibleStateError):
        reader.read_data(reader.prepare_local_plan(LoadPlan(items)), Wrong())


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
NAMES = st.text(max_size=12)


@st.composite
def indexes(draw: st.DrawFn) -> DcpIndex:
    names = draw(st.lists(NAMES, unique=True, max_size=6))
    tensors, values, pickled = {}, {}, set()
    for name in names:
        match draw(st.integers(0, 2)):
            case 0:
                tensor, boxes = draw(splits())
                chunks = tuple(ChunkBox(*box) for box in boxes)
                tensors[name] = ChunkedTensor("F32", tuple(tensor.shape), chunks)
            case 1:
                lists = st.one_of(st.lists(VALUES, max_size=3), st.tuples(VALUES, VALUES))
                values[name] = draw(st.one_of(VALUES, lists))
            case 2:
                pickled.add(name)
    keys = st.one_of(NAMES, st.integers(0, 9))
    paths = {name: tuple(draw(st.lists(keys, min_size=1, max_size=3))) for name in names}
    return DcpIndex(tensors, values, frozenset(pickled), paths)


@given(indexes())
def test_an_index_has_one_text_and_comes_back(index):
    try:
        index.check_names()
    except FormatError:  # a name such as a[0:2] may be drawn
        return
    again = DcpIndex.parse(index.encode())
    assert again == index
    assert repr(sorted(again.values.items())) == repr(sorted(index.values.items()))  # 1 is not True
    assert all(map(is_plain_value, again.values.values()))


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(data):
    with pytest.raises(FormatError):
        DcpIndex.parse(data)


def changed(**fields: Any) -> bytes:
    said = json.loads(json.dumps(SPLIT)) | fields
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def tensor(**fields: Any) -> bytes:
    return changed(tensors={"a": {**SPLIT["tensors"]["a"], **fields}})


HOSTILE = {
    "nothing": b"",
    "a list": b"[]",
    "a pickle": pickle.dumps(SPLIT),
    "spaces": json.dumps(SPLIT, sort_keys=True).encode(),
    "another order": json.dumps(SPLIT, separators=(",", ":")).encode(),
    "a name twice": changed().replace(b'"step":1', b'"step":1,"step":1'),
    "nesting": b'{"bytes":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "a newer version": changed(version=2),
    "no version": changed(version=None),
    "true as a version": changed(version=True),
    "another field": changed(more=1),
    "overlap": tensor(chunks=[[0, 3], [2, 2]]),
    "a gap": tensor(chunks=[[0, 2]]),
    "beyond": tensor(chunks=[[0, 2], [2, 3]]),
    "the same twice": tensor(chunks=[[0, 2], [0, 2], [2, 2]]),
    "negative": tensor(chunks=[[0, 5], [5, -1]]),
    "fractions": tensor(chunks=[[0, 2.0], [2, 2]]),
    "other dimensions": tensor(chunks=[[0, 0, 2, 1], [2, 0, 2, 1]]),
    "no chunks": tensor(chunks=[]),
    "chunks of text": tensor(chunks="all"),
    "what goes without saying": tensor(chunks=[[0, 4]]),
    "a huge shape": tensor(shape=[2**64], chunks=[[0, 2**64]]),
    "an unknown type": tensor(dtype="F33"),
    "a type of torch": tensor(dtype="float32"),
    "a value with a type": changed(values={"step": {"__reduce__": ["os.system", "true"]}}),
    "nested values": changed(values={"step": [[1]]}),
    "a large number": changed(values={"step": 2**64}),
    "not a number": changed().replace(b'"step":1', b'"step":NaN'),
    "a path of no name": changed(paths={"b": ["b"]}),
    "an empty path": changed(paths={"a": []}),
    "a long list": changed(paths={"a": ["a", 10**9]}),
    "a name of both": changed(values={"a": 1}),
    "bytes that are no names": changed(bytes=[1]),
    "the name of a chunk": changed(bytes=["a[0:2]"]),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_document_that_is_no_index_is_refused(store, data):
    with pytest.raises(FormatError):
        DcpIndex.parse(data)
    store.save_state_dict(HALVES, STEP, files={INDEX_NAME: data})
    with pytest.raises(FormatError) as caught:
        MlstateReader(store, STEP).read_metadata()
    assert caught.value.path
    with pytest.raises(CheckpointException):
        load_into({"a": torch.ones(4)}, MlstateReader(store, STEP))


def test_the_index_of_these_tests_is_one(store):
    store.save_state_dict(HALVES, STEP, files={INDEX_NAME: changed()})
    found = load_all(MlstateReader(store, STEP))
    assert (found["a"].tolist(), found["step"]) == ([1, 1, 0, 0], 1)
    assert verify(store).ok


@pytest.mark.parametrize(
    "tensors",
    [
        {"a[0:2]": torch.ones(2)},
        {**HALVES, "b": torch.ones(2)},
        {**HALVES, "a[2:4]": torch.ones(3)},
        {**HALVES, "a[2:4]": torch.ones(2, dtype=torch.float64)},
    ],
    ids=["lacks one", "has another", "another shape", "another type"],
)
def test_an_index_that_does_not_fit_its_state_is_refused(store, tensors):
    store.save_state_dict(tensors, STEP, files={INDEX_NAME: changed()})
    with pytest.raises(FormatError) as caught:
        MlstateReader(store, STEP).read_metadata()
    assert caught.value.tensor


def test_an_index_names_bytes_that_are_bytes():
    index = DcpIndex({}, pickled=frozenset({"b"}))
    index.check_fits({"b": TensorSpec("U8", (3,))})
    for specs in ({}, {"b": TensorSpec("F32", (3,))}, {"b": TensorSpec("U8", (3, 1))}):
        with pytest.raises(FormatError):
            index.check_fits(specs)


def test_bytes_that_would_run_something_do_not(tmp_path):
    """Neither by weights_only=True, nor by torch's planner, which loads without."""
    ran = tmp_path / "ran"
    for data in (pickle.dumps(Touch(ran)), zipped_pickle(Touch(ran))):
        store = LocalStateStore(tmp_path / str(len(data)))
        said = changed(tensors={}, values={}, bytes=["thing"])
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        store.save_state_dict({"thing": raw}, STEP, files={INDEX_NAME: said})
        with pytest.raises(CheckpointException) as caught:
            load_all(MlstateReader(store, STEP))
        error = cause(caught.value)
        assert isinstance(error, FormatError)
        assert error.tensor == "thing"
        assert not ran.exists()


class Touch:
    """A pickle that makes a file when it is read by ``pickle``."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (type(self.path).touch, (self.path,))


def zipped_pickle(value: Any) -> bytes:
    data = io.BytesIO()
    torch.save(value, data)
    return data.getvalue()


def test_such_bytes_do_run_where_torch_reads_them_alone(tmp_path):
    """So the test before this one would see it."""
    torch.load(io.BytesIO(zipped_pickle(Touch(tmp_path / "ran"))), weights_only=False)
    assert (tmp_path / "ran").exists()


def test_the_kinds_of_items_are_those_that_are_known():
    assert {one.name for one in LoadItemType} == {"TENSOR", "BYTE_IO"}
    assert MetadataIndex("a", (0,)) == MetadataIndex("a", torch.Size([0]), 3)
