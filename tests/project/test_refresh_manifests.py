"""The maintainer's script: what it says of mirrors that are well, dead, lying, or left behind."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from mlstate import Manifest, StateKey
from mlstate.digests import Digest
from mlstate.locations import parse_mirror
from mlstate.manifests import FileEntry, StateEntry
from tests.support.fetching import publish
from tests.support.models import net, values

SCRIPT = Path(__file__).parents[2] / "scripts" / "refresh_manifests.py"
KEY = StateKey.parse("pytorch.net.a")


@pytest.fixture(scope="module")
def script():
    found = importlib.util.spec_from_file_location("refresh_manifests", SCRIPT)
    module = importlib.util.module_from_spec(found)
    sys.modules["refresh_manifests"] = module  # where dataclasses look for it
    found.loader.exec_module(module)
    yield module
    del sys.modules["refresh_manifests"]


@pytest.fixture
def published(tmp_path, recording_server):
    recording_server.files = tmp_path / "web"
    return publish(recording_server.files, KEY, values(net(1)), files={"labels.json": b"[1]"})


@pytest.fixture
def run(script, tmp_path, capsys):
    """Run the script on one entry; gives the exit status and the lines about the state."""

    def run(entry: StateEntry, *options: str, objects: tuple[str, ...] = ()):
        path = tmp_path / "manifest.toml"
        path.unlink(missing_ok=True)
        Manifest({entry.key: entry}, objects).write(path)
        before = path.read_bytes()
        status = script.main([str(path), *options])
        said = capsys.readouterr().out.splitlines()
        assert said[0] == f"{path}: 1 states"
        assert said[-1] == ("1 states need attention" if status else "all is well")
        if "--write" not in options:
            assert path.read_bytes() == before
        return status, said[1:-1]

    return run


def with_mirrors(entry: StateEntry, *mirrors) -> StateEntry:
    return replace(entry, files={}, mirrors=tuple(parse_mirror(mirror) for mirror in mirrors))


@pytest.mark.parametrize("options", [(), ("--quick",), ("--write",)])
def test_what_is_well_is_not_spoken_of(run, published, recording_server, options):
    url = recording_server.url
    mirror = {"url": f"{url}/model.safetensors", "state": f"{url}/{published.state_object}"}
    (recording_server.files / "labels").write_bytes(b"[1]")
    files = {"labels.json": FileEntry(Digest.of(b"[1]"), (parse_mirror(f"{url}/labels"),))}
    entry = replace(published.entry, mirrors=(parse_mirror(mirror),), files=files)
    assert run(entry, *options, objects=(f"{url}/store",)) == (0, [])
    if "--quick" in options:
        assert recording_server.bytes_sent < 100


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_dead_mirrors_of_every_kind_are_named(run, published, recording_server, options):
    url = recording_server.url
    gone = (parse_mirror(f"{url}/labels"),)
    entry = with_mirrors(
        published.entry,
        f"{url}/model.safetensors",
        f"{url}/gone.safetensors",
        {"urls": [f"{url}/model.safetensors", f"{url}/gone-2.safetensors"]},
        {"url": f"{url}/model.safetensors", "state": f"{url}/gone.state"},
        "missing/here.safetensors",
    )
    entry = replace(entry, files={"labels.json": FileEntry(Digest.of(b"[1]"), gone)})
    status, said = run(entry, *options, objects=(f"{url}/none",))
    assert status == 1
    assert [re.sub(r": .*", "", line.removeprefix(f"  ! {KEY}: ")) for line in said] == [
        f"{url}/none is dead",
        f"{url}/gone.safetensors is dead",
        f"{url}/model.safetensors + {url}/gone-2.safetensors is dead",
        f"{url}/model.safetensors is dead",
        "missing/here.safetensors is dead",
        f"{url}/labels (the file labels.json) is dead",
    ]
    assert sum("404" in line for line in said) == 5


def test_a_mirror_that_lies_is_found_out_unless_in_a_hurry(run, published, recording_server):
    url = recording_server.url
    (recording_server.files / "other.safetensors").write_bytes(save(values(net(2))))
    entry = with_mirrors(published.entry, f"{url}/other.safetensors")
    assert run(entry, "--quick") == (0, [])
    status, [said] = run(entry)
    assert status == 1
    assert f"! {KEY}: {url}/other.safetensors does not give what it should" in said
    assert "another state" in said
    other = FileEntry(Digest.of(b"[2]"), (parse_mirror(f"{url}/store/mlstate.toml"),))
    status, [said] = run(replace(published.entry, files={"labels.json": other}))
    assert status == 1
    assert "(the file labels.json) does not give what it should" in said


def test_a_mirror_of_another_size_is_found_out_at_once(run, published, recording_server):
    url = recording_server.url
    (recording_server.files / "short.safetensors").write_bytes(save({"a": torch.ones(3)}))
    entry = with_mirrors(published.entry, f"{url}/short.safetensors")
    status, [said] = run(entry, "--quick")
    assert status == 1
    assert "has other bytes" in said


def test_a_mirror_that_cannot_be_used_is_named(run, published):
    status, [said] = run(with_mirrors(published.entry, {"url": "a", "format": "gguf"}))
    assert status == 1
    assert "cannot be used: unknown format 'gguf'" in said


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_what_is_not_pinned_is_named_and_pinned_on_demand(
    run, published, recording_server, tmp_path, options
):
    entry = with_mirrors(published.entry, f"{recording_server.url}/model.safetensors")
    unpinned = replace(entry, digest=None, size=None)
    status, [said] = run(unpinned, *options)
    assert (status, said) == (1, f"  ! {KEY}: is not pinned; --write pins it")
    assert recording_server.requests == []
    status, [said] = run(unpinned, *options, "--write")
    assert status == 0
    assert f"- {KEY}: is pinned now, {entry.digest}, {entry.size} bytes" in said
    assert Manifest.read(tmp_path / "manifest.toml").states[KEY] == entry
    gone = with_mirrors(unpinned, f"{recording_server.url}/gone.safetensors")
    status, [said] = run(gone, *options, "--write")
    assert status == 1
    assert "could not be pinned" in said
    assert "404" in said


@pytest.fixture
def on_hub(hub, monkeypatch):
    """A repository on a hub: the address of its weights, by their first commit."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", "/nowhere")
    weights = save(values(net(1)))
    commit = hub.add("org/model", {"model.safetensors": weights, "README.md": b"1"})
    return f"hf://org/model@{commit}/model.safetensors"


