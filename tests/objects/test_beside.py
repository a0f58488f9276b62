"""What killed processes left beside a file goes, once nobody can be at work on it."""

import os
import time

from mlstate.manifests.update import change_manifest
from mlstate.objects.beside import temporary_beside


def test_what_was_left_beside_a_file_an_hour_ago_is_removed_and_nothing_else(tmp_path):
    target = tmp_path / "m.toml"
    abandoned = tmp_path / f".m.toml.{'a' * 32}.tmp"
    others = [
        tmp_path / f".other.toml.{'a' * 32}.tmp",
        tmp_path / f".m.toml.{'a' * 31}.tmp",
        tmp_path / f".mxtoml.{'a' * 32}.tmp",
        tmp_path / "m.toml.tmp",
    ]
    young, folder = tmp_path / f".m.toml.{'b' * 32}.tmp", tmp_path / f".m.toml.{'c' * 32}.tmp"
    folder.mkdir()
    for path in (abandoned, *others, young):
        path.touch()
    past = time.time() - 3700
    for path in (abandoned, *others, folder):
        os.utime(path, (past, past))
    assert not temporary_beside(target).exists()
    assert sorted(tmp_path.iterdir()) == sorted([*others, young, folder])


def test_the_clock_of_this_machine_may_go_wrong(tmp_path, monkeypatch):
    """What another process writes just now is not taken for abandoned."""
    left = tmp_path / f".m.toml.{'a' * 32}.tmp"
    left.touch()
    ahead = time.time() + 30 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: ahead)
    temporary_beside(tmp_path / "m.toml")
    assert left.exists()


def test_an_edit_of_a_manifest_removes_what_an_earlier_one_left(tmp_path):
    left = tmp_path / f".m.toml.{'a' * 32}.tmp"
    left.touch()
    os.utime(left, (1, 1))
    change_manifest(tmp_path / "m.toml", lambda manifest: manifest)
    assert not left.exists()


def test_a_folder_that_is_not_there_is_no_error(tmp_path):
    assert temporary_beside(tmp_path / "no" / "m.toml").parent == tmp_path / "no"
