"""The servers that misbehave do it as told: the proxy with faults, and the liar."""

from __future__ import annotations

import gzip
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3

from tests.servers.chaos import Chaos
from tests.servers.client import BIG, DATA, get, raw
from tests.servers.liar import LIES, Liar
from tests.servers.ports import HOST, closed_port


@pytest.fixture
def chaos(recording_server, start_chaos) -> Chaos:
    recording_server.files.update({"a": DATA, "big": BIG})
    return start_chaos(recording_server.url + "/a")


def test_without_faults_the_proxy_changes_nothing_and_counts(chaos, http):
    for _ in range(3):
        assert get(http, chaos.url).data == DATA
    counts = chaos.counts()
    assert (counts.connections, counts.requests) == (1, 3)
    assert 3 * len(DATA) < counts.bytes_down < 3 * len(DATA) + 2000
    assert 0 < counts.bytes_up < 2000
    chaos.reset()
    assert chaos.counts().bytes_down == 0


@pytest.mark.parametrize("reset", [False, True])
def test_the_proxy_cuts_after_so_many_bytes(chaos, http, reset):
    chaos.set(cut_after=5000, reset=reset)
    what = "ConnectionResetError" if reset else "IncompleteRead"
    with pytest.raises(urllib3.exceptions.ProtocolError, match=what):
        get(http, chaos.url)
    assert chaos.counts().bytes_down == 5000


def test_the_proxy_stalls_and_notices_that_the_client_left(chaos, recording_server):
    chaos.set(stall_after=5000)
    begin = time.monotonic()
    head, body = raw(chaos.via(recording_server.url + "/big"), len(BIG), seconds=0.2)
    assert len(head) + 4 + len(body) == 5000
    assert time.monotonic() - begin >= 0.2
    end = time.monotonic() + 5
    while recording_server._open and time.monotonic() < end:
        time.sleep(0.01)
    assert not recording_server._open


def test_the_proxy_flips_one_bit(chaos):
    head, body = raw(chaos.url, len(DATA))
    assert body == DATA
    at = len(head) + 4 + 70_000
    chaos.set(flip_at=at)
    flipped = raw(chaos.url, len(DATA))[1]
    assert [i for i, (one, two) in enumerate(zip(DATA, flipped, strict=True)) if one != two] == [
        70_000
    ]
    assert flipped[70_000] ^ DATA[70_000] == 1


def test_faults_are_for_the_first_connections_only(chaos, http):
    chaos.set(refuse=True, first=2)
    for _ in range(2):
        with pytest.raises(urllib3.exceptions.HTTPError):
            get(http, chaos.url)
    assert get(http, chaos.url).data == DATA


def test_latency_is_added_to_each_request_of_a_connection(chaos, http):
    chaos.set(latency=0.05)
    begin = time.monotonic()
    for _ in range(4):
        assert get(http, chaos.url).data == DATA
    assert 0.2 <= time.monotonic() - begin < 0.6
    assert chaos.counts().connections == 1


def test_latencies_of_many_connections_pass_at_the_same_time(chaos):
    chaos.set(latency=0.1)
    pool = urllib3.PoolManager(maxsize=16, block=True, timeout=10)
    with pool as http, ThreadPoolExecutor(16) as threads:
        begin = time.monotonic()
        assert all(threads.map(lambda _: get(http, chaos.url).data == DATA, range(32)))
    assert 0.2 <= time.monotonic() - begin < 1.6  # 3.2 s one after the other
    assert chaos.counts().requests == 32


def test_a_delay_is_added_to_each_connection_once(chaos, http):
    chaos.set(delay=0.15)
    begin = time.monotonic()
    get(http, chaos.url)
    get(http, chaos.url)
    assert 0.15 <= time.monotonic() - begin < 0.3


def test_the_proxy_limits_the_rate(chaos, http):
    chaos.set(rate=400_000)
    begin = time.monotonic()
    assert get(http, chaos.url).data == DATA
    assert 0.2 <= time.monotonic() - begin < 1


def test_open_connections_keep_their_faults_until_they_are_dropped(chaos, http):
    assert get(http, chaos.url).data == DATA
    chaos.set(refuse=True)
    assert get(http, chaos.url).data == DATA
    chaos.drop()
    with pytest.raises(urllib3.exceptions.HTTPError):
        get(http, chaos.url)
    chaos.clear()
    assert get(http, chaos.url).data == DATA


def test_the_proxy_before_nothing_resets(start_chaos, http):
    with closed_port() as port, pytest.raises(urllib3.exceptions.HTTPError):
        get(http, start_chaos(f"http://{HOST}:{port}/").url)


def test_a_fault_that_is_none_is_refused(chaos):
    with pytest.raises(TypeError):
        chaos.set(cut=5)


