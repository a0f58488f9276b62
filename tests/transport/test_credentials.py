"""Credentials: found where the user put them, sent to whom they are for, and shown to nobody."""

from __future__ import annotations

import base64
import logging
import os
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate.errors import FormatError, TransportError
from mlstate.transport import Transports
from mlstate.transport.credentials import Credentials, token_variable
from mlstate.transport.urls import Url
from tests.servers.recording import Reply, serve
from tests.support.planting import Victim, plant, time_limit

SECRET = "s3cret-t0ken"
CONTENT = bytes(range(256)) * 20


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path_factory):
    """A home without any credential."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    return home


@pytest.fixture
def web():
    with Transports(read_timeout=5) as transports:
        yield transports


def netrc(text):
    with open(os.environ["NETRC"], "w") as file:
        file.write(text)


def config(home, text):
    (home / "mlstate").mkdir(exist_ok=True)
    (home / "mlstate" / "config.toml").write_text(text)


def sent_to(address, *via):
    return Credentials().authorization(Url.parse(address), [Url.parse(before) for before in via])


def basic(login, password):
    return "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode()


def read(resource, start=0, stop=None):
    with resource.read(start, stop) as stream:
        return b"".join(iter(lambda: stream.read(1 << 16), b""))


# Where they are found


def test_nobody_is_sent_anything_by_default():
    assert sent_to("https://example.org/x") is None


@pytest.mark.parametrize(
    ("host", "variable"),
    [
        ("example.org", "MLSTATE_TOKEN_EXAMPLE_ORG"),
        ("my-host.example.org", "MLSTATE_TOKEN_MY__HOST_EXAMPLE_ORG"),
        ("127.0.0.1", "MLSTATE_TOKEN_127_0_0_1"),
        ("EXAMPLE.org", "MLSTATE_TOKEN_EXAMPLE_ORG"),
    ],
)
def test_a_token_comes_from_the_environment(monkeypatch, host, variable):
    monkeypatch.setenv(variable, SECRET)
    assert sent_to(f"https://{host}/x") == f"Bearer {SECRET}"
    assert sent_to(f"https://{host}:8443/x") == f"Bearer {SECRET}"
    for other in ("example.com", "sub.example.org", "org", "my_host.example.org", "example_org"):
        assert sent_to(f"https://{other}/x") is None


labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?", fullmatch=True)
hosts = st.lists(labels, min_size=1, max_size=4).map(".".join)


@given(hosts, hosts)
def test_two_hosts_never_share_a_variable(one, other):
    assert (token_variable(one) == token_variable(other)) == (one == other)
    assert "=" not in token_variable(one)


def test_a_token_comes_from_the_config_file(nobody):
    config(nobody, f"[tokens]\n'Example.org' = '{SECRET}'\n'example.org:8443' = 'other'\n")
    assert sent_to("https://example.org/x") == f"Bearer {SECRET}"
    assert sent_to("https://example.org:443/x") == f"Bearer {SECRET}"
    assert sent_to("https://example.org:8443/x") == "Bearer other"
    assert sent_to("https://example.com/x") is None


def test_a_token_for_a_port_is_for_that_port_alone(nobody):
    config(nobody, f"[tokens]\n'example.org:8443' = '{SECRET}'\n'[::1]:80' = 'six'\n")
    assert sent_to("https://example.org/x") is None
    assert sent_to("https://example.org:8443/x") == f"Bearer {SECRET}"
    assert sent_to("http://[::1]/x") == "Bearer six"


def test_the_config_file_may_be_elsewhere(monkeypatch, tmp_path):
    (tmp_path / "my.toml").write_text(f"[tokens]\n'example.org' = '{SECRET}'\n")
    monkeypatch.setenv("MLSTATE_CONFIG", str(tmp_path / "my.toml"))
    assert sent_to("https://example.org/x") == f"Bearer {SECRET}"
    monkeypatch.setenv("MLSTATE_CONFIG", str(tmp_path / "missing.toml"))
    with pytest.raises(FormatError, match="MLSTATE_CONFIG"):
        sent_to("https://example.org/x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"[tokens]\n'example.org' = {SECRET}\n", "line 2"),
        (f"tokens = '{SECRET}'", "table of texts"),
        ("[tokens]\n'example.org' = 5\n", "table of texts"),
        (f"[tokens]\nexample.org = '{SECRET}'\n", "with the host in quotes"),
        (f"[tokens]\n'example.org' = '{SECRET} {SECRET}'\n", "characters that no token has"),
        ("[tokens]\n'example.org' = ''\n", "empty"),
        ("\udcff", "UTF-8"),
    ],
)
def test_a_broken_config_file_is_an_error_that_shows_no_token(nobody, text, says):
    config(nobody, "")
    (nobody / "mlstate" / "config.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FormatError) as caught:
        sent_to("https://example.org/x")
    assert says in str(caught.value)
    assert "config.toml" in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_config_file_may_begin_with_a_byte_order_mark_and_have_line_ends_of_windows(nobody):
    config(nobody, "")
    text = f"\ufeff# ours\r\n[tokens]\r\n'example.org' = '{SECRET}'\r\n"
    (nobody / "mlstate" / "config.toml").write_bytes(text.encode())
    assert sent_to("https://example.org/x") == f"Bearer {SECRET}"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_config_file_in_another_encoding_is_an_error_that_names_it(nobody, encoding):
    config(nobody, "")
    text = f"[tokens]\n'example.org' = '{SECRET}'\n"
    (nobody / "mlstate" / "config.toml").write_bytes(text.encode(encoding))
    with pytest.raises(FormatError, match="UTF-8") as caught:
        sent_to("https://example.org/x")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_netrc_in_another_encoding_is_warned_of(encoding):
    netrc(f"machine example.org login me password {SECRET}")
    path = Path(os.environ["NETRC"])
    path.write_bytes(path.read_text().encode(encoding))
    with pytest.warns(UserWarning, match="plain UTF-8") as caught:
        assert sent_to("https://example.org/x") is None
    assert SECRET not in str(caught[0].message)


def test_a_login_comes_from_netrc_and_only_from_a_hosts_own_entry():
    netrc(f"machine example.org login me password {SECRET}\ndefault login all password everywhere")
    assert sent_to("https://example.org/x") == basic("me", SECRET)
    assert sent_to("https://EXAMPLE.org:8443/x") == basic("me", SECRET)
    for other in ("example.com", "default", "sub.example.org"):
        assert sent_to(f"https://{other}/x") is None


@pytest.mark.parametrize("kind", ["pipe", "zero", "folder", "loop", "socket"])
def test_a_netrc_or_config_that_is_no_file_is_not_waited_for(nobody, tmp_path, monkeypatch, kind):
    path = tmp_path / "x"
    plant(kind, path, Victim(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(path))
    with time_limit(10), pytest.warns(UserWarning, match="cannot be read, so no login"):
        assert sent_to("https://example.org") is None
    monkeypatch.setenv("MLSTATE_CONFIG", str(path))
    with time_limit(10), pytest.raises(FormatError, match="config file cannot be read") as caught:
        sent_to("https://example.org")
    assert caught.value.path == str(path)


def test_a_netrc_or_config_of_any_size_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"")
    os.truncate(path, 1 << 40)
    monkeypatch.setenv("NETRC", str(path))
    with time_limit(10), pytest.warns(UserWarning, match="cannot be read, so no login"):
        assert sent_to("https://example.org") is None
    monkeypatch.setenv("MLSTATE_CONFIG", str(path))
    with time_limit(10), pytest.raises(FormatError, match="config file cannot be read"):
        sent_to("https://example.org")


def test_a_netrc_or_config_may_be_the_null_device_or_come_from_a_command(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setenv("MLSTATE_CONFIG", os.devnull)
    assert sent_to("https://example.org") is None
    for variable, text, said in [
        ("NETRC", "machine example.org login me password pass", basic("me", "pass")),
        ("MLSTATE_CONFIG", f"[tokens]\n'example.org' = '{SECRET}'", f"Bearer {SECRET}"),
    ]:
        reading, writing = os.pipe()
        os.write(writing, text.encode())
        os.close(writing)
        monkeypatch.setenv(variable, f"/dev/fd/{reading}")
        with time_limit(10):
            assert sent_to("https://example.org") == said
        os.close(reading)


def test_netrc_is_in_the_home_folder_by_default(nobody, monkeypatch):
    monkeypatch.delenv("NETRC")
    (nobody / ".netrc").write_text("machine example.org login me password pass")
    assert sent_to("https://example.org/x") == basic("me", "pass")


def test_a_login_may_have_letters_of_any_kind():
    netrc('machine example.org login "zoë" password "ß u"')
    assert sent_to("https://example.org/x") == basic("zoë", "ß u")


def test_a_broken_netrc_warns_once_and_shows_no_password():
    netrc(f"machine example.org login me password a {SECRET}\n")
    credentials, url = Credentials(), Url.parse("https://example.org/x")
    with pytest.warns(UserWarning, match="no login of it is used") as caught:
        assert credentials.authorization(url) is None
    assert credentials.authorization(url) is None  # a second warning would be an error
    assert os.environ["NETRC"] in str(caught[0].message)
    assert SECRET not in str(caught[0].message)


def test_a_token_beats_a_login(nobody, monkeypatch):
    netrc("machine example.org login me password pass")
    config(nobody, "[tokens]\n'example.org' = 'file'\n'example.org:8443' = 'port'\n")
    assert sent_to("https://example.org/x") == "Bearer file"
    monkeypatch.setenv("MLSTATE_TOKEN_EXAMPLE_ORG", "environment")
    assert sent_to("https://example.org/x") == "Bearer environment"
    assert sent_to("https://example.org:8443/x") == "Bearer port"


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "\u0161", "a\x00b", " "])
def test_a_token_that_is_none_is_an_error_without_the_token(monkeypatch, token):
    for variable in ("MLSTATE_TOKEN_EXAMPLE_ORG", "HF_TOKEN"):
        if "\0" in token:
            monkeypatch.setattr(os, "environ", {**os.environ, variable: token})
        else:
            monkeypatch.setenv(variable, token)
    for host in ("example.org", "huggingface.co"):
        with pytest.raises(FormatError) as caught:
            sent_to(f"https://{host}/x")
        assert "TOKEN" in str(caught.value)
        assert not token.strip() or token.strip() not in str(caught.value)


def test_space_around_a_token_is_no_part_of_it(monkeypatch):
    monkeypatch.setenv("MLSTATE_TOKEN_EXAMPLE_ORG", f" {SECRET}\n")
    assert sent_to("https://example.org/x") == f"Bearer {SECRET}"


def test_the_hub_gets_its_token_and_nobody_else(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hub")
    assert sent_to("https://huggingface.co/x") == "Bearer hub"
    for other in (
        "https://huggingface.co:8443/x",
        "https://cdn.huggingface.co/x",
        "https://example.org/x",
        "http://huggingface.co/x",
    ):
        assert sent_to(other) is None
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org/sub/")
    assert sent_to("https://hub.example.org/x") == "Bearer hub"
    assert sent_to("https://huggingface.co/x") is None
    monkeypatch.setenv("MLSTATE_TOKEN_HUB_EXAMPLE_ORG", "own")
    assert sent_to("https://hub.example.org/x") == "Bearer own"


def test_who_is_logged_in_to_the_hub_is_so_here(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "login")
    assert sent_to("https://huggingface.co/x") == "Bearer login"
    assert sent_to("https://example.org/x") is None
    monkeypatch.setenv("HF_TOKEN", "hub")
    assert sent_to("https://huggingface.co/x") == "Bearer hub"


# To whom they are sent


@pytest.mark.parametrize(
    ("root", "sent"),
    [
        ("https://example.org", True),
        ("http://example.org", False),
        ("http://127.0.0.1", True),
        ("http://127.8.9.1:8000", True),
        ("http://[::1]:8000", True),
        ("http://localhost:8000", True),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1.example.org", False),
        ("http://10.0.0.1", False),
    ],
)
def test_a_credential_is_sent_over_https_or_to_this_machine_only(monkeypatch, root, sent):
    host = Url.parse(root).host
    netrc(f"machine {host} login me password pass")
    assert sent_to(root + "/x") == (basic("me", "pass") if sent else None)
    if ":" not in host:
        monkeypatch.setenv(token_variable(host), SECRET)
        assert sent_to(root + "/x") == (f"Bearer {SECRET}" if sent else None)


def test_a_redirect_to_another_port_gets_only_what_is_for_that_port(nobody, monkeypatch):
    monkeypatch.setenv("MLSTATE_TOKEN_EXAMPLE_ORG", SECRET)
    netrc("machine other.org login me password pass")
    there = "https://example.org:8443/x"
    assert sent_to(there, "https://example.org/x") is None
    assert sent_to(there, "https://example.org/x", "https://cdn.org/x") is None
    assert sent_to("https://other.org:1/", "https://other.org/") is None
    config(nobody, "[tokens]\n'example.org:8443' = 'port'\n")
    assert sent_to(there, "https://example.org/x") == "Bearer port"


def test_a_redirect_to_the_same_server_or_up_to_https_keeps_the_credential(monkeypatch):
    monkeypatch.setenv("MLSTATE_TOKEN_EXAMPLE_ORG", SECRET)
    for before in ("https://example.org/y", "http://example.org/x", "https://other.org/"):
        assert sent_to("https://example.org/x", before) == f"Bearer {SECRET}"
    assert sent_to("https://example.org/x", "http://example.org:8000/x") is None


@pytest.fixture
def two_servers(start_recording, monkeypatch):
    """A server that wants a token and leads to another, which takes whatever comes."""

    def give(record):
        if record.authorization != f"Bearer {SECRET}":
            return Reply(401)
        if record.path == "/away":
            return Reply.redirect(f"{store.url}/data?signature=c0ffee")
        return serve(record, CONTENT)

    store = start_recording({"data": CONTENT})
    door = start_recording(before=give)
    monkeypatch.setenv("MLSTATE_TOKEN_127_0_0_1", SECRET)
    return door, store


def test_a_token_is_sent_and_reaches_no_other_port(web, two_servers, caplog):
    caplog.set_level(logging.DEBUG)
    door, store = two_servers
    assert read(web.open(door.url + "/x")) == CONTENT
    resource = web.open(door.url + "/away")
    for at in range(3):
        assert read(resource, at, 9) == CONTENT[at:9]  # the later ones go there at once
    assert [request.authorization for request in door.requests] == [f"Bearer {SECRET}"] * 2
    assert [request.authorization for request in store.requests] == [None] * 3
    assert SECRET not in caplog.text


def test_a_token_reaches_no_other_host(web, two_servers):
    door, store = two_servers
    door.before = lambda record: Reply.redirect(store.url.replace("127.0.0.1", "localhost") + "/y")
    store.files = {"y": CONTENT}
    assert read(web.open(door.url + "/x")) == CONTENT
    assert store.requests[0].headers["host"].startswith("localhost")
    assert store.requests[0].authorization is None


def test_a_login_is_sent_to_a_real_server(web, start_nginx, tmp_path):
    (tmp_path / "x").write_bytes(CONTENT)
    nginx = start_nginx(tmp_path)
    resource = web.open(nginx.url("x", "auth"))
    with pytest.raises(TransportError) as caught:
        read(resource)
    assert caught.value.status == 401
    assert "no credential was sent along" in str(caught.value)
    assert "netrc" in caught.value.remedy
    netrc(f"machine 127.0.0.1 login {nginx.user} password wr0ng")
    with Transports() as fresh, pytest.raises(TransportError) as caught:
        read(fresh.open(nginx.url("x", "auth")))
    assert f"the credential of {os.environ['NETRC']} was sent along" in caught.value.found
    assert "wr0ng" not in str(caught.value)
    netrc(f"machine 127.0.0.1 login {nginx.user} password {nginx.password}")
    with Transports() as fresh:
        assert read(fresh.open(nginx.url("x", "auth")), 5, 9) == CONTENT[5:9]


def test_the_remedy_over_plain_http_is_https(web, monkeypatch, start_recording):
    proxy = start_recording(before=lambda record: Reply(401))
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("MLSTATE_TOKEN_MODELS_INVALID", SECRET)
    with pytest.raises(TransportError, match="https"):
        read(web.open("http://models.invalid/x"))
    assert proxy.requests[0].authorization is None


def test_a_refusal_says_which_token_was_sent(web, monkeypatch, start_recording):
    server = start_recording(before=lambda record: Reply(403))
    monkeypatch.setenv("MLSTATE_TOKEN_127_0_0_1", SECRET)
    with pytest.raises(TransportError) as caught:
        read(web.open(server.url + "/x"))
    assert server.requests[0].authorization == f"Bearer {SECRET}"
    assert "MLSTATE_TOKEN_127_0_0_1 was sent along" in caught.value.found
    assert "MLSTATE_TOKEN_127_0_0_1" in caught.value.remedy
    assert SECRET not in str(caught.value)


def test_nothing_secret_is_shown(web, two_servers, monkeypatch):
    door, _ = two_servers
    monkeypatch.setenv("MLSTATE_TOKEN_127_0_0_1", "wr0ng")
    netrc("machine 127.0.0.1 login me password p4ss")
    resource = web.open(door.url + "/x?key=qu3ry#fr4gment")
    with pytest.raises(TransportError) as caught:
        read(resource)
    credentials = Credentials()
    credentials.authorization(Url.parse("http://127.0.0.1/x"))
    everything = [
        *traceback.format_exception(caught.value),
        *map(repr, (caught.value, vars(caught.value), resource, web, credentials)),
        resource.address,
    ]
    for secret in ("wr0ng", "p4ss", "qu3ry", "fr4gment"):
        assert secret not in "".join(everything)


def test_where_the_home_folder_is_no_folder_there_is_no_config(monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "/dev/null")
    monkeypatch.setenv("NETRC", "/dev/null/netrc")
    assert sent_to("https://example.org/x") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_config_of_another_user_is_warned_of(nobody):
    config(nobody, "")
    (nobody / "mlstate" / "config.toml").chmod(0)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert sent_to("https://example.org/x") is None