@pytest.mark.parametrize("quick", [True, False])
def test_newer_weights_on_the_hub_are_reported(run, published, hub, on_hub, quick):
    options = ["--quick"] if quick else []
    entry = with_mirrors(published.entry, on_hub)
    assert run(entry, *options) == (0, [])
    newer = hub.add("org/model", {"model.safetensors": save(values(net(1))), "README.md": b"2"})
    status, [said] = run(entry, *options)
    assert status == 0
    same = "weights of the same size" if quick else "the same weights"
    assert f"- {KEY}: hf://org/model has a newer commit on main, {newer}, with {same}" in said
    hub.add("org/model", {"model.safetensors": save(values(net(2)))})
    status, [said] = run(entry, *options)
    assert (status, "with other weights" in said) == ((0, False) if quick else (1, True))
    hub.add("org/model", {"model.safetensors": save({"a": torch.ones(9)})})
    status, [said] = run(entry, *options)
    assert (status, "with other weights" in said) == (1, True)
    hub.add("org/model", {"README.md": b"gone"})
    status, [said] = run(entry, *options)
    assert status == 1
    assert "cannot be read" in said


def test_it_runs_as_a_program_and_knows_the_shipped_manifests(tmp_path, published):
    path = tmp_path / "manifest.toml"
    Manifest({KEY: with_mirrors(published.entry, "gone.safetensors")}).write(path)
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, path, "--quick"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "gone.safetensors is dead" in done.stdout
    environment = {**os.environ, "MLSTATE_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT, "--quick"], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "torchvision.toml" in done.stdout
    assert "is not pinned" in done.stdout
