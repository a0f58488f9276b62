"""A server that gives a little and asks for a pause, again and again, is left for the next one."""

from __future__ import annotations

import random
import time
from threading import Lock

import pytest
import torch

from mlstate.errors import FetchError, TransportError
from mlstate.transport import Retries, Transports, retrying
from tests.servers.recording import Reply, serve
from tests.support.fetching import (
    KEY,
    STORE,
    check_cache,
    manifest_store,
    publish,
    write_manifest,
)

PIECE = 70_000
PATIENT = {"patience": 1.5, "low_speed": 1_000_000}


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"layer{index}": torch.randint(0, 99, (3_000_000,), dtype=torch.int8, generator=generator)
        for index in range(3)
    }
    return publish(tmp_path_factory.mktemp("web"), KEY, tensors)


class Tarpit:
    """Answers each request with 70 KB of the file, and each other one with 503."""

    def __init__(self, server, pause):
        self.pause = pause
        self.folder = server.files
        self.asked = 0
        self._lock = Lock()
        server.before = self

    def __call__(self, request):
        with self._lock:
            self.asked += 1
            refuse = self.asked % 2 == 0
        if self.asked > 400:  # only where nothing ends it
            return Reply(404)
        if refuse:
            return Reply(503, {"Retry-After": self.pause})
        reply = serve(request, self.folder / request.name)
        if reply.status not in (200, 206) or len(reply.body) <= PIECE:
            return reply
        whole = b"".join(bytes(part) for part in reply.body)
        headers = {**reply.headers, "Content-Length": str(len(whole))}
        return Reply(reply.status, headers, whole[:PIECE], close=True)


@pytest.mark.parametrize("kind", ["objects", "file"])
def test_the_next_mirror_brings_what_a_tarpit_does_not(start_recording, state, tmp_path, kind):
    bad, good = start_recording(state.folder), start_recording(state.folder)
    tarpit = Tarpit(bad, "1")
    if kind == "objects":
        places = {"objects": [f"{bad.url}/{STORE}", f"{good.url}/{STORE}"]}
    else:
        places = {"mirrors": [f"{s.url}/model.safetensors" for s in (bad, good)]}
    path = write_manifest(tmp_path / "m.toml", state, **places)
    store = manifest_store(path, tmp_path / "cache", **PATIENT)
    store.fetcher.retries = Retries(5, first=0.05, most=0.05)
    began = time.monotonic()
    store.fetch(KEY)
    assert time.monotonic() - began < 30
    assert tarpit.asked < 400
    assert good.bytes_sent > 0
    check_cache(tmp_path / "cache")


def test_the_only_mirror_is_given_up_with_what_came_and_with_the_setting(
    start_recording, state, tmp_path
):
    bad = start_recording(state.folder)
    tarpit = Tarpit(bad, "1")
    path = write_manifest(tmp_path / "m.toml", state, mirrors=[f"{bad.url}/model.safetensors"])
    store = manifest_store(path, tmp_path / "cache", connections=1, **PATIENT)
    with pytest.raises(FetchError) as caught:
        store.fetch(KEY)
    [(_, reason)] = caught.value.attempts
    assert "MLSTATE_PATIENCE" in reason
    assert " bytes in " in reason
    assert tarpit.asked < 400


def test_a_pause_beyond_the_patience_is_not_waited_for(recording_server):
    recording_server.before = lambda request: Reply(503, {"Retry-After": "120"})
    with Transports(read_timeout=5) as web:
        patience = Transports(patience=60).patience()
        resource = retrying(web.open(recording_server.url + "/x"), Retries(), patience=patience)
        began = time.monotonic()
        with pytest.raises(TransportError, match="not waited for any longer") as caught:
            resource.size()
    assert time.monotonic() - began < 20
    assert "HTTP 503" in str(caught.value)
    assert "0 bytes in" in str(caught.value)
    assert len(recording_server.requests) == 1


def test_the_settings_say_how_patient_one_is(recording_server, monkeypatch):
    monkeypatch.setenv("MLSTATE_PATIENCE", "60")
    recording_server.before = lambda request: Reply(503, {"Retry-After": "120"})
    with Transports() as web, pytest.raises(TransportError, match="not waited for any longer"):
        retrying(web.open(recording_server.url + "/x"), Retries()).size()


def test_a_server_at_a_little_more_than_the_least_speed_is_read_to_the_end(
    recording_server, start_chaos
):
    content = random.Random(0).randbytes(200_000)
    recording_server.files = {"x": content}
    chaos = start_chaos(recording_server.url, rate=50_000)
    with Transports(patience=1, low_speed=20_000, low_speed_seconds=2) as web:
        resource = retrying(web.open(chaos.url + "/x"), Retries(), patience=web.patience())
        with resource.read() as stream:
            assert b"".join(iter(lambda: stream.read(1 << 16), b"")) == content
