"""A reader cuts streams into pieces: all bytes, in order, in one buffer for each thread."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlstate import StateKey
from mlstate.errors import ReadOnlyStoreError, TransportError
from mlstate.fetch import reader as reading
from mlstate.fetch.plan import Piece
from mlstate.fetch.progress import Meter
from mlstate.fetch.reader import Reader
from mlstate.transport import Retries
from mlstate.transport.interface import Stream
from tests.support.fetching import FILE, manifest_store, publish, write_manifest
from tests.support.models import same

CONTENT = bytes(range(200))
KEY = StateKey.parse("pytorch.small.test")


class Trickle(Stream):
    """Gives so many bytes at once."""

    def __init__(self, content: bytes, counts: list[int]) -> None:
        self.length = self.total = len(content)
        self._content = memoryview(content)
        self._counts = iter(counts)

    def readinto(self, buffer: memoryview) -> int:
        count = min(next(self._counts, 1), len(buffer), len(self._content))
        buffer[:count] = self._content[:count]
        self._content = self._content[count:]
        return count


def reader() -> Reader:
    return Reader(Retries(), Meter("test"), 1)


@given(
    counts=st.lists(st.integers(1, 50)),
    cuts=st.lists(st.integers(0, len(CONTENT)), min_size=2, max_size=8).map(sorted),
    chunk=st.integers(1, 60),
)
def test_every_piece_gets_its_bytes_however_they_come(
    counts: list[int], cuts: list[int], chunk: int
):
    got: dict[int, bytes] = {}
    pieces = [
        Piece(start, stop, lambda chunks, at=at: got.update({at: b"".join(map(bytes, chunks))}))
        for at, (start, stop) in enumerate(zip(cuts[::2], cuts[1::2], strict=False))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK", chunk)
        reader().feed(Trickle(CONTENT, counts), 0, pieces)
    assert got == {at: CONTENT[piece.start : piece.stop] for at, piece in enumerate(pieces)}


@given(counts=st.lists(st.integers(1, 50)), most=st.integers(0, 300))
def test_of_a_stream_of_unknown_length_comes_all_or_the_most(counts: list[int], most: int):
    chunks = reader().some(Trickle(CONTENT, counts), most)
    assert b"".join(map(bytes, chunks)) == CONTENT[:most]


def test_what_comes_fast_comes_in_large_pieces():
    large = bytes(3 * reading.CHUNK)
    sizes = [len(chunk) for chunk in reader().chunks(Trickle(large, [1 << 16] * 48), len(large))]
    assert sizes == [reading.CHUNK] * 3


def test_what_comes_slowly_comes_as_it_comes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "_GATHER", -1.0)
    sizes = [len(chunk) for chunk in reader().chunks(Trickle(CONTENT, [50] * 4), len(CONTENT))]
    assert sizes == [50] * 4


def test_an_early_end_is_an_error():
    with pytest.raises(TransportError, match="early"):
        list(reader().chunks(Trickle(CONTENT, []), len(CONTENT) + 1))


def test_small_tensors_that_come_in_many_pieces_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reading, "CHUNK", 7)
    state = {"small": torch.arange(100.0), "flags": torch.arange(50) % 3 == 0}
    published = publish(tmp_path / "web", KEY, state)
    path = write_manifest(tmp_path / "m.toml", published, mirrors=[f"web/{FILE}"])
    loaded = manifest_store(path, tmp_path / "cache").load_state_dict(KEY)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_after_a_stop_nothing_more_is_asked_for():
    """Threads that Ctrl-C has left behind: each went through all that was left."""
    asked: list[int] = []

    def work(item: int) -> None:
        asked.append(item)
        if item == 3:
            one._stopped.set()

    one = reader()
    one.all(partial(work, item) for item in range(10))
    assert asked == [0, 1, 2, 3]


def test_without_threads_a_state_is_fetched_all_the_same(tmp_path, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    tensors = {f"{i}": torch.rand(100, 100) for i in range(20)}
    published = publish(tmp_path / "published", KEY, tensors)
    manifest = write_manifest(
        tmp_path / "a.toml", published, mirrors=[str(published.folder / FILE)]
    )
    store = manifest_store(manifest, tmp_path / "cache")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert same(store.load_state_dict(KEY), tensors)


def test_a_cache_that_cannot_be_made_names_the_setting(tmp_path):
    published = publish(tmp_path / "published", KEY, {"a": torch.rand(100, 100)})
    mirrors = [str(published.folder / FILE)]
    manifest = write_manifest(tmp_path / "a.toml", published, mirrors=mirrors)
    with pytest.raises(ReadOnlyStoreError, match="MLSTATE_CACHE"):
        manifest_store(manifest, "/proc/nobody/cache").load_state_dict(KEY)
