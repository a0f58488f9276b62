"""The transport over http(s), against servers that behave, that fail, and that lie."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate.errors import FormatError, MlstateError, NoRangesError, OfflineError, TransportError
from mlstate.transport import Resource, Stream, Transports
from mlstate.transport.urls import Url
from tests.servers.liar import LIES
from tests.servers.ports import closed_port
from tests.servers.recording import Reply, serve

CONTENT = bytes(range(256)) * 800
SIGNATURE = "X-Amz-Signature=c0ffee"


@pytest.fixture
def web():
    with Transports(read_timeout=5) as transports:
        yield transports


@pytest.fixture
def hasty():
    with Transports(
        connect_timeout=2, read_timeout=0.3, low_speed=1000, low_speed_seconds=0.4
    ) as transports:
        yield transports


def read(resource, start=0, stop=None, size=1 << 16):
    with resource.read(start, stop) as stream:
        data = b"".join(iter(lambda: stream.read(size), b""))
        assert stream.length in (None, len(data))
    return data


def outcome_of(call):
    try:
        return call()
    except TransportError as error:
        return error


def failure(resource, start=0, stop=None):
    with pytest.raises(TransportError) as caught:
        read(resource, start, stop)
    assert caught.value.path == resource.address
    return caught.value


# Files and ranges


def test_a_file_is_read_whole_and_in_ranges_over_one_connection(web, start_nginx, tmp_path):
    (tmp_path / "a b.bin").write_bytes(CONTENT)
    nginx = start_nginx(tmp_path)
    resource = web.open(nginx.url("a b.bin"))
    assert isinstance(resource, Resource)
    assert read(resource) == CONTENT
    assert read(resource, 1000, 50_000, size=777) == CONTENT[1000:50_000]
    assert read(resource, 204_000) == CONTENT[204_000:]
    with resource.read(5, 6) as stream:
        assert isinstance(stream, Stream)
        assert (stream.length, stream.total) == (1, len(CONTENT))
        assert stream.read(10) == CONTENT[5:6]
        assert stream.read(10) == stream.read(10) == b""
    assert resource.size() == len(CONTENT)
    served = nginx.log()
    assert [entry.status for entry in served] == [200, 206, 206, 206]  # the size was known
    assert len({entry.connection for entry in served}) == 1


@pytest.mark.parametrize("kind", ["plain", "no-ranges", "found"])
def test_the_size_is_asked_once(web, start_nginx, tmp_path, kind):
    (tmp_path / "a").write_bytes(CONTENT)
    (tmp_path / "empty").write_bytes(b"")
    nginx = start_nginx(tmp_path)
    for name, size in (("a", len(CONTENT)), ("empty", 0)):
        resource = web.open(nginx.url(name, kind))
        assert resource.size() == resource.size() == size
        assert read(resource) == (tmp_path / name).read_bytes()
    assert len(nginx.log()) == (6 if kind == "found" else 4)


def test_a_size_that_the_server_does_not_say_is_none(web, recording_server):
    recording_server.before = lambda record: Reply(body=iter([b"ab", b"c"]))
    resource = web.open(recording_server.url + "/x")
    assert resource.size() is None
    assert resource.size() is None
    assert len(recording_server.requests) == 1
    with resource.read() as stream:
        assert (stream.length, stream.total) == (None, None)
    assert read(resource) == b"abc"


def test_a_chunked_range_is_read_to_its_length_and_no_further(web, recording_server):
    headers = {"Content-Range": "bytes 2-5/9"}
    for body, outcome in (
        ([b"cd", b"ef"], b"cdef"),
        ([b"cdef", b"g"], "more than"),
        ([b"c"], "ea"),
    ):
        recording_server.before = lambda record, body=body: Reply(206, headers, iter(body))
        resource = web.open(recording_server.url + "/x")
        if isinstance(outcome, bytes):
            assert read(resource, 2, 6) == outcome
        else:
            assert outcome in str(failure(resource, 2, 6))


def test_a_server_without_ranges_is_not_drained(web, start_nginx, tmp_path):
    with (tmp_path / "big").open("wb") as file:
        file.truncate(1 << 30)
    nginx = start_nginx(tmp_path)
    resource = web.open(nginx.url("big", "no-ranges"))
    for start, stop in ((10, 20), (0, 1 << 30), (10, None)):
        with pytest.raises(NoRangesError) as caught:
            read(resource, start, stop)
        assert not caught.value.transient
    assert resource.size() == 1 << 30
    assert sum(entry.bytes_sent for entry in nginx.log()) < 1 << 28


def test_a_stream_that_is_left_early_costs_little_and_disturbs_nothing(web, start_nginx, tmp_path):
    with (tmp_path / "big").open("wb") as file:
        file.truncate(1 << 30)
    nginx = start_nginx(tmp_path)
    resource = web.open(nginx.url("big"))
    with resource.read() as stream:
        assert stream.read(100) == bytes(100)
    assert read(resource, 7, 9) == bytes(2)
    assert sum(entry.bytes_sent for entry in nginx.log()) < 1 << 27


def test_an_empty_range_needs_no_request_and_an_impossible_one_is_refused(web, recording_server):
    resource = web.open(recording_server.url + "/x")
    assert read(resource, 5, 5) == b""
    for start, stop in ((-1, None), (5, 4)):
        with pytest.raises(ValueError, match="not a range"), resource.read(start, stop):
            pass
    assert recording_server.requests == []


def test_a_range_beyond_the_end_is_an_error(web, start_nginx, tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    resource = web.open(start_nginx(tmp_path).url("a"))
    assert failure(resource, 20, 30).status == 416
    assert failure(resource, 10).status == 416
    assert "another range" in failure(resource, 5, 30).message


def test_many_threads_share_the_connections(web, recording_server):
    recording_server.files = {str(number): bytes([number]) * 5000 for number in range(100)}

    def fetch(name):
        return read(web.open(f"{recording_server.url}/{name}"))

    with ThreadPoolExecutor(8) as pool:
        got = dict(
            zip(recording_server.files, pool.map(fetch, recording_server.files), strict=True)
        )
    assert got == recording_server.files
    assert recording_server.connections <= 8


def test_nothing_but_what_is_needed_is_sent(web, recording_server):
    def before(record):
        return Reply(200, {"Set-Cookie": "id=1; Path=/"}, b"abc")

    recording_server.before = before
    for _ in range(2):
        read(web.open(recording_server.url + "/x?a=b%2Fc#part"))
    for request in recording_server.requests:
        assert request.path == "/x?a=b%2Fc"
        assert set(request.headers) == {"host", "accept", "accept-encoding", "user-agent"}
        assert request.headers["accept-encoding"] == "identity"
        assert request.headers["user-agent"].startswith("mlstate")


# Replies that are not what was asked for

WHOLE = {
    "length-too-large": ("ended early|connection broke", True),
    "length-garbage": ("no number", False),
    "two-lengths": ("disagree", False),
    "html": ("a web page came", False),
    "gzip-anyway": ("compresses", False),
    "endless-gzip": ("compresses", False),
    "redirect-loop": ("more than 10 redirects", False),
    "redirect-file": ("cannot be used", False),
    "range-unnamed": ("makes no sense", False),
    "endless-headers": ("connection broke", True),
    "hangup": ("connection broke", True),
    "garbage": ("connection broke", True),
    "silence": ("silent", True),
    "drip": ("too slow", True),
}
RANGE = {
    "length-too-large": ("longer or shorter", False),
    "length-too-small": ("longer or shorter", False),
    "range-shifted": ("another range", False),
    "range-unnamed": ("another range", False),
    "range-ignored": ("longer or shorter", False),
    "endless-body": ("whole file only", False),
    "endless-chunks": ("whole file only", False),
}


@pytest.mark.parametrize("lie", WHOLE)
def test_a_lie_about_a_whole_file_is_found_out(hasty, start_liar, lie):
    liar = start_liar(CONTENT, drip_seconds=0.1)
    error = failure(hasty.open(liar.url(lie)))
    message, transient = WHOLE[lie]
    assert re.search(message, str(error))
    assert error.transient is transient
    assert liar.sent(lie) < 1 << 22


@pytest.mark.parametrize("lie", RANGE)
def test_a_lie_about_a_range_is_found_out(hasty, start_liar, lie):
    liar = start_liar(CONTENT)
    error = failure(hasty.open(liar.url(lie)), 1000, 5000)
    message, transient = RANGE[lie]
    assert message in str(error)
    assert error.transient is transient
    assert liar.sent(lie) < 1 << 22


@pytest.mark.parametrize("lie", LIES)
def test_every_lie_ends_in_an_error_or_in_as_many_bytes_as_were_asked_for(hasty, start_liar, lie):
    liar = start_liar(CONTENT, drip_seconds=0.1, cap=1 << 22)
    resource = hasty.open(liar.url(lie))
    got = outcome_of(lambda: read(resource, 10, 20))
    assert got.path == resource.address if isinstance(got, TransportError) else len(got) == 10


def test_a_length_beyond_all_sense_is_reported_and_costs_nothing(web, start_liar):
    liar = start_liar(CONTENT)
    resource = web.open(liar.url("length-huge"))
    with resource.read() as stream:
        assert stream.length == stream.total == 1 << 60
        assert len(stream.read(1 << 60)) <= 1 << 20
    assert resource.size() == 1 << 60
    assert liar.sent() < 1 << 22


def test_a_reply_after_one_that_was_too_long_is_not_mixed_up_with_its_rest(hasty, start_liar):
    liar = start_liar(CONTENT)
    resource = hasty.open(liar.url("length-too-small"))
    for _ in range(5):
        got = outcome_of(lambda: read(resource))
        # An error only if the rest came too late to be noticed before the next request.
        assert got.transient if isinstance(got, TransportError) else got == CONTENT[: len(got)]


def test_a_web_page_is_fine_where_one_is_asked_for(web, recording_server):
    page = Reply(200, {"Content-Type": "text/html"}, b"<html>")
    recording_server.before = lambda record: page
    assert read(web.open(recording_server.url + "/page.html")) == b"<html>"


def test_a_login_page_behind_a_redirect_is_called_what_it_is(web, start_recording):
    portal = start_recording({"login": b"<html>Please log in"})
    page = Reply(200, {"Content-Type": "text/html"}, b"<html>Please log in")
    portal.before = lambda record: page
    net = start_recording(before=lambda record: Reply.redirect(f"{portal.url}/login?session=1"))
    for range_ in ((0, None), (0, 100)):
        error = failure(web.open(net.url + "/model.safetensors"), *range_)
        assert "a web page came" in error.message
        assert f"{portal.url}/login" in error.found
        assert "session" not in str(error)
        assert "captive portal" in error.remedy
        assert not error.transient


def test_a_network_that_wants_a_login_says_so_itself(web, recording_server):
    recording_server.before = lambda record: Reply(511)
    error = failure(web.open(recording_server.url + "/x"))
    assert "this network wants a login" in error.message
    assert "captive portal" in error.remedy
    assert not error.transient


@pytest.mark.parametrize(
    ("status", "transient", "says"),
    [
        (400, False, "refuses the request"),
        (401, False, "MLSTATE_TOKEN_127_0_0_1"),
        (403, False, "refuses access"),
        (404, False, "no such file"),
        (408, True, "refuses the request"),
        (410, False, "gone"),
        (429, True, "fewer requests"),
        (500, True, "problem"),
        (501, False, "problem"),
        (502, True, "problem"),
        (503, True, "problem"),
        (504, True, "problem"),
        (204, False, "no sense"),
        (304, False, "no sense"),
        (599, False, "HTTP 599"),
    ],
)
def test_a_status_says_whether_to_try_again(web, recording_server, status, transient, says):
    recording_server.before = lambda record: Reply(status, body=b"" if status < 400 else b"why")
    resource = web.open(recording_server.url + "/x")
    for range_ in ((0, None), (1, 2)):
        error = failure(resource, *range_)
        assert error.status == status
        assert error.transient is transient
        assert error.retry_after is None
        assert says in str(error)
    assert recording_server.connections == 1


@pytest.mark.parametrize(
    ("headers", "seconds"), [({"Retry-After": "7"}, 7), ({"RateLimit": '"api";r=0;t=55'}, 55)]
)
def test_the_time_to_wait_is_read(web, recording_server, headers, seconds):
    recording_server.before = lambda record: Reply(503, headers)
    assert failure(web.open(recording_server.url + "/x")).retry_after == seconds


@pytest.mark.parametrize(("ahead", "least", "most"), [(1000, 900, 1001), (-1000, 0, 0)])
def test_a_time_to_wait_may_be_a_date(web, recording_server, ahead, least, most):
    # The date is made here, not where tests are collected: that may have been minutes ago.
    date = formatdate(time.time() + ahead, usegmt=True)
    recording_server.before = lambda record: Reply(503, {"Retry-After": date})
    assert least <= failure(web.open(recording_server.url + "/x")).retry_after <= most


@pytest.mark.parametrize("value", ["soon", "-1", "9" * 30, "Mon, 99 Foo 2000"])
def test_a_time_to_wait_that_makes_no_sense_is_none(web, recording_server, value):
    recording_server.before = lambda record: Reply(503, {"Retry-After": value})
    assert failure(web.open(recording_server.url + "/x")).retry_after is None


@pytest.mark.parametrize(
    ("first", "second", "changed"),
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}, True),
        ({"ETag": '"1"'}, {"ETag": '"1"', "Last-Modified": "x"}, False),
        ({"ETag": 'W/"1"'}, {"ETag": 'W/"2"'}, False),
        ({"ETag": '"1"', "Last-Modified": "x"}, {"ETag": '"1"', "Last-Modified": "y"}, False),
        ({"Last-Modified": "x"}, {"Last-Modified": "y"}, True),
        ({}, {"ETag": '"1"', "Last-Modified": "y"}, False),
    ],
)
def test_a_file_that_changes_between_two_replies_is_an_error(
    web, recording_server, first, second, changed
):
    headers = iter([first, second])
    content = {"Content-Range": "bytes 0-2/9"}
    recording_server.before = lambda record: Reply(206, {**content, **next(headers)}, b"abc")
    resource = web.open(recording_server.url + "/x")
    read(resource, 0, 3)
    if changed:
        error = failure(resource, 0, 3)
        assert "changed" in str(error)
        assert not error.transient
    else:
        read(resource, 0, 3)


def test_another_size_than_before_is_a_change(web, recording_server):
    totals = iter([9, 10])
    recording_server.before = lambda record: Reply(
        206, {"Content-Range": f"bytes 0-2/{next(totals)}"}, b"abc"
    )
    resource = web.open(recording_server.url + "/x")
    read(resource, 0, 3)
    assert "changed" in str(failure(resource, 0, 3))


# Connections that break


@pytest.mark.parametrize(
    "faults",
    [
        {"cut_after": 50_000},
        {"cut_after": 50_000, "reset": True},
        {"cut_after": 0},
        {"refuse": True},
        {"stall_after": 50_000},
        {"stall_after": 0},
        {"rate": 500},
    ],
    ids=str,
)
def test_a_connection_that_breaks_or_stalls_is_a_transient_error(
    hasty, recording_server, start_chaos, faults
):
    recording_server.files = {"x": CONTENT}
    chaos = start_chaos(recording_server.url, **faults)
    resource = hasty.open(chaos.url + "/x")
    for range_ in ((0, None), (1, 150_000)):
        begin = time.monotonic()
        assert failure(resource, *range_).transient
        assert time.monotonic() - begin < 5
    chaos.clear()
    assert read(resource) == CONTENT


@pytest.mark.parametrize("faults", [{"cut_after": 100_000}, {"stall_after": 100_000}], ids=str)
def test_what_came_before_a_break_is_given_before_it_is_told(
    hasty, recording_server, start_chaos, faults
):
    recording_server.files = {"x": CONTENT}
    chaos = start_chaos(recording_server.url, **faults)
    came = bytearray()

    def read_on(stream):
        while data := stream.read(1 << 20):
            came.extend(data)

    with hasty.open(chaos.url + "/x").read() as stream, pytest.raises(TransportError):
        read_on(stream)
    assert came
    assert came == CONTENT[: len(came)]
    assert len(came) < len(CONTENT)


def test_a_closed_port_and_an_unknown_host_are_errors(web):
    with closed_port() as port:
        error = failure(web.open(f"http://127.0.0.1:{port}/x"))
    assert error.transient
    assert "cannot be reached" in str(error)
    assert "host name" in str(failure(web.open("http://nowhere.invalid/x")))


def test_headers_that_drip_end_at_the_timeout(hasty):
    listener = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection, _ = listener.accept()
        with connection:
            try:
                for letter in b"HTTP/1.1 200 OK\r\n" + b"A" * 1000:
                    connection.sendall(bytes([letter]))
                    time.sleep(0.02)
            except OSError:
                pass

    thread = threading.Thread(target=drip)
    thread.start()
    begin = time.monotonic()
    assert failure(hasty.open(f"http://127.0.0.1:{listener.getsockname()[1]}/x")).transient
    assert time.monotonic() - begin < 3
    thread.join(10)
    listener.close()


def test_a_reader_that_takes_its_time_is_not_the_servers_fault(hasty, recording_server):
    recording_server.files = {"x": CONTENT}
    with hasty.open(recording_server.url + "/x").read() as stream:
        data = b""
        while piece := stream.read(100_000):
            data += piece
            time.sleep(0.5)
    assert data == CONTENT


def test_a_stream_of_a_silent_server_is_left_at_once(web, recording_server, start_chaos):
    recording_server.files = {"x": CONTENT[:9000]}
    chaos = start_chaos(recording_server.url, stall_after=5000)
    begin = time.monotonic()
    with web.open(chaos.url + "/x").read() as stream:
        assert stream.read(10) == CONTENT[:10]
    assert time.monotonic() - begin < 3


# Redirects


@pytest.mark.parametrize("kind", ["found", "moved"])
def test_where_a_redirect_leads_is_found_out_once(web, start_nginx, tmp_path, kind):
    (tmp_path / "a b.bin").write_bytes(CONTENT)
    nginx = start_nginx(tmp_path)
    resource = web.open(nginx.url("a b.bin", kind))
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda at: read(resource, at, at + 100), range(0, 4000, 100)))
    assert b"".join(parts) == CONTENT[:4000]
    assert [entry.status for entry in nginx.log()].count(206) == 40
    assert len(nginx.log()) == 41
    assert resource.address == nginx.url("a b.bin", kind)


def test_the_body_of_a_redirect_or_an_error_is_not_read_to_its_end(web, recording_server):
    recording_server.files = {"x": b"abc"}
    headers = {"Location": "/x", "Content-Length": str(1 << 40)}
    body = (bytes(1 << 16) for _ in range(1 << 24))
    for status in (302, 404):
        for drop in ({}, {"Content-Length": None}):
            named = {**headers, **drop}
            reply = Reply(status, {k: v for k, v in named.items() if v is not None}, body)
            recording_server.before = lambda record, reply=reply: (
                reply if record.path == "/start" else None
            )
            got = outcome_of(lambda: read(web.open(recording_server.url + "/start")))
            assert got == b"abc" if status == 302 else got.status == 404
    assert recording_server.bytes_sent < 1 << 26


def test_the_body_of_a_redirect_that_does_not_come_is_not_waited_for(start_recording):
    ended = threading.Event()

    def never():
        ended.wait(60)
        yield b""

    headers = {"Location": "/x", "Content-Length": "10"}
    server = start_recording(
        {"x": b"abc"}, lambda r: None if r.path == "/x" else Reply(302, headers, never())
    )
    begun = time.monotonic()
    with Transports(read_timeout=60) as web:
        assert read(web.open(server.url + "/start")) == b"abc"
    assert time.monotonic() - begun < 30
    ended.set()


def test_a_redirect_may_have_letters_of_any_kind(web, recording_server):
    recording_server.files = {"Gewürz ß.bin": b"abc"}
    raw = "/Gewürz ß.bin".encode().decode("latin-1")
    recording_server.before = lambda record: (
        Reply.redirect(raw) if record.path == "/start" else None
    )
    assert read(web.open(recording_server.url + "/start")) == b"abc"


class SignedFiles:
    """A server whose /x leads to a signed address on another, which expires."""

    def __init__(self, start_recording):
        self.good = 0
        self.never = False
        self.door = start_recording(before=self.lead)
        self.store = start_recording(before=self.give)
        self.url = self.door.url + "/x"

    def lead(self, record):
        return Reply.redirect(f"{self.store.url}/data?{SIGNATURE}{self.good}")

    def give(self, record):
        if self.never or not record.path.endswith(f"{SIGNATURE}{self.good}"):
            return Reply(403, body=b"expired")
        return serve(record, CONTENT)


def test_a_signed_address_is_used_until_it_expires_and_then_resolved_again(web, start_recording):
    server = SignedFiles(start_recording)
    resource = web.open(server.url)
    for _ in range(3):
        assert read(resource, 5, 10) == CONTENT[5:10]
    assert len(server.door.requests) == 1
    server.good += 1
    assert read(resource, 5, 10) == CONTENT[5:10]
    assert len(server.door.requests) == 2
    server.never = True
    assert failure(resource, 5, 10).status == 403
    assert len(server.door.requests) == 3
    assert len(server.store.requests) == 7


def test_a_signature_is_shown_nowhere(web, start_recording, start_chaos, caplog):
    caplog.set_level(logging.DEBUG)
    server = SignedFiles(start_recording)
    resource = web.open(server.url)
    read(resource)
    chaos = start_chaos(server.store.url, cut_after=1000)
    signed = f"{chaos.url}/data?{SIGNATURE}0"
    errors = []
    for spoil in ("never", "cut", "refuse", "range", "close"):
        if spoil == "never":
            server.never = True
            target = resource
        else:
            server.never = False
            target = web.open(signed)
            chaos.set(**{"cut": {"cut_after": 1000}, "refuse": {"refuse": True}}.get(spoil, {}))
            chaos.drop()  # what is open
            if spoil == "close":
                chaos.close()
        assert SIGNATURE not in repr(target)
        assert SIGNATURE not in target.address
        with pytest.raises(TransportError) as caught:
            read(target, *((5, 10**9) if spoil == "range" else (0, None)))
        errors += [str(caught.value), repr(caught.value)]
        errors += traceback.format_exception(caught.value)
    assert "c0ffee" not in "".join(errors)
    assert any("/data" in record.getMessage() for record in caplog.records)  # urllib3 did log
    assert "c0ffee" not in caplog.text


def test_urllib3_keeps_logging_whole_addresses_for_others(web, recording_server, caplog):
    import urllib3

    caplog.set_level(logging.DEBUG)
    read(web.open(recording_server_file(recording_server)))
    with urllib3.PoolManager() as pool:
        pool.request("GET", recording_server.url + "/x?other=1")
    assert "/x?other=1" in caplog.text


def recording_server_file(server):
    server.files = {"x": b"abc"}
    return server.url + "/x"


def test_a_redirect_never_leads_from_https_to_http(web, start_recording, tls, monkeypatch):
    certificate, context = tls
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    plain = start_recording({"x": CONTENT})
    secure = start_recording({"x": CONTENT}, tls=context)
    assert read(web.open(secure.url + "/x")) == CONTENT
    secure.before = lambda record: Reply.redirect(f"{plain.url}/x?{SIGNATURE}")
    error = failure(web.open(secure.url + "/x"))
    assert "https to http" in str(error)
    assert SIGNATURE not in str(error)
    assert not error.transient
    plain.before = lambda record: Reply.redirect(secure.url + "/y")
    secure.before = lambda record: serve(record, CONTENT)
    assert read(web.open(plain.url + "/x")) == CONTENT
    assert len(plain.requests) == 1


def test_a_certificate_that_nobody_vouches_for_is_refused(web, start_recording, tls):
    secure = start_recording({"x": CONTENT}, tls=tls[1])
    error = failure(web.open(secure.url + "/x"))
    assert not error.transient
    assert "REQUESTS_CA_BUNDLE" in str(error)
    assert secure.requests == []


def test_certificates_that_are_not_there_are_named(web, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    error = failure(web.open("https://127.0.0.1:9/x"))
    assert "REQUESTS_CA_BUNDLE" in str(error)
    assert not error.transient


@pytest.mark.parametrize(
    "location",
    [None, "ftp://127.0.0.1/x", "http://user:secret@127.0.0.1/", "http://[::1", "data:,x"],
)
def test_a_redirect_to_nothing_that_can_be_read_is_an_error(web, recording_server, location):
    headers = {} if location is None else {"Location": location}
    recording_server.before = lambda record: Reply(302, headers)
    error = failure(web.open(recording_server.url + "/x"))
    assert "redirect" in str(error)
    assert "secret" not in str(error)
    assert len(recording_server.requests) == 1


def test_other_servers_have_other_etags(web, start_recording):
    stores = [start_recording({"x": CONTENT}), start_recording()]
    stores[1].before = lambda record: serve(record, CONTENT, '"its own"')
    target = [stores[0]]
    door = start_recording(before=lambda record: Reply.redirect(target[0].url + "/x"))
    resource = web.open(door.url + "/x")
    assert read(resource, 0, 9) == CONTENT[:9]
    stores[0].files = {}
    target[0] = stores[1]
    assert read(resource, 9, 20) == CONTENT[9:20]


# Proxies


def test_the_proxy_of_the_environment_is_used(web, start_recording, monkeypatch):
    proxy, direct = start_recording({"x": b"by proxy"}), start_recording({"x": b"direct"})
    monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//name:secret@"))
    monkeypatch.setenv("http_proxy", os.environ["HTTP_PROXY"])
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert read(web.open("http://models.invalid/x?a=b")) == b"by proxy"
    assert read(web.open(direct.url + "/x")) == b"direct"
    [request] = proxy.requests
    assert request.path == "http://models.invalid/x?a=b"
    assert request.headers["proxy-authorization"].startswith("Basic ")
    assert request.authorization is None


def test_a_proxy_that_is_not_there_is_an_error_without_its_password(web, monkeypatch):
    with closed_port() as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://name:secret@127.0.0.1:{port}")
        monkeypatch.setenv("https_proxy", os.environ["HTTPS_PROXY"])
        error = failure(web.open("https://models.invalid/x"))
    assert error.transient
    assert "proxy" in str(error)
    text = "".join(traceback.format_exception(error))
    assert "secret" not in text


def test_a_proxy_that_refuses_is_an_error(web, start_recording, monkeypatch):
    def before(record):
        return Reply(407)

    proxy = start_recording(before=before)
    monkeypatch.setenv("https_proxy", proxy.url)
    monkeypatch.setenv("http_proxy", proxy.url)
    for scheme in ("http", "https"):
        assert "proxy" in str(failure(web.open(f"{scheme}://models.invalid/x")))


def test_a_proxy_that_cannot_be_understood_is_an_error(web, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://name:secret@:x")
    error = failure(web.open("http://models.invalid/x"))
    assert "HTTP_PROXY" in str(error)
    assert "secret" not in "".join(traceback.format_exception(error))


# Opening


def test_nothing_is_opened_offline(recording_server, monkeypatch, tmp_path):
    def refuse(*args, **named):
        raise AssertionError("a socket")

    (tmp_path / "a").write_bytes(b"abc")
    with Transports(offline=True) as web:
        monkeypatch.setattr(socket, "socket", refuse)
        resource = web.open("https://models.invalid/x")
        for call in (resource.size, lambda: read(resource), lambda: read(resource, 1, 2)):
            with pytest.raises(OfflineError) as caught:
                call()
            assert caught.value.path == "https://models.invalid/x"
        assert read(web.open("a", base=tmp_path)) == b"abc"


def test_transports_are_made_without_a_slow_import():
    code = (
        "import sys, mlstate.transport as t; w = t.Transports(); w.open('x'); w.close();"
        "slow = {'requests', 'urllib3', 'torch', 'huggingface_hub', 'ssl'} & set(sys.modules);"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_nothing_is_read_after_closing(recording_server):
    web = Transports()
    resource = web.open(recording_server_file(recording_server))
    read(resource)
    web.close()
    web.close()
    for call in (lambda: read(resource), lambda: web.open(recording_server.url + "/x")):
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.mark.parametrize(
    "address",
    [
        "http://user:secret@host/x",
        "http://:secret@host/x",
        "https://host\\@secret.example/x",
        "http://hóst/x",
        "http://host:port/x",
        "http://host:99999/x",
        "http:///x",
        "http://ho st/x",
        "https://[::1/x",
        "https://ho\nst/secret",
        "ftp://host/x",
        "s3://user:secret@bucket/x",
        "s3://b/x",
        "gs://",
        "az:///x",
        "",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_showing_a_password(web, address):
    with pytest.raises((TransportError, FormatError)) as caught:
        web.open(address)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, MlstateError)


names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]{2,4})?", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


@given(
    scheme=st.sampled_from(["http", "https", "HTTP"]),
    host=names | st.sampled_from(["127.0.0.1", "[::1]", "xn--bcher-kva.example"]),
    port=st.none() | st.integers(1, 65535),
    path=texts.map(lambda text: text.replace("#", "").replace("?", "").replace("\\", "")),
    query=texts.map(lambda text: text.replace("#", "")),
)
def test_a_web_address_is_what_was_written(scheme, host, port, path, query):
    root = f"{scheme.lower()}://{host}"
    number = "" if port is None else f":{port}"
    url = Url.parse(f"{scheme}://{host}{number}/{path}?{query}#part")
    assert Url.parse(url.secret_text) == url
    assert url.shown.startswith(root)
    assert "?" not in url.shown
    assert "?" not in repr(url)
    assert url.target.isascii()
    assert " " not in url.target
    assert url.host == host.strip("[]")
    assert url.port == (port or {"http": 80, "https": 443}[scheme.lower()])


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_transport_error(text):
    for address in (text, "http://" + text):
        try:
            url = Url.parse(address)
        except TransportError:
            continue
        assert Url.parse(url.secret_text) == url
