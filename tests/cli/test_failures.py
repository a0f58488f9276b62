"""Whatever ends a command: an exit code that says what it is, and with --json an object of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlstate import LocalStateStore, StateKey, manifest_of
from mlstate.cli.exit_codes import DEFECT, INTEGRITY, NETWORK, exit_code
from mlstate.errors import CopyError, FetchError, IntegrityError, TransportError
from tests.servers.ports import HOST, closed_port
from tests.support.commands import PROGRAM, Shell, check_members, child

KEY = StateKey.parse("pytorch.mlp.one")
OTHER = StateKey.parse("pytorch.mlp.two")


@pytest.fixture
def shell(shell):
    store = LocalStateStore(shell.folder / "weights")
    for number, key in enumerate((KEY, OTHER)):
        store.save_state_dict({"w": torch.full((8192,), float(number + 1))}, key)
    return shell


def failure(shell: Shell, *arguments: object, code: int) -> dict:
    """The object that a failing command prints, held against its published type."""
    from mlstate.cli.printed import failed
    from mlstate.operations.reports import shape_of

    done = shell(*arguments, "--json")
    assert done.returncode == code, done.stderr + done.stdout
    data = json.loads(done.stdout)
    assert data["schema"] == "mlstate.error/1"
    check_members(data, shape_of({"schema": str}, *failed()), "error")
    assert data["exit_code"] == code
    assert data["command"] == arguments[0]
    assert data["message"]
    assert done.stderr  # people are told, too
    return data


def mirrored(shell: Shell, *objects: str) -> None:
    store = LocalStateStore(shell.folder / "weights")
    manifest_of(store, objects=objects).write(shell.folder / "weights.toml")


def wrong(served: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data[:-1] + bytes([data[-1] ^ 1]) for name, data in served.items()}


def served(shell: Shell) -> dict[str, bytes]:
    root = shell.folder / "weights"
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["ls", "nowhere"], 3, "StoreNotFoundError"),
        (["ls", "--no-such-option"], 2, "UsageError"),
        (["no-such-command"], 2, "UsageError"),
        (["export", str(KEY)], 2, "UsageError"),
        (["fetch", "-s", "weights"], 2, "FormatError"),
        (["show", "pytorch.mlp.three", "-s", "weights"], 3, "StateNotFoundError"),
        (["show", "mlp", "-s", "weights"], 2, "FormatError"),
        (["du", "nowhere"], 3, "StoreNotFoundError"),
        (["verify", "pytorch.mlp.none", "-s", "weights"], 3, "StateNotFoundError"),
        (["diff", "a.pt", "b.pt"], 3, "WeightsNotFoundError"),
        (["add", "mlp", "x.safetensors", "-s", "w"], 2, "FormatError"),
        (["add", "pytorch.mlp.x", "x.safetensors"], 2, "UsageError"),
        (["export", str(KEY), "x.gguf", "-s", "weights"], 2, "FormatError"),
        (["materialize", str(KEY), "x.pt", "-s", "weights"], 2, "FormatError"),
        (["bundle", str(KEY), "-s", "weights", "-o", "x.tar.gz"], 2, "FormatError"),
        (["bundle", str(KEY), "-s", "weights", "-o", "-"], 2, "UsageError"),
        (["unbundle", "none.tar", "-s", "w"], 3, "FileNotFoundError"),
        (["rm", "pytorch.mlp.none", "-s", "weights"], 3, "StateNotFoundError"),
        (["prune", "-s", "weights", "--older-than", "5"], 2, "UsageError"),
        (["copy", str(KEY), "--from", "weights", "--to", "weights.tar"], 2, "FormatError"),
        (["lock", "none.toml"], 3, "ManifestNotFoundError"),
        (["sign", "none.toml"], 3, "StoreNotFoundError"),
        (["verify-signature", "none.toml"], 3, "StoreNotFoundError"),
        (["doctor", "--no-such-option"], 2, "UsageError"),
    ],
)
def test_every_failure_is_an_object(shell, arguments, code, kind):
    data = failure(shell, *arguments, code=code)
    assert data["kind"] == kind
    if kind == "UsageError":
        assert data["remedy"].startswith("see: mlstate")


def test_a_word_that_only_looks_like_the_option_asks_for_no_json(shell):
    done = shell("show", "--store", "weights", "--", "--json")
    assert done.returncode == 2
    assert done.stdout == ""


def test_a_fetch_that_fails_says_of_each_mirror_why(shell):
    with closed_port() as dead:
        mirrored(shell, f"http://{HOST}:{dead}/a", f"{shell.folder}/gone")
        data = failure(shell, "fetch", KEY, "-s", "weights.toml", code=5)
        assert data["key"] == str(KEY)
        reasons = {one["mirror"]: one["reason"] for one in data["mirrors"]}
        assert "cannot be reached" in reasons[f"http://{HOST}:{dead}/a"]
        assert reasons[f"{shell.folder}/gone"]
        rows = shell.json("fetch", "--all", "-s", "weights.toml", code=5)
    assert [row["failure"]["kind"] for row in rows["states"]] == ["FetchError"] * 2
    assert rows["states"][0]["failure"]["mirrors"]
    (unreached,) = rows["unreached"]
    assert unreached["server"] == f"http://{HOST}:{dead}"


def test_a_server_that_is_down_is_named_once_for_people(shell, start_recording):
    good = start_recording(served(shell))
    with closed_port() as dead:
        mirrored(shell, f"http://{HOST}:{dead}", good.url)
        done = shell("fetch", "--all", "-s", "weights.toml")
    assert done.returncode == 0
    assert done.stderr.count("cannot be reached") == 1
    assert len(done.stdout.splitlines()) == 2


def test_wrong_bytes_are_no_outage(shell, start_recording):
    liars = [start_recording(wrong(served(shell))) for _ in range(2)]
    mirrored(shell, *(liar.url for liar in liars))
    data = failure(shell, "fetch", KEY, "-s", "weights.toml", code=INTEGRITY)
    assert len(data["mirrors"]) == 2
    rows = shell.json("fetch", "--all", "-s", "weights.toml", code=INTEGRITY)
    assert all(row["failure"]["mirrors"] for row in rows["states"])
    copied = shell.json("copy", "--all", "--from", "weights.toml", "--to", "copies", code=INTEGRITY)
    assert [row["failure"]["kind"] for row in copied["failed"]] == ["FetchError"] * 2
    failure(shell, "export", KEY, "x.safetensors", "-s", "weights.toml", code=INTEGRITY)
    failure(shell, "bundle", KEY, "-o", "x.tar", "-s", "weights.toml", code=INTEGRITY)
    failure(shell, "materialize", KEY, "plain", "-s", "weights.toml", code=INTEGRITY)


def test_wrong_bytes_of_a_source_a_bundle_and_a_mirror_to_pin(shell, start_recording):
    save_file({"w": torch.ones(8192)}, shell.folder / "a.safetensors")
    data = (shell.folder / "a.safetensors").read_bytes()
    liar = start_recording({"a.safetensors": data[:-1] + b"x"})
    digest = "0" * 64
    (shell.folder / "one.toml").write_text(
        'version = 1\n[states."pytorch.mlp.one"]\n'
        f'mirrors = [{{url = "{liar.url}/a.safetensors", sha256 = "{digest}"}}]\n'
    )
    row = shell.json("lock", "one.toml", code=INTEGRITY)
    assert row["pinned"] == []
    assert row["failed"][0]["failure"]["mirrors"]
    shell.lines("bundle", "--all", "-s", "weights", "-o", "all.tar")
    tar = bytearray((shell.folder / "all.tar").read_bytes())
    place = tar.index(torch.full((8192,), 2.0).numpy().tobytes()[:64])
    tar[place] ^= 1
    (shell.folder / "all.tar").write_bytes(tar)
    assert failure(shell, "unbundle", "all.tar", "-s", "w", code=INTEGRITY)["kind"] == (
        "IntegrityError"
    )


def test_of_several_failures_the_gravest_gives_the_code():
    down, lie = FetchError("a"), FetchError("b", wrong_bytes=True)
    assert (exit_code(down), exit_code(lie)) == (NETWORK, INTEGRITY)
    both = CopyError("c", failures=((KEY, down), (OTHER, lie)))
    assert exit_code(both) == INTEGRITY
    assert exit_code(CopyError("c", failures=((KEY, IntegrityError("d")),))) == INTEGRITY
    assert exit_code(CopyError("c", failures=((KEY, TransportError("d")),))) == NETWORK


def test_a_digest_that_fails_is_an_object_with_the_others(shell):
    save_file({"w": torch.ones(3)}, shell.folder / "a.safetensors")
    data = shell.json("digest", "none.pt", "a.safetensors", code=3)
    assert [row["path"] for row in data["files"]] == ["a.safetensors"]
    (failed,) = data["failed"]
    assert (failed["path"], failed["failure"]["kind"]) == ("none.pt", "WeightsNotFoundError")


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_is_an_object_too(shell, start_nginx):
    server = start_nginx(shell.folder / "weights", limit_rate=20_000)
    mirrored(shell, server.url("", "slow").rstrip("/"))
    from tests.support.commands import PROGRAM

    command = [PROGRAM, "fetch", "--all", "--store", "weights.toml", "--json"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, **shell.environment}
    with child(*command, cwd=shell.folder, env=environment, **streams) as process:
        while not any((shell.folder / "cache").glob("**/*")):
            pass
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    data = json.loads(told)
    assert (data["kind"], data["exit_code"]) == ("Interrupted", 130)
    assert "same command" in data["remedy"]


BROKEN = """
import sys
import mlstate.stores.open
def broken(*_, **__):
    raise {error}
