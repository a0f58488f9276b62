"""What every test gets: a cache of its own, and nothing from the user's environment."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys

import pytest
from hypothesis import settings

from mlstate import LocalStateStore
from tests.servers.fixtures import *  # noqa: F403

# The machine may be busy: an example that takes long says nothing about the program.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


class NoTorch:
    """Skips whatever imports torch, where it is not installed: a module, or one test."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            pytest.skip("torch is not installed", allow_module_level=True)


if importlib.util.find_spec("torch") is None:
    sys.meta_path.insert(0, NoTorch())


@pytest.fixture(autouse=True)
def own_environment(tmp_path_factory, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("MLSTATE_", "HF_", "AWS_")) or name.upper().endswith(
            ("_PROXY", "_CA_BUNDLE", "NETRC")
        ):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    if hub := sys.modules.get("huggingface_hub"):  # which read its settings when it was imported
        monkeypatch.setattr(hub, "get_token", lambda: None)


@pytest.fixture
def store(tmp_path):
    """An empty store in a folder."""
    return LocalStateStore(tmp_path / "store")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small state as somebody offers it, made once for a module."""
    from tests.support.fetching import FILES, KEY, TENSORS, publish  # which imports torch

    return publish(tmp_path_factory.mktemp("web"), KEY, TENSORS, FILES)


@pytest.fixture
def no_fsync(monkeypatch):
    """Nothing waits for the disk: for tests that save a thousand times, and of something else."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def ctrl_c():
    """SIGINT interrupts this process and its children, even where pytest was told to ignore it.

    A script's background job, nohup and some CI runners start programs with SIGINT ignored, and a
    child inherits that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
