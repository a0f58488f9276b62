"""Whatever happens to the file of an index, answers are right, and nothing is raised."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import time

import pytest
import torch

from mlstate import LocalStateStore, usage
from mlstate.index import database as database_module
from mlstate.index import index as index_module
from mlstate.index.database import index_folder
from mlstate.index.said import Said
from tests.support.indexing import index_file, key, save, settle


def shorter(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(os.urandom(50_000))


def half_garbage(path):
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))


def other_version(path):
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 77")
    connection.close()


def other_tables(path):
    with sqlite3.connect(path) as connection:
        connection.executescript("DROP TABLE state; CREATE TABLE state (x); DROP TABLE folder;")
    connection.close()


def other_values(path):
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "UPDATE state SET said = x'00', used = 'never';"
            "UPDATE folder SET entries = 'no JSON', space = 5, version = x'ff';"
            "UPDATE place SET used = 1e300;"
        )
    connection.close()


def exchanged_values(path):
    """Rows that are whole, under the wrong digests."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT digest, said FROM state").fetchall()
        connection.executemany(
            "UPDATE state SET said = ? WHERE digest = ?",
            [
                (said, digest)
                for (digest, _), (_, said) in zip(rows, rows[1:] + rows[:1], strict=True)
            ],
        )
        connection.execute("UPDATE folder SET path = path || 'x'")
    connection.close()


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def a_link(path):
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def hostile_journal(path):
    path.with_name(f"{path.name}-journal").write_bytes(os.urandom(5000))


DAMAGES = (
    shorter,
    empty,
    garbage,
    half_garbage,
    other_version,
    other_tables,
    other_values,
    exchanged_values,
    a_folder,
    a_pipe,
    a_link,
    hostile_journal,
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_index_changes_no_answer(related, damage):
    expected = usage(related)
    damage(index_file())
    for _ in range(3):
        assert usage(related) == expected


@pytest.mark.parametrize("damage", [shorter, empty, garbage, half_garbage, other_version])
def test_a_damaged_index_is_made_anew(related, damage):
    expected = usage(related)
    damage(index_file())
    usage(related)
    usage(related)
    with sqlite3.connect(index_file()) as connection:
        assert connection.execute("SELECT count(*) FROM state").fetchone() == (3,)
    connection.close()
    assert usage(related) == expected


def test_damage_is_logged_once_and_not_shown(related, caplog):
    usage(related)
    garbage(index_file())
    with caplog.at_level(logging.INFO, "mlstate.index"):
        usage(related)
    assert len(caplog.records) == 1
    assert "damaged" in caplog.text


def test_an_index_that_another_process_has_locked_is_not_waited_for_long(related, monkeypatch):
    expected = usage(related)
    save(related, "net.later", 5)
    settle(related.folder)
    script = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1])\n"
        "connection.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.read()\n"
    )
    monkeypatch.setattr(database_module, "_PATIENCE", 0.01)
    command = [sys.executable, "-c", script, index_file()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as locking:
        assert locking.stdout.readline() == b"locked\n"
        while_locked = usage(related)
        assert index_file().exists()  # it is whole, and another's work
        locking.stdin.close()
    assert len(while_locked.states) == len(expected.states) + 1
    assert usage(related) == while_locked


def test_an_index_that_goes_while_it_is_in_use_does_no_harm(related, monkeypatch):
    expected = usage(related)
    real = index_module.Index.place

    def removing(index, name):
        for path in index_folder().iterdir():
            path.unlink()
        index_folder().rmdir()
        return real(index, name)

    monkeypatch.setattr(index_module.Index, "place", removing)
    assert usage(related) == expected
    monkeypatch.undo()
    assert usage(related) == expected


def test_a_cache_folder_that_cannot_be_made_does_no_harm(related, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    expected = usage(related)
    for unusable in (tmp_path / "file" / "cache", "/proc/nowhere", "s3://bucket"):
        monkeypatch.setenv("MLSTATE_CACHE", str(unusable))
        assert usage(related) == expected


def test_a_folder_that_others_may_write_to_is_not_used(related, caplog):
    expected = usage(related)
    index_folder().chmod(0o777)
    before = index_file().read_bytes()
    save(related, "net.later", 5)
    with caplog.at_level(logging.INFO, "mlstate.index"):
        assert len(usage(related).states) == len(expected.states) + 1
    assert index_file().read_bytes() == before
    assert "only its user may write to" in caplog.text


def test_a_link_in_the_place_of_the_folder_is_not_followed(related, tmp_path):
    expected = usage(related)
    index_folder().rename(tmp_path / "planted")
    index_folder().symlink_to(tmp_path / "planted")
    before = (tmp_path / "planted" / "states-1.sqlite").read_bytes()
    save(related, "net.later", 5)
    assert len(usage(related).states) == len(expected.states) + 1
    assert (tmp_path / "planted" / "states-1.sqlite").read_bytes() == before


def test_a_store_that_is_only_read_has_an_index_too(related):
    before = {path: path.stat().st_mtime_ns for path in related.folder.rglob("*")}
    usage(related)
    assert {path: path.stat().st_mtime_ns for path in related.folder.rglob("*")} == before
    assert index_file().exists()


# What the index is not trusted for.


def lie(index):
    """Say of every state that it names nothing: the row is whole, and wrong."""
    with sqlite3.connect(index) as connection:
        for (raw,) in connection.execute("SELECT digest FROM state").fetchall():
            digest = raw.hex()
            said = Said.decode(
                digest,
                connection.execute("SELECT said FROM state WHERE digest = ?", [raw]).fetchone()[0],
            )
            nothing = Said(said.size, said.nbytes, said.inline, 0, said.objects[:0], said.sizes[:0])
            connection.execute(
                "UPDATE state SET said = ? WHERE digest = ?", [nothing.encode(digest), raw]
            )
    connection.close()


def test_a_pruning_removes_nothing_by_an_index_that_lies(related):
    for path in (related.folder / "objects").rglob("*"):
        os.utime(path, (1e9, 1e9))
    loaded = {k: related.load_state_dict(k) for k in related.get_state_keys()}
    usage(related)
    lie(index_file())
    assert related.prune(grace_seconds=0, dry_run=True).trashed  # the lie is believed...
    report = related.prune(grace_seconds=0)  # ...where nothing is removed
    assert not report.trashed
    assert not report.deleted
    for k, tensors in loaded.items():
        found = related.load_state_dict(k)
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_load_asks_no_index(related, monkeypatch):
    usage(related)
    garbage(index_file())
    before = index_file().read_bytes()
    related.load_state_dict(key("net.a"))
    related.prune(grace_seconds=0)
    assert index_file().read_bytes() == before


# Bounds.


def days_later(monkeypatch, days):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + days * 86400)


def test_what_is_long_unused_is_forgotten(related, tmp_path, monkeypatch):
    other = LocalStateStore(tmp_path / "other")
    save(other, "net.z", 8)
    settle(other.folder)
    usage(other)
    usage(related)
    days_later(monkeypatch, 95)
    usage(related)
    with sqlite3.connect(index_file()) as connection:
        names = connection.execute("SELECT name FROM place").fetchall()
        assert names == [(str(related.folder),)]
        assert connection.execute("SELECT count(*) FROM state").fetchone() == (3,)
    connection.close()


def test_an_index_that_is_too_large_is_begun_anew(related, monkeypatch):
    monkeypatch.setattr(database_module, "_MOST", 1000)
    expected = usage(related)
    assert not list(index_folder().iterdir())
    assert usage(related) == expected
