"""Redirects from one network into another, and what sees credentials on the way."""

from __future__ import annotations

import socket

import pytest

from mlstate.errors import FormatError, TransportError
from mlstate.limits import Limits
from mlstate.transport import Transports
from mlstate.transport.client import Session
from mlstate.transport.reach import Reach, is_allowed
from mlstate.transport.urls import Url
from mlstate.transport.zones import Zone, most_public, zone_of
from tests.servers.recording import Reply
from tests.support.zones import PRIVATE, PUBLIC, classify

LOOPBACK = "127.0.0.1"
DATA = b"some bytes"


@pytest.fixture
def web():
    with Transports(read_timeout=5, connect_timeout=5, classify=classify) as transports:
        yield transports


def read(resource):
    with resource.read() as stream:
        return b"".join(iter(lambda: stream.read(1 << 16), b""))


@pytest.fixture
def servers(start_recording):
    """Servers by the address that they listen at; each has the file x."""
    return {host: start_recording({"x": DATA}, host=host) for host in (LOOPBACK, PUBLIC, PRIVATE)}


def lead(server, target, path="/start"):
    server.before = lambda request: Reply.redirect(target) if request.path == path else None
    return server.url + path


@pytest.mark.parametrize(
    ("address", "zone"),
    [
        ("93.184.216.34", Zone.PUBLIC),
        ("2606:2800:220:1:248:1893:25c8:1946", Zone.PUBLIC),
        ("10.1.2.3", Zone.PRIVATE),
        ("172.31.0.1", Zone.PRIVATE),
        ("192.168.0.1", Zone.PRIVATE),
        ("100.64.0.1", Zone.PRIVATE),
        ("224.0.0.1", Zone.PRIVATE),
        ("fd00::1", Zone.PRIVATE),
        ("169.254.169.254", Zone.LINK_LOCAL),
        ("fe80::1%eth0", Zone.LINK_LOCAL),
        ("127.0.0.1", Zone.LOOPBACK),
        ("127.9.9.9", Zone.LOOPBACK),
        ("0.0.0.0", Zone.LOOPBACK),
        ("::", Zone.LOOPBACK),
        ("::1", Zone.LOOPBACK),
        ("::ffff:127.0.0.1", Zone.LOOPBACK),
        ("::ffff:10.0.0.1", Zone.PRIVATE),
        ("64:ff9b::a9fe:a9fe", Zone.LINK_LOCAL),
        ("64:ff9b::5db8:d822", Zone.PUBLIC),
        ("2002:a00:1::1", Zone.PRIVATE),
        ("64:ff9b:1::7f00:1", Zone.LOOPBACK),
        ("::ffff:0:10.0.0.1", Zone.PRIVATE),
        ("::169.254.169.254", Zone.LINK_LOCAL),
        ("fec0::1", Zone.PRIVATE),
    ],
)
def test_an_address_is_of_a_zone(address, zone):
    assert zone_of(address) is zone


def test_a_server_that_is_in_two_zones_counts_as_public():
    assert most_public([Zone.LOOPBACK]) is Zone.LOOPBACK
    assert most_public([Zone.LOOPBACK, Zone.PRIVATE]) is Zone.PUBLIC


@pytest.mark.parametrize(
    ("start", "end"), [(PUBLIC, LOOPBACK), (PUBLIC, PRIVATE), (PRIVATE, LOOPBACK)]
)
@pytest.mark.parametrize("known", [False, True])
def test_a_redirect_into_another_network_is_not_followed(web, servers, start, end, known):
    target = servers[end]
    if known:  # a connection that is open is of no use, either
        assert read(web.open(target.url + "/x")) == DATA
        target.reset()
    with pytest.raises(TransportError, match="must not lead") as caught:
        read(web.open(lead(servers[start], target.url + "/x")))
    assert target.requests == []
    assert not caught.value.transient
    assert "MLSTATE_ALLOWED_HOSTS" in caught.value.remedy


def test_a_name_for_this_machine_is_found_out_by_its_address(web, servers, monkeypatch):
    target = servers[LOOPBACK]
    usual = socket.getaddrinfo

    def resolve(host, *rest, **named):
        return usual(LOOPBACK if host == "models.example" else host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for host in ("localhost", "models.example"):
        start = lead(servers[PUBLIC], f"http://{host}:{target.port}/x")
        with pytest.raises(TransportError, match="must not lead"):
            read(web.open(start))
    assert target.requests == []
    assert target.bytes_sent == 0


def test_redirects_within_a_network_and_into_the_internet_are_followed(
    web, servers, start_recording
):
    for start, end in ((PRIVATE, PUBLIC), (LOOPBACK, PUBLIC)):
        assert read(web.open(lead(servers[start], servers[end].url + "/x"))) == DATA
    for host in servers:
        other = start_recording({"x": DATA}, host=host)
        assert read(web.open(lead(servers[host], other.url + "/x"))) == DATA


def test_no_detour_leads_inside(web, servers, start_recording):
    """From a private network into the internet, and back."""
    inner = lead(servers[PUBLIC], servers[PRIVATE].url + "/x")
    door = start_recording(host=PRIVATE)
    with pytest.raises(TransportError, match="must not lead"):
        read(web.open(lead(door, inner)))
    assert servers[PRIVATE].requests == []


def test_the_user_may_allow_a_host(web, servers, monkeypatch):
    target = servers[LOOPBACK]
    monkeypatch.setenv("MLSTATE_ALLOWED_HOSTS", f"weights.example, http://{LOOPBACK}:{target.port}")
    assert read(web.open(lead(servers[PUBLIC], target.url + "/x"))) == DATA


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "169.254.169.254.", "2852039166", "0xa9.0xfea9fe", "10.1"),
        *("[::a00:1]", "localhost.", "models.localhost"),
    ],
)
def test_a_numeric_address_behind_a_proxy_is_found_out(web, start_recording, monkeypatch, host):
    proxy = start_recording({"x": DATA})
    monkeypatch.setenv("http_proxy", proxy.url)
    lead(proxy, f"http://{host}/x", "http://models.invalid/start")
    with pytest.raises(TransportError, match="must not lead"):
        read(web.open("http://models.invalid/start"))
    assert len(proxy.requests) == 1


