"""The servers of the tests serve right; else what other tests prove would be in doubt."""

from __future__ import annotations

import gzip
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3

from tests.servers.client import BIG, DATA, get, raw
from tests.servers.nginx import Nginx
from tests.servers.ports import MissingProgramError, program, wait_for
from tests.servers.recording import RecordingServer, Reply


@pytest.mark.parametrize("kind", ["dict", "paths", "folder"])
@pytest.mark.parametrize(
    "case",
    [
        (None, 200, DATA, None),
        ("0-", 206, DATA, "bytes 0-99999/100000"),
        ("10-19", 206, DATA[10:20], "bytes 10-19/100000"),
        ("99990-200000", 206, DATA[-10:], "bytes 99990-99999/100000"),
        ("-5", 206, DATA[-5:], "bytes 99995-99999/100000"),
        ("100000-", 416, b"", "bytes */100000"),
        ("-", 200, DATA, None),
        ("1-2,5-6", 200, DATA, None),
    ],
)
def test_the_recording_server_serves_ranges(start_recording, http, tmp_path, kind, case):
    span, status, expected, named = case
    (tmp_path / "a b").write_bytes(DATA)
    files = {"dict": {"a b": DATA}, "paths": {"a b": tmp_path / "a b"}, "folder": tmp_path}
    reply = get(http, start_recording(files[kind]).url + "/a%20b", span)
    assert (reply.status, reply.data) == (status, expected)
    assert reply.headers.get("Content-Range") == named
    assert reply.headers["Content-Length"] == str(len(expected))


def test_the_recording_server_gives_no_range_of_what_has_changed(recording_server, http):
    recording_server.files["a"] = DATA
    url = recording_server.url + "/a"
    etag = get(http, url).headers["ETag"]
    assert get(http, url, "0-9", **{"If-Range": etag}).status == 206
    recording_server.files["a"] = DATA[::-1]
    reply = get(http, url, "0-9", **{"If-Range": etag})
    assert (reply.status, reply.data) == (200, DATA[::-1])


def test_the_recording_server_without_ranges_gives_the_whole(start_recording, http):
    reply = get(http, start_recording({"a": DATA}, ranges=False).url + "/a", "0-9")
    assert (reply.status, reply.data) == (200, DATA)
    assert "Accept-Ranges" not in reply.headers


def test_the_recording_server_records_requests_bytes_and_connections(recording_server, http):
    recording_server.files["a"] = DATA
    get(http, recording_server.url + "/a?x=1", "5-9", Authorization="Bearer t")
    get(http, recording_server.url + "/nothing")
    http.request("HEAD", recording_server.url + "/a")
    first, second, third = recording_server.requests
    assert (first.method, first.path, first.name) == ("GET", "/a?x=1", "a")
    assert (first.range, first.authorization) == ("bytes=5-9", "Bearer t")
    assert (first.status, first.bytes_sent) == (206, 5)
    assert (second.status, second.range, second.authorization) == (404, None, None)
    assert (third.method, third.status, third.bytes_sent) == ("HEAD", 200, 0)
    assert recording_server.connections == 1
    assert recording_server.bytes_sent == 5 + second.bytes_sent
    recording_server.reset()
    assert (recording_server.requests, recording_server.connections) == ([], 0)


def test_the_recording_server_counts_right_with_many_clients(recording_server):
    recording_server.files["a"] = DATA
    pool = urllib3.PoolManager(maxsize=8, block=True, timeout=10)
    with pool as http, ThreadPoolExecutor(8) as threads:
        replies = threads.map(lambda _: get(http, recording_server.url + "/a"), range(100))
        assert all(reply.data == DATA for reply in replies)
    assert recording_server.bytes_sent == 100 * len(DATA)
    assert len(recording_server.requests) == 100
    assert recording_server.connections <= 8


def test_the_recording_server_sees_where_a_client_stops(recording_server):
    recording_server.files["a"] = BIG
    raw(recording_server.url + "/a", 1000)
    time.sleep(0.05)
    assert 1000 <= recording_server.bytes_sent < len(BIG) // 2


def test_a_hook_answers_single_requests(recording_server, http):
    answers = iter(
        [
            Reply(503, {"Retry-After": "1"}),
            Reply.redirect("/b"),
            Reply(body=iter([b"ab", b"c"])),
            Reply(200, {"Content-Length": "100"}, b"short", close=True),
        ]
    )
    recording_server.files["a"] = DATA
    recording_server.before = lambda record: next(answers, None)
    url = recording_server.url + "/a"
    assert get(http, url).headers["Retry-After"] == "1"
    assert get(http, url).headers["Location"] == "/b"
    chunked = get(http, url)
    assert (chunked.headers["Transfer-Encoding"], chunked.data) == ("chunked", b"abc")
    with pytest.raises(urllib3.exceptions.ProtocolError, match="IncompleteRead"):
        get(http, url)
    assert get(http, url).data == DATA
    assert [record.status for record in recording_server.requests] == [503, 302, 200, 200, 200]


