"""Claims: one of several works on a name, the others know, and nobody waits for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlstate import claims as module
from mlstate.claims import Claims

pytestmark = pytest.mark.skipif(module._COMMANDS is None, reason="no locks of open files here")

ONE, TWO, THREE = (f"{n:013x}" + 51 * "0" for n in (1, 2, 2**52 - 1))


def never(name: str) -> bool:
    return False


def test_a_name_is_claimed_once(tmp_path: Path):
    path = tmp_path / "claims"
    with Claims(path) as first, Claims(path) as second:
        assert first.take(ONE)
        assert not second.take(ONE)
        assert second.take(TWO)
        assert second.take(THREE)
        assert not first.take(TWO)
        first.give(ONE)
        assert second.take(ONE)
        second.give_all()
        assert all(map(first.take, (ONE, TWO, THREE)))
    assert not path.exists()


def test_each_name_has_a_place_of_its_own_whoever_claims_it(tmp_path: Path):
    """The length of a range says whose it is: it never reaches that of the next name."""
    path = tmp_path / "claims"
    users = [Claims(path) for _ in range(40)]
    names = [f"{n:013x}" for n in range(40)]
    try:
        assert all(user.take(name) for user, name in zip(users, names, strict=True))
        assert [user._slot for user in users] == list(range(40))
        for at, user in enumerate(users):
            found = [user._owner(name) for name in names]
            assert found == [None if i == at else i for i in range(40)]
    finally:
        for user in users:
            user.close()
    assert not path.exists()


def test_who_is_killed_has_no_claims(tmp_path: Path):
    path = tmp_path / "claims"
    code = (
        "import sys, time; from pathlib import Path; from mlstate.claims import Claims\n"
        "c = Claims(Path(sys.argv[1])); print(c.take(sys.argv[2]), flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(path), ONE]
    here = Path(__file__).parents[2]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=here)
    assert child.stdout is not None
    assert child.stdout.readline() == "True\n"
    with Claims(path) as mine:
        assert not mine.take(ONE)
        child.kill()
        child.communicate()
        mine.wait([ONE], never, lambda left: None)
        assert mine.take(ONE)
    assert not path.exists()


def test_a_wait_ends_when_it_is_done_or_given_back(tmp_path: Path):
    path, done = tmp_path / "claims", threading.Event()
    with Claims(path) as first, Claims(path) as second:
        assert first.take(ONE)
        assert first.take(TWO)
        assert not second.take(ONE)
        threading.Timer(0.1, done.set).start()
        told: list[list[str]] = []
        second.wait([ONE, TWO], lambda name: name == TWO or done.is_set(), told.append)
        assert done.is_set()
        assert told[0] == [ONE]
        threading.Timer(0.1, first.give, [ONE]).start()
        second.wait([ONE, TWO], never, told.append)
        assert second.take(ONE)
        assert not second.take(TWO)


def test_who_shows_no_life_is_waited_for_only_so_long(tmp_path: Path):
    path = tmp_path / "claims"
    with Claims(path) as first, Claims(path, patience=0.4) as second, Claims(path, 0.4) as third:
        assert first.take(ONE)
        assert second.take(TWO)
        began = time.monotonic()
        third.take(THREE)
        third.wait([ONE, TWO], never, lambda left: second.alive())
        assert time.monotonic() - began >= 0.4
        assert third.take(ONE)
        assert not third.take(TWO)
        third.give(ONE)  # which it never held
        assert not second.take(ONE)


def test_where_locks_do_not_work_everybody_has_what_they_ask_for(tmp_path: Path, monkeypatch):
    with Claims(tmp_path / "none" / "claims") as first:
        assert first.take(ONE)
        first.alive()
        first.give(ONE)
    (tmp_path / "folder").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "link")
    for name in ("folder", "link"):
        with Claims(tmp_path / name) as first, Claims(tmp_path / name) as second:
            assert first.take(ONE)
            assert second.take(ONE)
    assert not (tmp_path / "elsewhere").exists()
    monkeypatch.setattr(module, "_COMMANDS", None)
    with Claims(tmp_path / "claims") as first, Claims(tmp_path / "claims") as second:
        assert first.take(ONE)
        assert second.take(ONE)


def test_the_file_is_removed_by_the_last_and_made_anew(tmp_path: Path):
    path = tmp_path / "claims"
    first, second = Claims(path), Claims(path)
    assert first.take(ONE)
    assert second.take(TWO)
    first.close()
    assert path.exists()
    with Claims(path) as third:
        assert not third.take(TWO)
        assert third.take(ONE)
        second.close()
        assert path.exists()
    assert not path.exists()
    assert first.take(ONE)
    first.close()
    assert not path.exists()
