"""Compare and swap: who was stopped between reading and writing overwrites nothing."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from mlstate.digests import Digest
from mlstate.errors import IntegrityError
from mlstate.objects import durable
from mlstate.objects.cache import read_roots, write_root
from mlstate.objects.durable import try_lock, write_over
from mlstate.states import StateKey
from mlstate.stores.statefiles import FolderStateFiles

DIGEST = Digest.of(b"state")


def put(path: Path, data: bytes) -> None:
    """Write as an editor does: another file gets the name."""
    other = path.with_name("other")
    other.write_bytes(data)
    os.replace(other, path)


@pytest.fixture(params=["exchange", "rename"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the system's exchange of files, and where there is none."""
    if request.param == "rename":

        def none(*_: object) -> None:
            raise OSError(errno.EINVAL, "no exchange here")

        monkeypatch.setattr(durable, "_exchange", none)
    return request.param


@pytest.mark.parametrize(
    ("there", "old", "written"),
    [
        (None, None, True),
        (b"a", None, False),
        (None, b"a", False),
        (b"a", b"a", True),
        (b"b", b"a", False),
    ],
)
def test_a_file_is_written_over_what_it_was_made_from_alone(
    tmp_path: Path, way: str, there: bytes | None, old: bytes | None, written: bool
):
    path = tmp_path / "file"
    if there is not None:
        path.write_bytes(there)
    assert write_over(path, old, [b"new"], temporary=tmp_path / "tmp") is written
    assert (path.read_bytes() if path.exists() else None) == (b"new" if written else there)
    assert not (tmp_path / "tmp").exists()


def after_the_look(monkeypatch: pytest.MonkeyPatch, *writes: Callable[[], None]) -> None:
    """Let others write right before each exchange: after the last look."""
    real, left = durable._exchange, [*writes]

    def exchange(first: object, second: object) -> None:
        if left:
            left.pop(0)()
        real(first, second)

    monkeypatch.setattr(durable, "_exchange", exchange)


needs_exchange = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "renameat2"), reason="this system cannot exchange two files"
)


@needs_exchange
def test_not_even_what_came_after_the_last_look_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "file"
    path.write_bytes(b"a")
    after_the_look(monkeypatch, lambda: put(path, b"b"))
    assert not write_over(path, b"a", [b"new"], temporary=tmp_path / "tmp")
    assert path.read_bytes() == b"b"
    assert not (tmp_path / "tmp").exists()


@needs_exchange
def test_what_three_write_at_one_moment_is_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "file"
    path.write_bytes(b"a")
    after_the_look(monkeypatch, lambda: put(path, b"b"), lambda: put(path, b"c"))
    with pytest.raises(IntegrityError, match="at the same moment") as caught:
        write_over(path, b"a", [b"new"], temporary=tmp_path / "tmp")
    assert path.read_bytes() == b"b"
    assert (tmp_path / "tmp").read_bytes() == b"c"
    assert str(tmp_path / "tmp") in str(caught.value)


@needs_exchange
@pytest.mark.parametrize("what", ["note", "state file"])
def test_those_who_write_over_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
):
    """Of three at one moment, one could leave what another wrote beside."""
    key, states = StateKey.parse("pytorch.net.a"), FolderStateFiles(tmp_path)
    if what == "note":
        write_root(tmp_path, DIGEST, str(key), [])
        write = partial(write_root, tmp_path, DIGEST, str(key), [DIGEST])
    else:
        states.create(key, b"old")
        write = partial(states.change, key, b"old", b"new")
    turns = []

    def exchange(first: object, second: str | Path) -> None:
        with open_folder(Path(second).parent) as other:
            turns.append(try_lock(other))
        real(first, second)

    real = durable._exchange
    monkeypatch.setattr(durable, "_exchange", exchange)
    write()
    assert turns == [False]


@contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


NOTE = """
import os, signal, sys
from pathlib import Path
from mlstate.digests import Digest
from mlstate.objects import cache, durable
number, stops = int(sys.argv[2]), sys.argv[3] == "stops"
real = cache.write_over
def write_over(*arguments, **named):
    global stops
    if stops:
        stops = False
        os.kill(os.getpid(), signal.SIGSTOP)
    return real(*arguments, **named)
cache.write_over = write_over
files = [Digest.of(b"%d" % number)]
cache.write_root(Path(sys.argv[1]), Digest.of(b"state"), "pytorch.net.a", files)
"""


def test_a_note_that_another_process_wrote_meanwhile_is_kept(tmp_path: Path):
    write_root(tmp_path, DIGEST, "pytorch.net.a", [Digest.of(b"0")])
    stopped = subprocess.Popen([sys.executable, "-c", NOTE, str(tmp_path), "1", "stops"])
    try:
        _, status = os.waitpid(stopped.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        write_root(tmp_path, DIGEST, "pytorch.net.a", [Digest.of(b"2")])
    finally:
        stopped.send_signal(signal.SIGCONT)
    assert stopped.wait(30) == 0
    (root,) = read_roots(tmp_path)
    assert root.files == {Digest.of(b"%d" % number) for number in range(3)}
    assert abs(root.used - time.time()) < 60