@pytest.fixture
def liar(start_liar) -> Liar:
    return start_liar(DATA, wrong_from=15, drip_seconds=0.05)


# What a range of 10-19 is answered with: the status, what the head has, and the body.
TOLD = {
    "length-too-large": (206, "Content-Length: 20", DATA[10:20]),
    "length-too-small": (206, "Content-Length: 5", DATA[10:20]),
    "length-huge": (206, f"/{1 << 60}", None),
    "length-garbage": (200, "Content-Length: plenty", DATA),
    "two-lengths": (200, "Content-Length: 100000\r\nContent-Length: 7", DATA),
    "range-shifted": (206, "bytes 11-20/100000", DATA[10:20]),
    "range-other-total": (206, "bytes 10-19/101000", DATA[10:20]),
    "range-unnamed": (206, "Content-Length: 10", DATA[10:20]),
    "range-ignored": (206, "bytes 10-19/100000", DATA),
    "header-huge": (206, "bytes 10-19/100000", DATA[10:20]),
    "html": (200, "text/html", None),
    "gzip-anyway": (200, "Content-Encoding: gzip", gzip.compress(DATA, 1)[:4]),
    "redirect-loop": (302, "Location: /redirect-loop/model.safetensors", b""),
    "redirect-file": (302, "Location: file:///etc/passwd", b""),
    "endless-body": (200, "Connection: close", bytes(range(256))),
    "endless-chunks": (200, "Transfer-Encoding: chunked", b"10000\r\n" + bytes(range(256))),
    "endless-gzip": (200, "Content-Encoding: gzip", None),
}


@pytest.mark.parametrize("lie", TOLD)
def test_the_liar_lies(liar, lie):
    status, named, expected = TOLD[lie]
    head, body = raw(liar.url(lie), 100 if expected is None else len(expected), 0.2, "10-19")
    assert head.decode().startswith(f"HTTP/1.1 {status} ")
    assert named in head.decode()
    if expected is not None:
        assert body == expected
    assert [(asked.lie, asked.range) for asked in liar.requests] == [(lie, "bytes=10-19")]


def test_the_liar_sends_wrong_bytes_in_the_right_place(liar):
    body = raw(liar.url("wrong-bytes"), 10, span="10-19")[1]
    assert body[:5] == DATA[10:15]
    assert all(wrong == right ^ 1 for wrong, right in zip(body[5:], DATA[15:20], strict=True))


def test_the_liar_claims_a_huge_header(liar):
    assert raw(liar.url("header-huge"), 8)[1] == (1 << 60).to_bytes(8, "little")


def test_the_liar_claims_a_huge_length(liar):
    assert f"Content-Length: {1 << 60}" in raw(liar.url("length-huge"), 1)[0].decode()


def test_the_liar_packs_much_into_little(liar):
    body = raw(liar.url("endless-gzip"), 50_000)[1]
    assert len(zlib.decompressobj(31).decompress(body)) > 20_000_000


@pytest.mark.parametrize("lie", ["endless-body", "endless-chunks", "endless-gzip", "length-huge"])
def test_the_liar_knows_how_much_a_client_took(liar, lie):
    raw(liar.url(lie), 100_000)
    time.sleep(0.05)
    assert 100_000 <= liar.sent(lie) < 8 << 20
    assert liar.sent() == liar.sent(lie)


def test_the_liar_ends_the_endless_at_its_cap(start_liar):
    liar = start_liar(DATA, "endless-body", cap=200_000)
    assert len(raw(liar.url(), 1 << 20)[1]) == liar.sent() <= 200_000


def test_the_liar_never_ends_its_headers(liar):
    head, body = raw(liar.url("endless-headers"), 1)
    assert len(head) >= 1 << 20
    assert body == b""


def test_the_liar_drips_and_is_silent_and_hangs_up(liar):
    assert 1 <= len(raw(liar.url("drip"), 100, 0.2)[1]) <= 5
    assert raw(liar.url("silence"), 1, 0.1) == (b"", b"")
    begin = time.monotonic()
    assert raw(liar.url("hangup"), 1) == (b"", b"")
    assert time.monotonic() - begin < 2
    assert not raw(liar.url("garbage"), 1)[0].startswith(b"HTTP")


def test_the_liar_has_a_chunk_of_less_than_nothing(liar):
    head, body = raw(liar.url("chunk-negative"), 14)
    assert b"Transfer-Encoding: chunked" in head
    assert body == b"-1\r\n" + DATA[:10]


def test_every_lie_is_tested():
    tested = {"wrong-bytes", "endless-headers", "drip", "silence", "hangup", "garbage"}
    tested.add("chunk-negative")
    assert set(LIES) == set(TOLD) | tested
