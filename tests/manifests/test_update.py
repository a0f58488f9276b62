"""Changes of a manifest beside others' are not lost, whether or not anybody holds a lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlstate import Manifest, StateKey, manifests
from mlstate.errors import ManifestError
from mlstate.manifests import StateEntry, update
from mlstate.manifests.update import change_manifest
from mlstate.objects import durable
from tests.support.planting import Victim, plant, time_limit

TEXT = b"# by hand\nversion = 1\n"


def entry(number: int) -> StateEntry:
    key = StateKey.parse(f"pytorch.net.a{number}")
    return StateEntry(key, None, meta={"number": number})


def add(path: Path, number: int) -> None:
    def change(old: Manifest) -> Manifest:
        new = entry(number)
        return replace(old, states={**old.states, new.key: new})

    change_manifest(path, change)


def numbers(path: Path) -> set[object]:
    return {entry.meta["number"] for entry in Manifest.read(path).states.values()}


STOPPED = """
import os, signal, sys
from pathlib import Path
from mlstate.manifests import update
from tests.manifests.test_update import add
real, stops = update.{function}, [True]
def stopped(*arguments, **named):
    if stops.pop() if stops else False:
        os.kill(os.getpid(), signal.SIGSTOP)
    return real(*arguments, **named)
update.{function} = stopped
add(Path(sys.argv[1]), 1)
"""


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("function", ["edited", "write_over"])
def test_a_process_that_was_stopped_with_the_lock_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, there: bool
):
    monkeypatch.setattr(update, "_PATIENCE", 0.2)
    path = tmp_path / "m.toml"
    if there:
        path.write_bytes(TEXT)
    child = subprocess.Popen(
        [sys.executable, "-c", STOPPED.format(function=function), str(path)],
        cwd=Path(__file__).parents[2],
    )
    try:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        add(path, 2)  # nobody waits for it longer than the patience
        assert numbers(path) == {2}
    finally:
        child.send_signal(signal.SIGCONT)
    assert child.wait(30) == 0
    assert numbers(path) == {1, 2}
    assert path.read_bytes().startswith(b"# by hand\n") == there
    assert os.listdir(tmp_path) == ["m.toml"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_an_edit_by_hand_at_the_same_time_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
):
    if not exchanges:

        def none(*_: object) -> None:
            raise OSError(38, "no exchange here")

        monkeypatch.setattr(durable, "_exchange", none)
    path, seen = tmp_path / "m.toml", []
    path.write_bytes(TEXT)

    def change(old: Manifest) -> Manifest:
        seen.append(len(old.states))
        if len(seen) == 1:
            path.write_text(Manifest({entry(2).key: entry(2)}).format())
        return replace(old, states={**old.states, entry(1).key: entry(1)})

    change_manifest(path, change)
    assert numbers(path) == {1, 2}
    assert seen == [0, 1]


def test_a_manifest_that_changes_without_an_end_is_given_up(tmp_path: Path):
    path, count = tmp_path / "m.toml", iter(range(10**6))

    def change(old: Manifest) -> Manifest:
        other = entry(next(count))
        path.write_text(Manifest({other.key: other}).format())
        return Manifest({})

    with time_limit(30), pytest.raises(ManifestError, match="changed again and again"):
        change_manifest(path, change)


def test_a_change_of_nothing_writes_nothing(tmp_path: Path):
    path = tmp_path / "m.toml"
    path.write_bytes(TEXT)
    path.chmod(0o444)
    before = path.stat()
    change_manifest(path, lambda old: old)
    assert path.stat() == before


def test_a_link_stays_a_link(tmp_path: Path):
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "m.toml", tmp_path / "m.toml"
    link.symlink_to("real/m.toml")
    add(link, 1)
    add(link, 2)
    assert link.is_symlink()
    assert numbers(real) == {1, 2}


@pytest.mark.parametrize("kind", ["pipe", "zero", "socket", "loop", "folder"])
def test_a_manifest_that_is_no_file_is_not_waited_for(tmp_path: Path, kind: str):
    """Git can carry the link; the others are in folders that are shared."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    plant(kind, folder / "m.toml", Victim(tmp_path / "home"))
    if kind != "folder":  # which is one of manifests
        with time_limit(20), pytest.raises(ManifestError):
            Manifest.read(folder)
        with time_limit(20), pytest.raises(ManifestError):
            Manifest.read(folder / "m.toml")
    with time_limit(20), pytest.raises(ManifestError):
        add(folder / "m.toml", 1)
    with time_limit(20), pytest.raises(ManifestError):
        Manifest({}).write(folder / "m.toml")


def test_a_manifest_that_is_written_whole_keeps_what_an_editor_wrote_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "m.toml"
    path.write_bytes(TEXT)
    real = manifests.edited

    def and_edit(*arguments: object) -> bytes:
        new = real(*arguments)  # type: ignore[arg-type]
        if b"later" not in path.read_bytes():
            path.write_bytes(b"# later\n" + TEXT)
        return new

    monkeypatch.setattr(manifests, "edited", and_edit)
    Manifest({entry(1).key: entry(1)}).write(path)
    assert numbers(path) == {1}
    assert path.read_bytes().startswith(b"# later\n# by hand\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to another user")
@pytest.mark.parametrize("there", [False, True])
def test_a_link_of_another_user_is_not_written_through(tmp_path: Path, there: bool):
    """In the folder of a group it could lead to any file of this user."""
    victim, shared = tmp_path / "pyproject.toml", tmp_path / "shared"
    shared.mkdir()
    if there:
        victim.write_bytes(TEXT)
    path = shared / "m.toml"
    path.symlink_to(victim)
    os.lchown(path, 12345, 12345)
    for write in (lambda: add(path, 1), lambda: Manifest({}).write(path)):
        with pytest.raises(ManifestError, match="link of another user"):
            write()
    assert victim.exists() == there
    assert not there or victim.read_bytes() == TEXT
    os.lchown(path, 0, 0)
    add(path, 1)
    assert path.is_symlink()
    assert numbers(victim) == {1}
