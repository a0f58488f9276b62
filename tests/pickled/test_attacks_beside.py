"""Attacks beside weights that are taken: nothing runs where they are passed over or left."""

from __future__ import annotations

import gzip
import pickle
import struct
import sys
from pathlib import Path

import pytest

from mlstate import MemoryStateStore, StateKey, adopt
from mlstate.errors import FormatError
from tests.pickled.crafted import legacy, storage, tar, tensor, text, zipped
from tests.pickled.test_attacks import calls

KEY = StateKey.parse("pytorch.t.one")
VALUES = struct.pack("<2f", 1, 2)
WAYS = list(calls(Path("mark")))
HEADS = {0: b"", 1: b"", **{version: b"\x80" + bytes([version]) for version in (2, 3, 4, 5)}}


def checkpoint(evil: bytes, shape: str, container: str, protocol: int) -> bytes:
    """A file with a tensor, w, and an attack beside it."""
    stored = tensor(storage(2, more=b"N" if container == "legacy" else b""), (2,), (1,))
    weights = b"}" + text("w") + stored + b"s"
    attack = text("evil") + evil.removesuffix(b".") + b"s"
    nested = b"}" + text("state") + weights + b"s" + attack + b"."
    content = HEADS[protocol] + (nested if shape == "nested" else weights + attack + b".")
    if container == "legacy":
        return legacy(content, ["0"], [(2, VALUES)])
    data = zipped(content, {"0": VALUES})
    return gzip.compress(data) if container == "gzip" else data


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("container", ["zip", "legacy", "gzip"])
@pytest.mark.parametrize("shape", ["nested", "flat"])
def test_what_lies_beside_the_weights_does_not_run(tmp_path, shape, container, protocol):
    mark = tmp_path / "it-ran"
    before = {*sys.modules}
    for way, evil in calls(mark).items():
        path = tmp_path / ("x.pt.gz" if container == "gzip" else "x.pt")
        path.write_bytes(checkpoint(evil, shape, container, protocol))
        if shape == "flat":
            with pytest.raises(FormatError, match="evil"):
                adopt(path, KEY, MemoryStateStore())
        for options in (
            ({"select": "state"}, {}) if shape == "nested" else ({"tensors_only": True},)
        ):
            store = MemoryStateStore()
            report = adopt(path, KEY, store, **options)
            assert store.load_state_dict(KEY)["w"].tolist() == [1, 2], way
            assert report.passed_over == (("evil",) if shape == "flat" else ())
            assert not mark.exists(), way
    assert {name for name in {*sys.modules} - before if "subprocess" in name} == set()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("member", ["storages", "tensors", "pickle"])
def test_nothing_runs_in_any_part_of_a_tar(tmp_path, way, member):
    mark = tmp_path / "it-ran"
    members = {"storages": pickle.dumps(0, 2) + pickle.dumps([], 2), "tensors": pickle.dumps(0, 2)}
    members |= {"pickle": pickle.dumps({}, 2), member: b"\x80\x04" + calls(mark)[way]}
    (tmp_path / "x.pt").write_bytes(tar(members))
    with pytest.raises(FormatError):
        adopt(tmp_path / "x.pt", KEY, MemoryStateStore())
    assert not mark.exists()


@pytest.mark.parametrize("way", WAYS)
def test_nothing_runs_in_the_parts_before_the_weights_of_a_legacy_file(tmp_path, way):
    mark = tmp_path / "it-ran"
    evil = b"\x80\x04" + calls(mark)[way]
    whole = legacy(pickle.dumps({}, 2), [], [])
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    for data in (evil, evil + whole, magic + evil, magic + pickle.dumps(1001, 2) + evil + whole):
        (tmp_path / "x.pt").write_bytes(data)
        with pytest.raises(FormatError):
            adopt(tmp_path / "x.pt", KEY, MemoryStateStore())
        assert not mark.exists()
