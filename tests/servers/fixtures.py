"""The servers as fixtures: started for one test, most as factories, as tests need options."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import urllib3

from tests.servers.ceph import Ceph
from tests.servers.chaos import Chaos
from tests.servers.github import GitHub
from tests.servers.hub import Hub
from tests.servers.liar import Liar
from tests.servers.moto import Moto
from tests.servers.nginx import Nginx
from tests.servers.ports import MissingProgramError
from tests.servers.rclone import Rclone
from tests.servers.recording import RecordingServer
from tests.servers.s3 import S3Server
from tests.servers.tls import certificate

__all__ = [
    "bucket",
    "ceph",
    "github",
    "http",
    "hub",
    "hub_only",
    "moto",
    "rclone",
    "recording_server",
    "server",
    "start_chaos",
    "start_liar",
    "start_nginx",
    "start_recording",
    "tls",
]


@pytest.fixture
def http() -> Iterator[urllib3.PoolManager]:
    """A client without retries and without a look at the environment."""
    with urllib3.PoolManager(timeout=5, retries=False) as pool:
        yield pool


@pytest.fixture
def recording_server() -> Iterator[RecordingServer]:
    """A `RecordingServer` with no files yet: put them into its ``files``."""
    with RecordingServer() as server:
        yield server


@pytest.fixture
def github(monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHub]:
    """A `GitHub` with the repository ``org/models``, and its token in the environment."""
    for name in ("GITHUB_TOKEN", "GH_API_BASIC_AUTH"):
        monkeypatch.delenv(name, raising=False)
    with GitHub() as server:
        server.add()
        monkeypatch.setenv("GITHUB_API_URL", server.api_url)
        monkeypatch.setenv("GITHUB_SERVER_URL", server.web.url)
        monkeypatch.setenv("GH_TOKEN", server.token)
        yield server


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A `Hub` without repositories: `Hub.add` them; its options may be set at any time."""
    with Hub() as server:
        yield server


@pytest.fixture
def hub_only(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """A `Hub` that is the user's, who has no token and no file of a hub on this machine."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    return hub


@pytest.fixture
def start_recording() -> Iterator[Callable[..., RecordingServer]]:
    """Start a `RecordingServer`, as often as a test needs."""
    with ExitStack() as stack:
        yield lambda *options, **named: stack.enter_context(RecordingServer(*options, **named))


@pytest.fixture
def start_nginx() -> Iterator[Callable[..., Nginx]]:
    """Start an `Nginx` on a folder, as often as a test needs; skip where there is none."""
    with ExitStack() as stack:

        def start(folder: Path, **options: object) -> Nginx:
            try:
                return stack.enter_context(Nginx(folder, **options))  # type: ignore[arg-type]
            except MissingProgramError as missing:
                pytest.skip(str(missing))

        yield start


@pytest.fixture
def start_chaos() -> Iterator[Callable[..., Chaos]]:
    """Start a `Chaos` proxy before a server's URL, as often as a test needs."""
    with ExitStack() as stack:
        yield lambda *options, **named: stack.enter_context(Chaos(*options, **named))


@pytest.fixture
def start_liar() -> Iterator[Callable[..., Liar]]:
    """Start a `Liar` about some bytes, as often as a test needs."""
    with ExitStack() as stack:
        yield lambda *options, **named: stack.enter_context(Liar(*options, **named))


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A `certificate`: what a client is to trust, and what ``start_recording(tls=...)`` takes."""
    try:
        return certificate(tmp_path_factory.mktemp("tls"))
    except MissingProgramError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """A `Moto` for all tests of a process: each makes a bucket of its own."""
    yield from _serving(Moto)


@pytest.fixture(scope="session")
def rclone() -> Iterator[S3Server]:
    """An `Rclone` for all tests of a process: each makes a bucket of its own."""
    yield from _serving(Rclone)


@pytest.fixture(scope="session")
def ceph() -> Iterator[S3Server]:
    """A `Ceph` for all tests of a process: each makes a bucket of its own."""
    yield from _serving(Ceph)


@pytest.fixture(params=["moto", "rclone", "ceph"])
def server(request: pytest.FixtureRequest) -> S3Server:
    """Each of the servers that speak S3, one after the other."""
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def bucket(server: S3Server) -> str:
    """An empty bucket on `server`."""
    return server.new_bucket()


def _serving(kind: Callable[[], S3Server]) -> Iterator[S3Server]:
    try:
        server = kind()
    except MissingProgramError as missing:
        pytest.skip(str(missing))
    with server:
        yield server
