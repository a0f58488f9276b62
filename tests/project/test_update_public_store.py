"""The maintainer's script: what it publishes, leaves alone, and says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mlstate import LocalStateStore, ManifestStore, StateKey, manifest_of
from tests.support.buckets import bucket_store
from tests.support.github_stores import github_store
from tests.support.models import LINEAR, net, same, values

SCRIPT = Path(__file__).parents[2] / "scripts" / "update_public_store.py"
KEY = StateKey(LINEAR, "a")
PROVIDER = """
import torch
from mlstate import AbstractListStateStore, StateKey
class Provider(AbstractListStateStore):
    available_state_keys = [StateKey.parse(f"pytorch.net.{name}") for name in ("a", "zeros")]
    def state_downloader(self, model, state_key):
        if state_key.training_id == "a":
            raise AssertionError("it is there")
        model.load_state_dict({n: torch.zeros_like(t) for n, t in model.state_dict().items()})
def model(state_type):
    layers = torch.nn.Linear(64, 80), torch.nn.BatchNorm1d(80), torch.nn.Linear(80, 64)
    return torch.nn.Sequential(*layers, torch.nn.Linear(64, 10))
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "provider.py").write_text(PROVIDER)

    def run(*arguments: object, status: int = 0) -> str:
        command = [sys.executable, "-W", "error", SCRIPT, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture
def ours(tmp_path):
    store = LocalStateStore(tmp_path / "ours")
    store.save(net(1), "a", files={"labels.json": b"[1]"})
    return store


def test_stores_manifests_and_providers_are_published_into_a_folder(run, ours, tmp_path):
    (tmp_path / "manifests").mkdir()
    other = LocalStateStore(tmp_path / "other")
    other.save(net(2), "b")
    manifest_of(other, objects=["../other"]).write(tmp_path / "manifests" / "m.toml")
    sources = ["ours", "manifests", "provider:Provider"]
    options = ["--models", "provider:model", "--manifest", "new.toml", "--objects", "public"]
    said = run("public", *sources, *options)
    assert said.splitlines() == [
        "+ pytorch.net.a",
        "+ pytorch.net.b",
        "= pytorch.net.a",
        "+ pytorch.net.zeros",
        "4 states are published; 0 could not be",
    ]
    theirs = ManifestStore(tmp_path / "new.toml", cache=tmp_path / "cache")
    model = net(3)
    for name, seed in (("a", 1), ("b", 2)):
        theirs.load(model, StateKey(LINEAR, name))
        assert same(values(model), values(net(seed)))
    theirs.load(model, StateKey(LINEAR, "zeros"))
    assert not model[0].weight.any()
    assert "+" not in run("public", *sources, *options)


def test_into_a_bucket(run, ours, moto, monkeypatch):
    bucket = moto.new_bucket()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto.secret)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert "+ pytorch.net.a" in run(f"s3://{bucket}/models", "ours", "--endpoint", moto.url)
    assert bucket_store(moto, bucket).digest(KEY) == ours.digest(KEY)


def test_into_a_release(run, ours, github, tmp_path):
    assert "+ pytorch.net.a" in run("github:org/models", "ours")
    assert github_store(tmp_path / "c").digest(KEY) == ours.digest(KEY)
    assert "= pytorch.net.a" in run("github:org/models", "ours")


def test_what_fails_is_said_and_the_rest_is_published(run, ours, tmp_path):
    public = LocalStateStore(tmp_path / "public")
    public.save(net(2), "a")
    ours.save(net(3), "c")
    said = run("public", "ours", "provider:Provider", status=1)
    assert "! pytorch.net.a: this key has other weights already" in said
    assert "! pytorch.net.zeros: the states of this store need a model" in said
    assert "+ pytorch.net.c" in said
    assert "3 states" not in said.splitlines()[-1]


def test_no_access_ends_it(run, ours, github, monkeypatch):
    monkeypatch.delenv("GH_TOKEN")
    ours.save(net(3), "c")
    said = run("github:org/models", "ours", status=1)
    assert "GH_TOKEN" in said
    assert "pytorch.net.c" not in said
