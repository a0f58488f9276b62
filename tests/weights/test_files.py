"""`file_digest` and the tensors of files: the same digest as of a store, without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlstate import LocalStateStore, StateKey, file_digest, lock, state_digest
from mlstate.errors import FormatError, TransportError
from mlstate.weights.files import sources_of_file
from tests.support.models import net, values
from tests.support.planting import Victim, plant, time_limit


def test_sources_give_names_specs_and_bytes(tmp_path):
    state = {**values(net(0)), "large": torch.randn(700_000), "flags": torch.ones(3).bool()}
    save_file(state, tmp_path / "x.safetensors")
    torch.save(state, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        with sources_of_file(tmp_path / name) as sources:
            assert {source.name for source in sources} == {*state}
            for source in sources:
                with source.data() as data:
                    assert len(data) == source.spec.nbytes
                    raw = state[source.name].contiguous().view(-1).view(torch.uint8)
                    assert bytes(data) == bytes(raw.tolist())


def test_any_true_is_one(tmp_path):
    save_file({"x": torch.tensor([0, 1, 7, 0], dtype=torch.uint8)}, tmp_path / "x.safetensors")
    text = (tmp_path / "x.safetensors").read_bytes().replace(b'"U8"', b'"BOOL"')
    header = int.from_bytes(text[:8], "little") + 2
    (tmp_path / "x.safetensors").write_bytes(header.to_bytes(8, "little") + text[8:])
    expected = state_digest({"x": torch.tensor([False, True, True, False])})
    assert file_digest(tmp_path / "x.safetensors") == expected


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    state = values(net(0))
    save_file(state, tmp_path / "a.safetensors")
    for name, content in {
        "empty": b"",
        "text.txt": b"hello, world",
        "cut.safetensors": (tmp_path / "a.safetensors").read_bytes()[:-1],
        "x.pth": b"PK\x03\x04 no zip",
        "twice.index.json": json.dumps(
            {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
        ).encode(),
        "out.index.json": json.dumps({"weight_map": {"a": "../a.safetensors"}}).encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
    save_file(state, tmp_path / "b.safetensors")
    for name in ("empty", "text.txt", "cut.safetensors", "x.pth", "twice.index.json", "missing"):
        with pytest.raises(FormatError):
            file_digest(tmp_path / name)
    with pytest.raises(FormatError, match="not a valid name"):
        file_digest(tmp_path / "out.index.json")
    (tmp_path / "out.index.json").unlink()
    (tmp_path / "cut.safetensors").unlink()
    with pytest.raises(FormatError, match="several") as caught:
        file_digest(tmp_path)
    assert "a.safetensors, b.safetensors" in str(caught.value)


def test_a_length_that_looks_like_another_container(tmp_path):
    # 640 is 80 02 and 35,615 is 1f 8b: how a pickle and a gzip file begin.
    for length in (640, 0x8B1F):
        state = {"x": torch.zeros(2)}
        header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
        text = length.to_bytes(8, "little") + header.ljust(length) + bytes(8)
        (tmp_path / "file").write_bytes(text)
        assert file_digest(tmp_path / "file") == state_digest(state)


def test_a_safetensors_file_needs_no_torch_and_little_memory(tmp_path):
    save_file({"x": torch.zeros(50_000_000)}, tmp_path / "x.safetensors")
    code = """
import re, sys
from pathlib import Path
from mlstate import file_digest
digest = file_digest(sys.argv[1])
assert "torch" not in sys.modules
status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent's, too
print(digest, re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "x.safetensors")]
    root = Path(__file__).parents[2]
    output = subprocess.check_output(command, text=True, cwd=root, env={**os.environ})
    digest, kilobytes = output.split()
    assert digest == state_digest({"x": torch.zeros(50_000_000)})
    assert int(kilobytes) < 150_000  # of 200 MB


def test_a_state_object_is_refused_and_not_taken_for_its_small_tensors(tmp_path):
    store = LocalStateStore(tmp_path / "w")
    key = StateKey.parse("pytorch.net.one")
    store.save_state_dict({"large": torch.ones(10_000), "small": torch.ones(1)}, key)
    digest = store.digest(key)
    with pytest.raises(FormatError, match="this is a state object"):
        file_digest(tmp_path / "w" / "objects" / digest[:2] / digest[2:])


@pytest.mark.parametrize("kind", ["pipe", "zero", "socket", "loop"])
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model.safetensors", "a.pth"])
def test_weights_that_are_no_file_are_not_waited_for(tmp_path, kind, name):
    plant(kind, tmp_path / name, Victim(tmp_path / "home"))
    with time_limit(20), pytest.raises((TransportError, FormatError)):
        file_digest(tmp_path / name)
    (tmp_path / "folder").mkdir()
    plant(kind, tmp_path / "folder" / name, Victim(tmp_path / "home2"))
    with time_limit(20), pytest.raises((TransportError, FormatError)):
        file_digest(tmp_path / "folder")


def sharded(folder, *, total=None, extra=(), left_out=()):
    """Two shards with an index, which says more or less than is true."""
    names = {"a.safetensors": {"x": torch.ones(4), "y": torch.ones(2)}}
    names["b.safetensors"] = {"z": torch.zeros(3)}
    places = {name: shard for shard, tensors in names.items() for name in tensors}
    for shard, tensors in names.items():
        save_file({n: t for n, t in tensors.items() if n not in left_out}, folder / shard)
    index = {"weight_map": {**places, **dict.fromkeys(extra, "b.safetensors")}}
    if total is not None:
        index["metadata"] = {"total_size": total}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("how", ["digest", "pin"])
@pytest.mark.parametrize(
    ("says", "warning"),
    [
        ({}, None),
        ({"total": 36}, None),
        ({"total": 40}, "have 40 bytes, and they have 36"),
        ({"total": "36"}, None),
        ({"extra": ["w"]}, "there is 'w', which its shards do not have"),
        ({"left_out": ["y"], "total": 36}, "there is 'y'.* have 36 bytes, and they have 28"),
    ],
)
def test_what_an_index_says_of_its_shards_is_compared(tmp_path, how, says, warning):
    folder = sharded(tmp_path, **says)
    address = folder / "model.safetensors.index.json"
    (folder / "m.toml").write_text(
        f'version = 1\n[states."pytorch.net.a"]\nmirrors = ["{address}"]\n'
    )

    def take():
        return file_digest(folder) if how == "digest" else lock(folder / "m.toml")

    if warning is None:
        take()
    else:
        with pytest.warns(UserWarning, match=warning):
            take()