# What a manifest from elsewhere may name


@pytest.mark.parametrize(
    "address",
    [
        "model.safetensors",
        "/etc/passwd",
        "../x",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "http://weights.example/x",
        "http://github.com/x",
        "s3://other/x",
        "S3://other/x",
        "s3://named-too/x",
        "gs://other/x",
    ],
)
def test_a_manifest_from_elsewhere_may_not_name(web, address):
    for source in ("https://github.com/o/r/pointer.toml", "s3://named/base", "bundle x.tar"):
        with pytest.raises(TransportError, match="from elsewhere"):
            web.open(address, reach=Reach(source))


def test_a_manifest_from_elsewhere_may_name_its_source_and_what_the_settings_allow(monkeypatch):
    bundle = Reach("bundle x.tar")
    assert Reach("s3://named/base").permission("s3://named/other").credentials
    assert Reach("http://127.0.0.1:8000/p").permission("http://127.0.0.1:8000/x").credentials
    stranger = bundle.permission("https://weights.example/x")
    assert (stranger.confined, stranger.credentials) == (Zone.PUBLIC, False)
    assert bundle.permission("hf://org/name").credentials
    monkeypatch.setenv("MLSTATE_ALLOWED_HOSTS", "*.example s3://mine,gs:")
    assert bundle.permission("https://weights.example/x").credentials
    assert bundle.permission("s3://mine/x").credentials
    assert not bundle.permission("gs://any/x").credentials
    for address in ("http://weights.example/x", "s3://other/x"):
        with pytest.raises(TransportError, match="from elsewhere"):
            bundle.permission(address)


@pytest.mark.parametrize("entry", ["https://a/b", "ftp://a", "a b@c", "s3:/x", "*"])
def test_a_setting_that_makes_no_sense_is_said(monkeypatch, entry):
    monkeypatch.setenv("MLSTATE_ALLOWED_HOSTS", entry)
    with pytest.raises(FormatError, match="MLSTATE_ALLOWED_HOSTS"):
        is_allowed(Url.parse("https://weights.example/x"))
    with pytest.raises(FormatError, match="MLSTATE_ALLOWED_HOSTS"):
        Reach("s3://x").permission("s3://other/x")


def test_a_manifest_from_elsewhere_leads_to_public_servers_alone_and_without_credentials(
    web, start_recording, tls, monkeypatch
):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls[0]))
    monkeypatch.setenv("MLSTATE_TOKEN_127_0_0_1", "secret")
    secure = start_recording({"x": DATA}, tls=tls[1])
    stranger = Reach("https://elsewhere.example/pointer.toml")
    with pytest.raises(TransportError, match="must not lead"):
        read(web.open(secure.url + "/x", reach=stranger))
    assert secure.requests == []
    with Transports(classify=lambda address: Zone.PUBLIC) as outside:
        assert read(outside.open(secure.url + "/x", reach=stranger)) == DATA
        assert secure.requests[-1].authorization is None
        assert read(outside.open(secure.url + "/x")) == DATA
        assert secure.requests[-1].authorization == "Bearer secret"


# Proxies


def test_this_machine_is_asked_without_a_proxy_which_would_see_the_token(
    start_recording, monkeypatch
):
    proxy, server = start_recording({"x": b"by proxy"}), start_recording({"x": DATA})
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, proxy.url)
    monkeypatch.setenv("MLSTATE_TOKEN_LOCALHOST", "secret")
    monkeypatch.setenv("MLSTATE_TOKEN_127_0_0_1", "secret")
    with Transports() as web:
        for host in ("localhost", "127.0.0.1"):
            assert read(web.open(f"http://{host}:{server.port}/x")) == DATA
    assert proxy.requests == []
    assert [request.authorization for request in server.requests] == ["Bearer secret"] * 2


def test_no_credential_passes_a_proxy_in_clear_whoever_sends_it(start_recording, monkeypatch):
    proxy = start_recording({"x": DATA})
    monkeypatch.setenv("http_proxy", proxy.url)
    url = Url.parse("http://models.invalid/x")
    session = Session(Limits())
    with pytest.raises(TransportError, match="in clear"):
        session.send("GET", url, {"Authorization": "Bearer secret"}, url.shown)
    session.close()
    assert proxy.requests == []


def test_a_proxy_that_wants_a_login_is_given_one_in_its_address(web, start_recording, monkeypatch):
    proxy = start_recording(before=lambda request: Reply(407))
    for variable in ("https_proxy", "http_proxy"):
        monkeypatch.setenv(variable, proxy.url)
    for scheme in ("http", "https"):
        with pytest.raises(TransportError, match="the proxy wants to know") as caught:
            read(web.open(f"{scheme}://models.invalid/x"))
        assert not caught.value.transient
        assert "name:password@" in caught.value.remedy
        assert "407" in str(caught.value)
