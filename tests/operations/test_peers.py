"""The configuration of peers: nginx takes it, and what cannot be written into it is refused."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate.cli.app import run
from mlstate.errors import FormatError, MlstateError, StateExistsError
from mlstate.operations.peers.configuration import Peers
from mlstate.operations.peers.write import write_peers
from mlstate.transport.urls import Url
from tests.servers.ports import MissingProgramError, program

HTTP = Url.parse("http://127.0.0.1:8000/models/v1/")
PEERS = Peers(HTTP, ("127.0.0.1", "127.0.0.2", "[::1]"))
FILES = ["daemonset.yaml", "mlstate-peers.service", "nginx.conf"]


def _tested(peers: Peers, home: Path) -> subprocess.CompletedProcess[str]:
    try:
        nginx = program("nginx", "nginx-light")
    except MissingProgramError as missing:
        pytest.skip(str(missing))
    (home / "run").mkdir(exist_ok=True)
    placed = replace(peers, cache=f"{home}/cache", run=f"{home}/run")
    (home / "nginx.conf").write_text(placed.files()["nginx.conf"])
    command = [nginx, "-t", "-e", "stderr", "-c", str(home / "nginx.conf")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "origin",
    ["http://127.0.0.1:8000", "https://127.0.0.1/models/v1.2/%7Eme", "https://[::1]:8443/a+b@c"],
)
def test_nginx_takes_the_configuration(origin: str, tmp_path: Path) -> None:
    done = _tested(replace(PEERS, origin=Url.parse(origin), listen="*"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr


@settings(max_examples=15)
@given(st.from_regex(r"http://127\.0\.0\.1(:[0-9]{1,6})?(/[!-~]{0,8}){0,3}", fullmatch=True))
def test_an_origin_is_refused_or_taken_by_nginx(
    tmp_path_factory: pytest.TempPathFactory, origin: str
) -> None:
    try:
        peers = replace(PEERS, origin=Url.parse(origin))
    except MlstateError:
        return
    done = _tested(peers, tmp_path_factory.mktemp("origin"))
    assert done.returncode == 0, done.stderr


def test_every_blank_is_filled() -> None:
    files = PEERS.files()
    assert sorted(files) == FILES
    for text in files.values():
        assert not re.findall(r"%[a-z_]+%", text)
    assert "proxy_pass http://origin/models/v1$uri;" in files["nginx.conf"]
    assert "server [::1]:9471 " in files["nginx.conf"]


def test_what_is_said_is_json_in_the_configuration() -> None:
    said = re.findall(r"return 200 '(.*)';", PEERS.files()["nginx.conf"])
    assert len(said) == 2
    for text in said:
        assert json.loads(text) == PEERS.said
    other = replace(PEERS, nodes=PEERS.nodes[:2])
    assert other.identity != PEERS.identity


@pytest.mark.parametrize(
    "origin",
    ["s3://bucket/weights", "weights/", "https://h/x?token=1", "https://h/a b;c", "https://u:p@h/"],
)
def test_an_origin_that_nginx_cannot_ask_is_refused(origin: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError) as error:
        write_peers(origin, ["a"], tmp_path / "peers")
    assert "token" not in str(error.value)
    assert not (tmp_path / "peers").exists()


@pytest.mark.parametrize(
    "nodes", [[], ["a", "A"], ["a:80"], ["a;b"], ["-a"], ["a b"], ["::1"], [""], ["x" * 300]]
)
def test_nodes_that_are_none_are_refused(nodes: list[str], tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        write_peers("https://weights.example.org", nodes, tmp_path / "peers")


def test_other_arguments_are_looked_at(tmp_path: Path) -> None:
    for wrong in (
        {"port": 0},
        {"port": 65535},
        {"max_size": "much"},
        {"cache": "relative"},
        {"cache": "/a;b"},
        {"listen": "0.0.0.0;"},
    ):
        with pytest.raises(FormatError):
            write_peers("https://weights.example.org", ["a"], tmp_path / "peers", **wrong)


def test_files_that_are_there_stay_unless_they_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "daemonset.yaml").write_text("mine")
    with pytest.raises(StateExistsError):
        write_peers("https://weights.example.org", ["a"], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["daemonset.yaml"]
    done = write_peers("https://weights.example.org", ["a"], tmp_path, overwrite=True)
    assert sorted(file.name for file in done.files) == FILES
    assert (tmp_path / "daemonset.yaml").read_text() != "mine"
    assert "MLSTATE_PEERS=http://127.0.0.1:9470" in str(done)


def test_the_daemonset_is_yaml_that_mounts_what_nginx_uses() -> None:
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load(PEERS.files()["daemonset.yaml"])
    (container,) = found["spec"]["template"]["spec"]["containers"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {PEERS.cache, PEERS.run} <= mounts
    ports = {port["containerPort"] for port in container["ports"]}
    assert ports == {PEERS.port, PEERS.port + 1}


def test_the_command_of_the_page_writes_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text()
    (block,) = re.findall(r"^```console\n(.*?)^```", page, re.M | re.S)
    command, _, shown = block.partition("\n")
    monkeypatch.chdir(tmp_path)
    assert run(shlex.split(command)[2:]) == 0
    assert "".join(capsys.readouterr()) == shown
    assert sorted(path.name for path in (tmp_path / "peers").iterdir()) == FILES