mlstate.stores.open.open_store = broken
from mlstate.cli.app import run
sys.exit(run(sys.argv[1:]))
"""


def broken(shell: Shell, error: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BROKEN.format(error=error), *arguments],
        cwd=shell.folder,
        env={**os.environ, **shell.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_defect_is_told_as_one(shell):
    done = broken(shell, "KeyError('inner')", "ls", "weights", "--json")
    assert done.returncode == DEFECT
    data = json.loads(done.stdout)
    assert (data["kind"], data["exit_code"]) == ("KeyError", DEFECT)
    assert "inner" in data["found"]
    assert "Traceback" in done.stderr  # for the report
    assert done.stderr.splitlines()[-1].startswith("error: this is a defect of mlstate")
    assert broken(shell, "KeyError('inner')", "ls", "weights").stdout == ""


@pytest.mark.parametrize(
    ("error", "says", "remedy", "code"),
    [
        ("OSError(28, 'No space left on device')", "the disk is full", "make room", 6),
        (
            "PermissionError(13, 'Permission denied', '/nowhere/tmp/0123456789abcdef0123')",
            "does not allow",
            "rights",
            6,
        ),
        ("OSError(24, 'Too many open files')", "may open no more files", "ulimit -n", 6),
        ("OSError(5, 'Input/output error', '/nowhere/x')", "cannot be read or", "system log", 6),
    ],
)
def test_what_the_system_says_is_said_in_words(shell, error, says, remedy, code):
    done = broken(shell, error, "ls", "weights", "--json")
    assert done.returncode == code
    data = json.loads(done.stdout)
    assert says in data["message"]
    assert remedy in data["remedy"]
    assert data["kind"] == error.partition("(")[0]
    for told in (done.stderr, done.stdout):
        assert "Errno" not in told
        assert "0123456789abcdef" not in told


def test_errors_of_the_system_name_places_that_people_know(shell):
    (shell.folder / "file").write_text("x")
    told = shell.complaint("export", KEY, "file/x.safetensors", "-s", "weights", code=6)
    assert "a file is where a folder should be" in told
    assert "Errno" not in told


def test_completion_that_was_installed_is_a_success(shell, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "PYTHONWARNINGS": "default"}
    # The shell is told by the processes above: with a second command bash stays one of them.
    words = ["bash", "-c", f"{PROGRAM} --install-completion; exit $?"]
    done = subprocess.run(
        words, cwd=shell.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert list(home.rglob("*.sh"))
