"""Torch checkpoints as mirrors: their sums come first, and nothing in them is ever run."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mlstate import Manifest, StateKey, state_digest
from mlstate.digests import Digest
from mlstate.errors import FetchError
from mlstate.fetch.plan import LARGE
from mlstate.locations import parse_mirror
from mlstate.manifests import StateEntry
from tests.support.fetching import check_cache, leftovers, manifest_store, publish
from tests.support.models import net, same, values

KEY = StateKey.parse("pytorch.net.a")
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(path: Path, content: object, *, zipped: bool = True, packed: bool = False) -> dict:
    """Write a checkpoint, compressed or not; gives what a mirror says of it."""
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes(), 1))
    return {"url": path.name, "format": "torch-gzip" if packed else "torch"}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def store_of(folder: Path, state: dict[str, torch.Tensor], *mirrors: Any, size: Any = True):
    nbytes = sum(tensor.nbytes for tensor in state.values()) if size is True else size
    parsed = tuple(parse_mirror(mirror) for mirror in mirrors)
    entry = StateEntry(KEY, Digest(state_digest(state)), nbytes, parsed)
    Manifest({KEY: entry}).write(folder / "manifest.toml")
    return manifest_store(folder / "manifest.toml", folder / "cache")


def check_fetched(store, state) -> None:
    store.fetch(KEY)
    assert same(store.load_state_dict(KEY), state)
    assert check_cache(store.objects.own.root) > 0
    assert leftovers(store.objects.own.root) == {}


def reason(store) -> str:
    with pytest.raises(FetchError) as caught:
        store.fetch(KEY)
    assert check_cache(store.objects.own.root) == 0
    assert leftovers(store.objects.own.root) == {}
    [(_, said)] = caught.value.attempts
    return said


def reason_of_pinning(store, mirror) -> str:
    """What is wrong with the mirror of a state without a digest."""
    with pytest.raises(FetchError) as caught:
        store.fetcher.pin(StateEntry(KEY, None, None, (parse_mirror(mirror),)))
    assert leftovers(store.objects.own.root) == {}
    [(_, said)] = caught.value.attempts
    return said


class Evil:
    """Unpickled without protection, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@FORMATS
@pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
@pytest.mark.parametrize("digits", [64, 8, 1])
def test_a_right_sum_is_accepted_whole_or_by_its_leading_digits(tmp_path, zipped, packed, digits):
    state = values(net(1))
    mirror = save(tmp_path / "net.pth", state, zipped=zipped, packed=packed)
    mirror["sha256"] = sha256(tmp_path / "net.pth")[:digits]
    check_fetched(store_of(tmp_path, state, mirror), state)


@FORMATS
@pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
@pytest.mark.parametrize("digits", [64, 8])
def test_a_wrong_sum_is_refused_before_anything_is_unpickled(
    tmp_path, recording_server, zipped, packed, digits
):
    made = tmp_path / "made by the pickle"
    recording_server.files = tmp_path
    evil = {"a": torch.ones(3), "b": Evil(made)}
    mirror = save(tmp_path / "net.pth", evil, zipped=zipped, packed=packed)
    mirror["url"] = f"{recording_server.url}/net.pth"
    mirror["sha256"] = hashlib.sha256(b"").hexdigest()[:digits]
    store = store_of(tmp_path, values(net(1)), mirror)
    if zipped and not packed:  # of a pinned state it is read by ranges, and its tensors compared
        assert "mkdir" in reason(store)
        assert not made.exists()
        said = reason_of_pinning(store, mirror)
    else:
        said = reason(store)
    assert "SHA-256" in said
    assert sha256(tmp_path / "net.pth") in said  # what it is instead
    assert not made.exists()
    if not packed:
        torch.load(tmp_path / "net.pth", weights_only=False)
        assert made.exists()  # it would have been


