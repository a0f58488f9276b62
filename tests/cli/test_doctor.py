"""`mlstate doctor`, as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.servers.nginx import Nginx
from tests.servers.ports import HOST
from tests.support.commands import Shell
from tests.support.fetching import FILE, Published, write_manifest

SECRET = "s3cr3t-t0ken-of-a-test"
NO_SOCKETS = """
import sys
opened = []
def note(event, arguments):
    if event.startswith("socket."):
        opened.append(event)
        raise RuntimeError(f"{event}{arguments}")
sys.addaudithook(note)
from mlstate.cli.app import run
code = run(["doctor", *sys.argv[1:]])
assert not opened, opened
assert "torch" not in sys.modules
sys.exit(code)
"""


def test_all_is_well(shell: Shell, published: Published, start_nginx: Callable[..., Nginx]):
    nginx = start_nginx(published.folder)
    write_manifest(shell.folder / "m.toml", published, mirrors=[nginx.url(FILE)])
    lines = shell.lines("doctor", "--store", "m.toml")
    assert lines[0].split()[0] == "mlstate"
    assert f"torch            {torch.__version__}" in lines
    assert "MLSTATE_OFFLINE            not set: online" in lines
    assert f"MLSTATE_CACHE              {shell.folder / 'cache'}" in lines
    (mirror,) = [line for line in lines if f"http://{HOST}:{nginx.port}" in line]
    assert mirror.startswith("ok       ")
    assert " kB offered, ranges: yes, no token, " in mirror
    assert not [line for line in lines if line.startswith("PROBLEM")]
    assert sorted(os.listdir(shell.folder)) == ["m.toml"]  # no cache was made, no probe is left
    data = shell.json("doctor", "--store", "m.toml")
    assert data["ok"] is True
    assert {"name": "MLSTATE_STORE", "value": None, "default": "Store()"} in data["settings"]
    assert [one["ok"] for one in data["checks"] if one["name"] == "store"] == [True]


def test_a_problem_is_a_finding(
    shell: Shell, published: Published, start_nginx: Callable[..., Nginx]
):
    nginx = start_nginx(published.folder)
    mirror = nginx.url(FILE, "auth")
    write_manifest(shell.folder / "m.toml", published, mirrors=[mirror])
    secret = Shell(
        shell.folder,
        {**shell.environment, f"MLSTATE_TOKEN_{HOST.replace('.', '_')}": SECRET},
    )
    done = secret("doctor", "-s", "m.toml")
    assert (done.returncode, done.stderr) == (1, "")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("PROBLEM")]
    assert "HTTP 401 Unauthorized" in line
    following = done.stdout.splitlines()[done.stdout.splitlines().index(line) + 1]
    assert following.strip().startswith("what to do: ")
    assert SECRET not in done.stdout
    data = secret.json("doctor", "-s", "m.toml", code=1)
    assert data["ok"] is False
    nginx.close()
    lines = shell.lines("doctor", "-s", "m.toml", code=1)
    assert [line for line in lines if "Connection refused" in line and line.startswith("PROBLEM")]


def test_a_store_that_is_not_there_is_a_finding(shell: Shell):
    lines = shell.lines("doctor", "-s", "nowhere", code=1)
    assert [line for line in lines if line.startswith("PROBLEM  store ")]
    assert [line for line in lines if line.startswith("ok       cache ")]


@pytest.mark.parametrize("way", ["--no-network", "MLSTATE_OFFLINE"])
def test_without_the_network_no_socket_is_opened(shell: Shell, published: Published, way: str):
    addresses = ["https://example.org/a", "s3://bucket/a", "hf://org/repo", "gs://bucket/a"]
    manifest = write_manifest(shell.folder / "m.toml", published, mirrors=addresses)
    for store in ([], ["-s", str(manifest)], ["-s", "s3://bucket"]):
        arguments = [*store, *(["--no-network"] if way == "--no-network" else [])]
        environment = {} if way == "--no-network" else {way: "1"}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", NO_SOCKETS, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
            env={**os.environ, **shell.environment, **environment},
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "not asked" in done.stdout