def test_the_recording_server_reads_what_is_sent_to_it(recording_server, http):
    recording_server.before = lambda record: Reply(201) if record.method == "PUT" else None
    assert http.request("PUT", recording_server.url + "/a", body=DATA).status == 201
    assert http.request("DELETE", recording_server.url + "/a").status == 405
    assert recording_server.requests[0].body == DATA
    assert recording_server.connections == 1


def test_the_recording_server_drops_connections_and_leaves_nothing(http):
    before = threading.active_count()
    with RecordingServer({"a": DATA}) as server:
        get(http, server.url + "/a")
        server.drop()
        time.sleep(0.05)
        get(http, server.url + "/a")
        assert server.connections == 2
        port = server.port
    assert not wait_for(port, 0.05)
    time.sleep(0.05)
    assert threading.active_count() <= before


def test_the_recording_server_speaks_tls(start_recording, http, tls):
    trusted, context = tls
    server = start_recording({"a": DATA}, tls=context)
    with urllib3.PoolManager(ca_certs=str(trusted), timeout=5, retries=False) as trusting:
        assert get(trusting, server.url + "/a", "1-3").data == DATA[1:4]
    with pytest.raises(urllib3.exceptions.SSLError):
        get(http, server.url + "/a")


@pytest.fixture
def nginx(start_nginx, tmp_path) -> Nginx:
    (tmp_path / "a b").write_bytes(DATA)
    return start_nginx(tmp_path, limit_rate=80_000, redirect_to="http://127.0.0.1:9/x/")


def test_nginx_serves_with_and_without_ranges(nginx, http):
    plain = get(http, nginx.url("a b"), "5-9")
    assert (plain.status, plain.data) == (206, DATA[5:10])
    assert get(http, nginx.url("a b"), "100000-").status == 416
    whole = get(http, nginx.url("a b", "no-ranges"), "5-9")
    assert (whole.status, whole.data) == (200, DATA)
    assert get(http, nginx.url("none")).status == 404


def test_nginx_redirects(nginx, http):
    def place(kind: str) -> tuple[int, str]:
        reply = get(http, nginx.url("a b", kind))
        return reply.status, reply.headers["Location"]

    assert place("found") == (302, nginx.url("a b"))
    assert place("moved") == (301, "/plain/a%20b")
    assert place("away") == (302, "http://127.0.0.1:9/x/a%20b")
    assert place("loop") == (302, nginx.url("a b", "loop"))
    assert http.request("GET", nginx.url("a b", "found"), retries=3).data == DATA


def test_nginx_asks_for_a_password(nginx, http):
    url = nginx.url("a b", "auth")
    assert get(http, url).status == 401
    for password, status in ((nginx.password, 206), ("wrong", 401)):
        headers = urllib3.make_headers(basic_auth=f"{nginx.user}:{password}")
        assert get(http, url, "0-4", **headers).status == status


def test_nginx_is_busy_until_it_is_not(nginx, http):
    url = nginx.url("a b", "busy")
    reply = get(http, url)
    assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
    nginx.busy = False
    assert get(http, url, "0-4").data == DATA[:5]


def test_nginx_compresses_for_those_who_accept_it(nginx, http):
    url = nginx.url("a b", "gzip")
    packed = get(http, url, **{"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.data) == DATA
    assert get(http, url).data == DATA


def test_nginx_is_slow_where_it_should_be(nginx, http):
    begin = time.monotonic()
    assert get(http, nginx.url("a b", "slow")).data == DATA
    assert time.monotonic() - begin > 0.1  # 0.25 s are expected


def test_nginx_logs_requests_and_bytes(nginx, http):
    get(http, nginx.url("a b"), "5-9", Authorization='Bearer "t"')
    get(http, nginx.url("a b"))
    first, second = nginx.log()
    assert (first.method, first.path, first.status) == ("GET", "/plain/a%20b", 206)
    assert (first.range, first.authorization) == ("bytes=5-9", 'Bearer "t"')
    assert (first.bytes_sent, second.bytes_sent) == (5, len(DATA))
    assert first.connection == second.connection
    assert first.wire_bytes > 5
    nginx.reset()
    assert nginx.log() == []
    get(http, nginx.url("a b"))
    assert [line.bytes_sent for line in nginx.log()] == [len(DATA)]


def test_nginx_leaves_nothing(tmp_path, http):
    (tmp_path / "a").write_bytes(DATA)
    try:
        nginx = Nginx(tmp_path, workers=2)
    except MissingProgramError as missing:
        pytest.skip(str(missing))
    with nginx:
        get(http, nginx.url("a"))
    assert not nginx._home.exists()
    assert (tmp_path / "a").exists()
    assert not wait_for(nginx.port, 0.05)
    with pytest.raises(ProcessLookupError):
        os.killpg(nginx.pid, 0)


def test_a_missing_program_is_named():
    with pytest.raises(MissingProgramError, match=r"no-such.* \(apt-get install some-package\)"):
        program("no-such-program", "some-package")