@FORMATS
@pytest.mark.parametrize("digits", [0, 64])
def test_what_is_more_than_tensors_is_refused_and_not_run(tmp_path, zipped, digits):
    made = tmp_path / "made by the pickle"
    mirror = save(tmp_path / "net.pth", {"a": torch.ones(3), "b": Evil(made)}, zipped=zipped)
    if digits:
        mirror["sha256"] = sha256(tmp_path / "net.pth")
    said = reason(store_of(tmp_path, {"a": torch.ones(3)}, mirror))
    assert "not a checkpoint of plain tensors; tensor: b" in said
    assert "mkdir" in said
    assert "weights_only" not in said  # no advice to switch the protection off
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "mirror", "said"),
    [
        ({"a": {"w": torch.ones(3)}, "b": {"w": torch.ones(3)}}, {}, "dict inside: a, b"),
        ({"model": {"w": torch.ones(3)}}, {"select": "modle"}, "select one of: model"),
        ([torch.ones(3)], {}, "holds no state dict"),
        ({"w": torch.ones(3), "epoch": 3}, {}, "no tensor"),
        ({"w": torch.ones(4)}, {}, "more than the state"),
        ({"w": torch.zeros(3)}, {}, "another state"),
        ({"v": torch.ones(3)}, {}, "another state"),
        ({"a.w": torch.ones(1), "w": torch.ones(1)}, {"strip_prefix": "a."}, "become one name"),
    ],
)
def test_what_is_not_the_state_is_refused_with_the_reason(tmp_path, content, mirror, said):
    mirror = save(tmp_path / "net.pth", content) | mirror
    assert said in reason(store_of(tmp_path, {"w": torch.ones(3)}, mirror))


@pytest.mark.parametrize("form", ["torch", "torch-gzip"])
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"<html>", b"\x80\x02}q\x00.", b"\x1f\x8b"]
)
def test_bytes_that_are_no_checkpoint_are_refused(tmp_path, content, form):
    (tmp_path / "net.pth").write_bytes(content)
    store = store_of(tmp_path, {"w": torch.ones(3)}, {"url": "net.pth", "format": form})
    assert reason(store)


def test_a_file_much_larger_than_the_state_is_not_even_read(tmp_path, recording_server):
    sparse = tmp_path / "net.pth"
    with sparse.open("wb") as file:
        file.truncate(3 << 30)
    recording_server.files["net.pth"] = sparse
    mirror = {"url": f"{recording_server.url}/net.pth", "format": "torch"}
    said = reason(store_of(tmp_path, {"w": torch.ones(3)}, mirror))
    assert "much larger" in said
    assert recording_server.bytes_sent < 1 << 20


def test_a_small_file_that_grows_without_bounds_is_refused(tmp_path):
    (tmp_path / "net.pth").write_bytes(gzip.compress(b"\0" * (64 << 20), 1))
    mirror = {"url": "net.pth", "format": "torch-gzip"}
    store = store_of(tmp_path, {"w": torch.ones(3)}, mirror, size=None)
    store.fetcher.max_size = 1 << 20
    assert "when decompressed" in reason(store)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_large_checkpoint_comes_in_segments_or_in_one_piece(tmp_path, start_recording, ranges):
    state = {"w": torch.arange(LARGE // 4 + 1_000.0), "b": torch.ones(3)}
    mirror = save(tmp_path / "net.pth", state)
    server = start_recording(tmp_path, ranges=ranges)
    mirror |= {"url": f"{server.url}/net.pth", "sha256": sha256(tmp_path / "net.pth")}
    check_fetched(store_of(tmp_path, state, mirror), state)
    size = (tmp_path / "net.pth").stat().st_size
    got = [record for record in server.requests if record.bytes_sent > 1]
    if ranges:
        # The front with the header of the large storage, the end with the directory and the small
        # storage, five segments.
        assert len(got) == 7
        assert server.bytes_sent < state["w"].nbytes + (52 << 10)
    else:
        assert got[-1].bytes_sent == size


def test_the_next_mirror_does_where_a_checkpoint_did_not(tmp_path):
    state = values(net(1))
    wrong = save(tmp_path / "wrong.pth", values(net(2)))
    damaged = save(tmp_path / "damaged.pth", state)
    content = bytearray((tmp_path / "damaged.pth").read_bytes())
    content[content.index(state["0.weight"].numpy().tobytes())] ^= 1
    (tmp_path / "damaged.pth").write_bytes(content)
    right = save(tmp_path / "right.pth", {"model": {"state": state}}) | {"select": "model.state"}
    with pytest.warns(UserWarning, match=r"wrong\.pth.* and .*damaged\.pth"):
        check_fetched(store_of(tmp_path, state, wrong, damaged, right), state)


def test_of_a_checkpoint_only_what_is_missing_is_kept(tmp_path, recording_server):
    state = values(net(1))
    recording_server.files = tmp_path
    published = publish(tmp_path, KEY, state)
    mirror = save(tmp_path / "net.pth", state)
    mirror |= {"state": f"{recording_server.url}/{published.state_object}"}
    store = store_of(tmp_path, state, mirror)
    assert same(store.load_state_dict(KEY, ["0.weight"]), {"0.weight": state["0.weight"]})
    assert check_cache(tmp_path / "cache") == 2  # this tensor and the state object
    check_fetched(store, state)
