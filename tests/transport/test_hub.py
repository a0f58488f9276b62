"""The Hugging Face hub: addresses, revisions, files, tokens, limits and its own cache."""

from __future__ import annotations

import logging
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate.errors import FormatError, OfflineError, TransportError
from mlstate.transport import Resource, Retries, Transports, retrying
from mlstate.transport.hub import HubAddress, HubListing, parse_hub_address
from tests.servers.recording import Reply

WEIGHTS = bytes(range(256)) * 400
FILES = {"model.safetensors": WEIGHTS, "config.json": b"{}", "sub/vocab ü.txt": b"a\nb\n"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path, hub):
    """The hub of the test, and an empty cache of the hub's own client."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def web():
    with Transports(read_timeout=5) as transports:
        yield transports


def read(resource, start=0, stop=None):
    with resource.read(start, stop) as stream:
        return b"".join(iter(lambda: stream.read(1 << 16), b""))


def failure(call):
    with pytest.raises(TransportError) as caught:
        call()
    return caught.value


def cache(tmp_path, commit, name, content, revision="main"):
    """Put a file where huggingface_hub keeps it."""
    folder = tmp_path / "hub" / "models--org--repo"
    for path in (folder / "refs" / revision, folder / "snapshots" / commit / name):
        path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    (folder / "snapshots" / commit / name).write_bytes(content)


# Addresses


@pytest.mark.parametrize(
    ("text", "repo", "revision", "path"),
    [
        ("hf://org/repo", "org/repo", "main", None),
        ("hf://org/repo/a.txt", "org/repo", "main", "a.txt"),
        ("hf://org/repo@v1.0/sub/a b%20.txt", "org/repo", "v1.0", "sub/a b%20.txt"),
        ("HF://Org-1/re.po_x@refs%2Fpr%2F1", "Org-1/re.po_x", "refs/pr/1", None),
        (f"hf://org/repo@{COMMIT}/a@b", "org/repo", COMMIT, "a@b"),
        ("hf://org/repo/x@main", "org/repo", "main", "x@main"),
        ("hf://org/repo@100%25/a?b#c", "org/repo", "100%", "a?b#c"),
        ("hf://gpt2@main", "gpt2", "main", None),
        ("hf://gpt2@v1/sub/a.txt", "gpt2", "v1", "sub/a.txt"),
        ("hf://gpt2@refs/pr/1/a.txt", "gpt2", "refs/pr/1", "a.txt"),
    ],
)
def test_an_address_names_a_repository_a_revision_and_a_file(text, repo, revision, path):
    address = parse_hub_address(text)
    assert address == HubAddress(repo, revision, path)
    assert parse_hub_address(str(address)) == address
    assert address.is_commit == (revision == COMMIT)


@pytest.mark.parametrize(
    "text",
    [
        "hf://",
        "hf://repo",
        "hf://org/",
        "hf:///repo",
        "hf://org//a",
        "hf://org/repo@/a",
        "hf://org/repo@main/",
        "hf://org/repo/../x",
        "hf://org/repo//a",
        "hf://org/../x",
        "hf://../repo/x",
        "hf://o..g/repo/x",
        "hf://org/repo@../x",
        "hf://org/repo@a%2F..%2Fb/x",
        "hf://org/repo@%FF/x",
        "hf://org/repo@a%20b/x",
        "hf://org/repo@%0A/x",
        "hf://org/repo@a?b/x",
        "hf://org/re po/x",
        "hf://org/repo?x=1/a",
        "hf://datasets/org/repo/x",
        "hf://org/repo/a\\b",
        "https://huggingface.co/org/repo",
        "org/repo",
    ],
)
def test_what_is_no_address_on_the_hub_is_refused(text):
    with pytest.raises(FormatError):
        parse_hub_address(text)


parts = st.text(st.characters(codec="utf-8", exclude_characters="/\\"), min_size=1, max_size=8)


@given(
    repo=st.from_regex(r"[A-Za-z0-9][a-z-]{0,5}/[A-Za-z0-9][a-z_-]{0,5}", fullmatch=True),
    revision=st.lists(parts, min_size=1, max_size=3).map("/".join),
    path=st.none() | st.lists(parts, min_size=1, max_size=3).map("/".join),
)
def test_an_address_is_read_as_it_was_written(repo, revision, path):
    try:
        address = HubAddress(repo, revision, path)
    except FormatError:
        return
    assert parse_hub_address(str(address)) == address


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_an_error(text):
    try:
        address = parse_hub_address("hf://" + text)
    except FormatError:
        return
    assert parse_hub_address(str(address)) == address


def test_a_file_is_opened_and_a_repository_listed(web):
    with pytest.raises(FormatError, match="a file is needed"):
        web.open("hf://org/repo@main")
    with pytest.raises(FormatError, match="a repository is needed"):
        web.hub_files("hf://org/repo@main/a")
    for login in ("user:secret", "hf_secret"):
        with pytest.raises(FormatError, match="user name") as caught:
            web.open(f"hf://{login}@org/repo/a")
        assert "secret" not in str(caught.value)


# Files


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("resolve_cache", [True, False])
def test_a_file_is_read(web, hub, name, resolve_cache):
    hub.resolve_cache = resolve_cache
    hub.add("org/repo", FILES)
    resource = web.open(f"hf://org/repo/{name}")
    assert isinstance(resource, Resource)
    assert resource.address == f"hf://org/repo@main/{name}"
    assert read(resource) == FILES[name]
    assert read(resource, 1, 2) == FILES[name][1:2]
    assert resource.size() == len(FILES[name])
    assert repr(resource) == f"HubResource('{resource.address}')"


def test_a_repository_is_listed(web, hub):
    commit = hub.add("org/repo", FILES)
    listing = web.hub_files("hf://org/repo")
    assert listing == HubListing(commit, tuple(sorted(FILES)))
    assert web.hub_files(f"hf://org/repo@{commit}") == listing


def test_a_revision_is_resolved_once_even_if_it_moves_on(web, hub):
    before = hub.add("org/repo", FILES, revision="refs/pr/1")
    names = [name for name in FILES for _ in range(3)]
    address = "hf://org/repo@refs%2Fpr%2F1"
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda name: read(web.open(f"{address}/{name}")), names))
    assert got == [FILES[name] for name in names]
    hub.add("org/repo", {"config.json": b"{1}"}, revision="refs/pr/1")
    assert read(web.open(f"{address}/config.json")) == b"{}"
    assert web.hub_files(address).commit == before
    asked = [record for record in hub.api.requests if "/api/models/" in record.path]
    assert [record.path for record in asked] == ["/api/models/org/repo/revision/refs%2Fpr%2F1"]
    with Transports() as later:
        assert read(later.open(f"{address}/config.json")) == b"{1}"


def test_a_commit_needs_no_look_up(web, hub):
    commit = hub.add("org/repo", FILES)
    assert read(web.open(f"hf://org/repo@{commit}/config.json")) == b"{}"
    assert all("/api/models/" not in record.path for record in hub.api.requests)


def test_a_file_is_resolved_once_until_its_signed_address_expires(web, hub):
    hub.add("org/repo", FILES)
    resource = web.open("hf://org/repo/model.safetensors")
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda at: read(resource, at, at + 10), range(0, 300, 10)))
    assert b"".join(got) == WEIGHTS[:300]
    assert len(hub.resolves) == 1
    hub.expire()
    assert read(resource, 0, 10) == WEIGHTS[:10]
    assert len(hub.resolves) == 2


def test_a_repository_that_was_renamed_is_found(web, hub):
    hub.add("old/repo", FILES)
    hub.rename("old/repo", "new/repo")
    assert read(web.open("hf://old/repo/model.safetensors")) == WEIGHTS


# Tokens


@pytest.mark.parametrize("kind", ["private", "gated"])
def test_a_token_opens_what_is_not_public_and_goes_nowhere_else(
    web, hub, kind, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    hub.add("org/repo", FILES, **{kind: True})
    error = failure(lambda: read(web.open("hf://org/repo/model.safetensors")))
    assert error.status == 401
    assert "HF_TOKEN" in error.remedy
    monkeypatch.setenv("HF_TOKEN", hub.outsider)
    error = failure(lambda: read(web.open("hf://org/repo/model.safetensors")))
    assert error.status == (404 if kind == "private" else 403)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert read(web.open("hf://org/repo/model.safetensors")) == WEIGHTS
    assert web.open("hf://org/repo/config.json").size() == 2
    assert hub.cdn.requests
    assert hub.leaked == []
    assert hub.token not in caplog.text
    assert "Signature=" not in caplog.text


def test_what_is_not_there_is_an_error_that_names_it(web, hub):
    hub.add("org/repo", FILES)
    for address, status in (
        ("hf://org/repo/missing", 404),
        ("hf://org/repo@missing/config.json", 404),
        ("hf://org/other/config.json", 401),
        (f"hf://org/repo@{COMMIT}/config.json", 404),
    ):
        error = failure(web.open(address).size)
        assert error.status == status
        assert error.path.startswith(address.partition("@")[0][:13])
        assert not error.transient


def test_the_limit_of_the_hub_is_waited_for(web, hub):
    hub.limit, hub.window = 0, 100
    hub.add("org/repo", FILES)
    error = failure(web.open("hf://org/repo/config.json").size)
    assert error.transient
    assert 90 < error.retry_after <= 100
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        hub.limit = 3000

    resource = retrying(web.open("hf://org/repo/config.json"), Retries(), sleep=sleep)
    assert read(resource) == b"{}"
    assert 90 < sum(slept) < 101


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b'{"sha": "main"}',
        b'{"sha": 5, "siblings": []}',
        b'{"sha": "%s", "siblings": [5]}' % COMMIT.encode(),
        b'{"sha": "%s", "siblings": [{"rfilename": 5}]}' % COMMIT.encode(),
        b'{"sha": "%s", "siblings": 5}' % COMMIT.encode(),
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error(web, hub, answer):
    hub.api.before = lambda record: Reply(200, {"Content-Type": "application/json"}, answer)
    error = failure(lambda: web.hub_files("hf://org/repo"))
    assert "makes no sense" in str(error)
    assert error.path == "hf://org/repo@main"


def test_another_commit_than_the_one_asked_for_is_an_error(web, hub):
    hub.api.before = lambda record: Reply(200, {}, b'{"sha": "%s"}' % COMMIT.encode())
    assert web.hub_files("hf://org/repo").commit == COMMIT
    error = failure(lambda: web.hub_files(f"hf://org/repo@{COMMIT[::-1]}"))
    assert "makes no sense" in str(error)


def test_an_answer_without_an_end_is_an_error(web, hub):
    hub.api.before = lambda record: Reply(200, {}, (bytes(1 << 20) for _ in range(1 << 10)))
    assert "too long" in str(failure(lambda: web.hub_files("hf://org/repo")))
    assert hub.api.bytes_sent < 1 << 28


def test_a_failure_is_not_remembered(web, hub):
    hub.add("org/repo", FILES)
    answer, hub.api.before = hub.api.before, lambda record: Reply(503)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(web.hub_files, "hf://org/repo") for _ in range(8)]
        assert all(call.exception().transient for call in calls)
    hub.api.before = answer
    assert web.hub_files("hf://org/repo").files


# The hub's own cache, and offline


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_what_the_hubs_cache_has_is_read_there_offline(tmp_path, revision, monkeypatch):
    cache(tmp_path, COMMIT, "sub/a.txt", b"cached")

    def refuse(*args, **named):
        raise AssertionError("a socket")

    with Transports(offline=True) as web:
        monkeypatch.setattr(socket, "socket", refuse)
        resource = web.open(f"hf://org/repo@{revision}/sub/a.txt")
        assert read(resource) == b"cached"
        assert read(resource, 1, 3) == b"ac"
        assert resource.size() == 6
        for call in (
            web.open(f"hf://org/repo@{revision}/other.txt").size,
            lambda: web.hub_files("hf://org/repo"),
        ):
            with pytest.raises(OfflineError) as caught:
                call()
            assert "hf://org/repo@" in caught.value.path


def test_a_commit_in_the_hubs_cache_is_listed_there_offline(tmp_path):
    cache(tmp_path, COMMIT, "sub/a.txt", b"cached")
    cache(tmp_path, COMMIT, "config.json", b"{}")
    with Transports(offline=True) as web:
        listing = web.hub_files(f"hf://org/repo@{COMMIT}")
        assert (listing.commit, listing.files) == (COMMIT, ("config.json", "sub/a.txt"))
        for other in ("0" * 40, "main"):
            with pytest.raises(OfflineError):
                web.hub_files(f"hf://org/repo@{other}")


def test_a_model_without_an_owner_is_read(web, hub):
    commit = hub.add("gpt2", FILES)
    assert web.hub_files("hf://gpt2@main").commit == commit
    assert read(web.open("hf://gpt2@main/config.json")) == FILES["config.json"]


def test_the_cache_is_used_for_the_commit_that_the_hub_names(web, hub, tmp_path):
    commit = hub.add("org/repo", FILES)
    cache(tmp_path, COMMIT, "config.json", b"old")
    assert read(web.open("hf://org/repo/config.json")) == b"{}"
    cache(tmp_path, commit, "config.json", b"of the cache")
    hub.reset()
    with Transports() as later:
        assert read(later.open("hf://org/repo/config.json")) == b"of the cache"
    assert hub.resolves == []


def test_the_hubs_own_offline_setting_holds_for_the_hub(web, hub, monkeypatch):
    hub.add("org/repo", FILES)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError, match="HF_HUB_OFFLINE"):
        read(web.open("hf://org/repo/config.json"))
    assert read(web.open(hub.url + "/org/repo/resolve/main/config.json")) == b"{}"


def test_the_hub_is_read_without_huggingface_hub(web, hub, monkeypatch, tmp_path):
    commit = hub.add("org/repo", FILES)
    cache(tmp_path, commit, "config.json", b"of the cache")
    for module in ("hub_cache", "credentials"):
        monkeypatch.setattr(f"mlstate.transport.{module}.find_spec", lambda name: None)
    assert read(web.open("hf://org/repo/config.json")) == b"{}"


@pytest.mark.parametrize(
    ("text", "revision", "path"),
    [
        ("refs/pr/1", "refs/pr/1", None),
        ("refs/pr/12/model.safetensors", "refs/pr/12", "model.safetensors"),
        ("refs/pr/1/sub/a.json", "refs/pr/1", "sub/a.json"),
        ("refs/convert/parquet/a/b", "refs/convert/parquet", "a/b"),
        ("refs%2Fpr%2F1/a", "refs/pr/1", "a"),
        ("feature%2Fx/a", "feature/x", "a"),
        ("refs/prx/1", "refs", "prx/1"),
        ("refs/pr/1a", "refs", "pr/1a"),
    ],
)
def test_a_revision_may_have_slashes(text, revision, path):
    address = parse_hub_address(f"hf://org/name@{text}")
    assert (address.repo, address.revision, address.path) == ("org/name", revision, path)
    assert parse_hub_address(str(address)) == address


def test_revisions_with_slashes_are_read(web, hub):
    hub.add("org/repo", {"config.json": b"{1}"}, revision="refs/pr/1")
    hub.add("org/repo", {"config.json": b"{2}"}, revision="feature/x")
    assert read(web.open("hf://org/repo@refs/pr/1/config.json")) == b"{1}"
    assert read(web.open("hf://org/repo@feature%2Fx/config.json")) == b"{2}"
    error = failure(lambda: read(web.open("hf://org/repo@feature/x/config.json")))
    assert "hf://org/repo@feature%2Fx" in error.remedy


@pytest.mark.parametrize(
    "answer",
    [
        b"[" * 100_000,
        b'{"sha": ' * 70,
        b'{"a": [' + b"[]," * 200_000 + b"[]]}",
        b'{"sha": ' + b"9" * 5000 + b"}",
        b"[]",
        b"\xff\xfe",
    ],
)
def test_an_answer_that_a_parser_chokes_on_is_an_error(web, hub, answer):
    hub.api.before = lambda record: Reply(200, {"Content-Type": "application/json"}, answer)
    error = failure(lambda: web.hub_files("hf://org/repo"))
    assert "makes no sense" in str(error)
    assert len(str(error)) < 2000


def test_a_page_in_the_place_of_an_answer_is_called_one(web, hub):
    page = Reply(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>Please log in")
    hub.api.before = lambda record: page
    error = failure(lambda: web.hub_files("hf://org/repo"))
    assert "a web page came" in str(error)
    assert "captive portal" in error.remedy
