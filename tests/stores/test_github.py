"""GitHubReleaseStore: what a release looks like, and who is asked for what, with which token."""

from __future__ import annotations

import gzip
import io
import logging
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_safetensors

import mlstate
from mlstate import (
    GitHubReleaseStore,
    ManifestStore,
    StateKey,
    StateType,
    manifest_of,
    state_digest,
)
from mlstate.errors import (
    AccessError,
    FetchError,
    FormatError,
    IntegrityError,
    LimitError,
    ManifestError,
    OfflineError,
    RateLimitError,
    ReadOnlyStoreError,
    StateExistsError,
    StateNotFoundError,
    TransportError,
)
from mlstate.stores.abstract import DeletingStore, DescribedStore
from mlstate.stores.github.api import GitHub as Place
from mlstate.stores.github.api import GitHubApi
from mlstate.transport import Retries
from tests.servers.recording import Reply
from tests.support.github_stores import KEY, TAG, asset_of, data_names, github_store, weights
from tests.support.models import LINEAR, BytesModel, net, same, values


@pytest.fixture
def store(github, tmp_path):
    return github_store(tmp_path / "cache")


# What a release looks like.


def test_it_is_exported_under_both_names_and_can_what_a_store_can(store):
    assert mlstate.GitHUBReleaseStore is mlstate.GitHubReleaseStore is GitHubReleaseStore
    assert isinstance(store, DeletingStore)
    assert isinstance(store, DescribedStore)
    assert repr(store).endswith("/org/models)")


def test_a_state_is_a_plain_file_a_state_object_files_and_a_pointer(store, github):
    tensors = weights(1)
    key = StateKey(StateType("pytorch", "net", ("cls2", "x")), "run-1")
    store.save_state_dict(tensors, key, files={"sub/config.json": b"{}", "same": b"{}"})
    digest, file = store.digest(key), store.get(key).entry.files["same"].digest
    assert github.repos["org/models"].tags == {TAG: "model-store"}
    assert github.names(TAG) == sorted(
        [
            "cls2.x.run-1.toml",
            f"cls2.x.run-1.{digest}.safetensors",
            f"cls2.x.run-1.{digest}.mlstate",
            f"cls2.x.run-1.{file}.file",
        ]
    )
    plain = asset_of(github, f"cls2.x.run-1.{digest}.safetensors").data
    assert same(load_safetensors(plain), tensors)
    assert github.leaked == []


def test_the_pointer_is_a_manifest_that_anybody_may_keep(store, github, tmp_path, monkeypatch):
    tensors = weights(1)
    store.save_state_dict(tensors, KEY, files={"f": b"1", "empty": b""}, meta={"license": "MIT"})
    manifest = tmp_path / "kept.toml"
    manifest.write_bytes(asset_of(github, "a.toml").data)
    monkeypatch.delenv("GH_TOKEN")
    github.reset()
    other = ManifestStore(manifest, cache=tmp_path / "other")
    assert same(other.load_state_dict(KEY), tensors)
    assert dict(other.files(KEY)) == {"f": b"1", "empty": b""}
    assert other.meta(KEY) == {"license": "MIT"}
    assert github.calls == []


def test_branch_and_prefix_are_a_choice(github, tmp_path):
    github.repos["org/models"].branches.add("weights")
    store = GitHubReleaseStore("org", "models", "weights", "my.models", cache=tmp_path)
    key = store.save(net(1), "a")
    assert github.repos["org/models"].tags == {"my.models.pytorch.net": "weights"}
    assert store.get_state_keys() == [key]
    assert GitHubReleaseStore("org", "models").get_state_keys() == []
    assert GitHubReleaseStore("org", "models", release_name_prefix="my").get_state_keys() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"repository_owner": "../org"},
        {"repository_owner": ""},
        {"repository_name": ".."},
        {"repository_name": "a/b"},
        {"release_name_prefix": "a..b"},
        {"release_name_prefix": "a/b"},
        {"release_name_prefix": ""},
    ],
)
def test_names_that_github_does_not_have_are_refused(wrong):
    named = {"repository_owner": "org", "repository_name": "models", **wrong}
    with pytest.raises(FormatError, match=next(iter(wrong))):
        GitHubReleaseStore(**named)


def test_what_is_too_large_for_one_asset_is_spread_over_several(store, fresh, github):
    tensors = weights(1, a=5000, b=5000, c=5000, d=100)
    github.asset_limit = store.saver.asset_limit = 52_000
    store.save_state_dict(tensors, KEY)
    shards = [name for name in data_names(github) if name.endswith(".safetensors")]
    assert [name[67:] for name in shards] == [
        "00001-of-00002.safetensors",
        "00002-of-00002.safetensors",
    ]
    held: dict[str, torch.Tensor] = {}
    for name in shards:
        data = asset_of(github, name).data
        assert len(data) <= 52_000
        held |= load_safetensors(data)
    assert same(held, tensors)
    assert same(fresh().load_state_dict(KEY), tensors)


def test_a_tensor_that_is_too_large_is_refused_by_name(store, github):
    store.saver.asset_limit = 30_000
    for tensors, name in ((weights(1, a=5000, b=9000), "b"), (weights(1, c=7000), "c")):
        with pytest.raises(LimitError, match="S3StateStore") as caught:
            store.save_state_dict(tensors, KEY)
        assert caught.value.tensor == name
        assert caught.value.key == KEY
    with pytest.raises(LimitError, match="the file 'f'"):
        store.save_state_dict({"a": torch.ones(1)}, KEY, files={"f": b"1" * 30_001})
    assert github.names(TAG) == []


# Loading.


def test_a_load_needs_no_token_and_no_call(store, fresh, github, monkeypatch):
    model = net(1)
    key = store.save(model, "a", files={"f": b"1"})
    monkeypatch.delenv("GH_TOKEN")
    github.reset()
    other, reader = net(2), fresh()
    reader.load(other, key)
    assert same(values(other), values(model))
    assert reader.files(key)["f"] == b"1"
    assert reader.exists(key)
    assert not reader.exists(StateKey(LINEAR, "b"))
    assert github.calls == []
    assert github.leaked == []


def test_a_second_load_reads_the_pointer_and_nothing_else(store, github):
    key = store.save(net(1), "a")
    store.load(net(), key)
    github.reset()
    store.load(net(), key)
    store.load_state_dict(key)
    pointer = len(asset_of(github, "a.toml").data)
    assert [len(github.web.requests), github.storage.bytes_sent] == [2, 2 * pointer]


def test_weights_named_by_digest_load_without_the_pointer(store, github, monkeypatch):
    model = net(1)
    key = store.save(model, "a")
    digest = store.load(net(), key).digest
    github.reset()
    other = net(2)
    assert store.load(other, key, digest=digest).digest == digest
    assert same(values(other), values(model))
    assert github.calls == github.web.requests == []
    with pytest.raises(IntegrityError, match="digest="):
        store.load(other, key, digest="0" * 64)


def test_weights_named_by_digest_that_are_damaged_in_the_cache_are_mended(store, github):
    key = store.save(net(1), "a")
    digest = store.load(net(), key).digest
    for damaged in (digest, next(iter(store.fetcher.cache.own.root.glob("objects/*/*")))):
        path = store.fetcher.cache.own.path(damaged) if damaged == digest else damaged
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
        other = net(2)
        with pytest.warns(UserWarning, match="fetched again"):
            store.load(other, key, digest=digest)
        assert same(values(other), values(net(1)))


def test_a_fine_tune_costs_the_bytes_that_differ(store, fresh, github):
    tensors = weights(1, frozen=1_000_000, head=10_000)
    store.save_state_dict(tensors, KEY)
    tuned = {**tensors, "head": torch.rand(10_000)}
    other = store.save_state_dict(tuned, StateKey(LINEAR, "b"))
    reader = fresh()
    reader.load_state_dict(KEY)
    github.reset()
    assert same(reader.load_state_dict(other), tuned)
    assert github.storage.bytes_sent < 40_000 + 12_000  # the head, a header, a pointer
    assert github.calls == []


def test_a_reader_that_does_not_find_the_pointer_looks_for_the_old_one(store, fresh, github):
    key = store.save(net(1), "a")
    asset_of(github, "a.toml").name = "a.toml.old"
    model = net(2)
    fresh().load(model, key)
    assert same(values(model), values(net(1)))
    assert store.get_state_keys() == [key]
    assert store.exists(key)


def test_a_reader_that_finds_neither_looks_again(store, fresh, github):
    key = store.save(net(1), "a")
    pointer = asset_of(github, "a.toml")
    pointer.name = "elsewhere"

    def published(record):
        if record.path.endswith(".toml.old"):
            pointer.name = "a.toml"

    serve = github.web.before
    github.web.before = lambda record: published(record) or serve(record)
    assert fresh().digest(key) == store.digest(key)


def test_a_state_that_is_overwritten_while_it_loads_is_looked_for_again(store, fresh, github):
    store.save_state_dict(weights(1), KEY)
    serve, done = github.web.before, []

    def overwrite(record):
        if record.path.endswith("safetensors") and not done:
            done.append(store.save_state_dict(weights(2), KEY, overwrite=True))
        return serve(record)

    github.web.before = overwrite
    assert same(fresh().load_state_dict(KEY), weights(2))
    assert done


def test_a_private_repository_is_an_error_that_says_so(store, fresh, github):
    github.repos["org/models"].private = True
    key = store.save(net(1), "a")
    with pytest.raises(AccessError, match="public repositories"):
        fresh().load(net(), key)


def test_a_listing_that_shows_what_is_not_there_ends_in_an_error(store, github):
    store.save(net(1), "a")
    github.before = lambda record: (
        Reply(404, {}, b"{}") if "octet-stream" in record.headers["accept"] else None
    )
    with pytest.raises(TransportError, match="again and again"):
        store.save(net(2), "a")


def test_listing_and_digests_need_no_torch(store, github):
    key = store.save(net(1), "a", files={"f": b"1"})
    code = f"""
    import sys
    from mlstate import GitHubReleaseStore, StateKey
    store = GitHubReleaseStore("org", "models")
    assert store.get_state_keys() == [StateKey.parse({str(key)!r})]
    print(store.digest(store.get_state_keys()[0]), store.files(store.get_state_keys()[0])["f"])
    assert "torch" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{store.digest(key)} b'1'\n", done.stderr


def test_an_unknown_state_is_not_found_whether_the_api_answers_or_not(store, github):
    store.save(net(1), "imagenet")
    unknown = StateKey(LINEAR, "imagenett")
    with pytest.raises(StateNotFoundError, match=r"did you mean pytorch\.net\.imagenet\?"):
        store.load(net(), unknown)
    github.exhaust()
    with pytest.raises(StateNotFoundError):
        store.load(net(), unknown)


def test_places_on_this_machine_in_a_pointer_are_passed_over(store, fresh, github, tmp_path):
    key = store.save(net(1), "a")
    plain = asset_of(github, f"a.{store.digest(key)}.safetensors")
    (tmp_path / "here.safetensors").write_bytes(plain.data)
    pointer = asset_of(github, "a.toml")
    local = f'mirrors = ["{tmp_path}/here.safetensors", "file://{tmp_path}/here.safetensors"]'
    head = pointer.data.decode().partition("mirrors")[0]
    pointer.data = f"{head}{local}\n".encode()
    with pytest.raises(FetchError, match="a place on this machine"):
        fresh().load(net(), key)


@pytest.mark.parametrize("content", [b"\xff", b"version = 1", b"version = 1\n" + b"#" * (1 << 20)])
def test_a_pointer_that_cannot_be_read_is_an_error_and_can_be_replaced(store, github, content):
    key = store.save(net(1), "a")
    asset_of(github, "a.toml").data = content
    with pytest.raises(ManifestError):
        store.load(net(), key)
    with pytest.raises(ManifestError, match="overwrite=True"):
        store.save(net(1), "a")
    store.save(net(2), "a", overwrite=True)
    assert store.digest(key) == state_digest(net(2).state_dict())


def test_offline_opens_no_socket(store, fresh, github, monkeypatch):
    key = store.save(net(1), "a")
    digest = store.load(net(), key).digest

    def refused(*_):
        raise AssertionError("a socket")

    offline = github_store(store.fetcher.cache.own.root, offline=True)
    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    offline.load(net(), key, digest=digest)
    for use in (
        lambda: offline.load(net(), key),
        lambda: offline.get_state_keys(LINEAR),
        lambda: offline.save(net(1), "b"),
        lambda: offline.delete(key),
    ):
        with pytest.raises(OfflineError):
            use()


# Listing.


def test_more_assets_and_releases_than_fit_on_a_page(store, github):
    repo = github.repos["org/models"]
    keys = [StateKey(LINEAR, f"n{number}") for number in range(230)]
    for key in keys:
        github.put(repo, TAG, f"{key.training_id}.toml", b"x")
    for number in range(120):
        github.put(repo, f"other.{number}", "x.toml", b"x")
    for number in range(3):
        github.put(repo, f"state.jax.net{number}", "x.toml", b"x")
    assert store.get_state_keys(LINEAR) == sorted(keys)
    assert len(store.get_state_keys()) == 233
    assert store.get_state_keys(StateType("jax", "net1")) == [StateKey.parse("jax.net1.x")]


def test_what_is_no_state_is_not_listed(store, github):
    repo = github.repos["org/models"]
    names = ["a b.toml", "x.txt", ".toml", "a..b.toml", f"a.{'0' * 64}.safetensors", "a.toml.older"]
    for name in names:
        github.put(repo, TAG, name, b"x")
    github.put(repo, TAG, "started.toml", b"", state="starter")
    github.put(repo, "state.pytorch", "x.toml", b"x")
    github.put(repo, "state.pytorch.net.x", "x.toml", b"x")
    assert store.get_state_keys() == store.get_state_keys(LINEAR) == []


def test_listing_works_without_a_token_as_long_as_the_limit_allows(store, github, monkeypatch):
    key = store.save(net(1), "a")
    monkeypatch.delenv("GH_TOKEN")
    assert store.get_state_keys(LINEAR) == [key]
    github.exhaust()
    with pytest.raises(RateLimitError) as caught:
        store.get_state_keys(LINEAR)
    error = caught.value
    assert 3500 < error.reset - time.time() < 3700
    assert error.status == 403
    assert "0 of 60 requests left" in error.found
    assert time.strftime("%Y-%m-%d %H:", time.gmtime(error.reset)) in error.remedy
    assert "GH_TOKEN" in error.remedy


@pytest.mark.parametrize("status", [403, 429])
def test_a_short_limit_is_waited_for(store, github, status):
    github.limit_status = status
    github.exhaust(wait=0.5)
    began = time.time()
    store.save(net(1), "a")
    assert time.time() - began >= 0.5
    github.secondary = [1]
    assert store.get_state_keys() == [KEY]
    github.secondary = [3000]
    with pytest.raises(RateLimitError, match="wait until"):
        store.get_state_keys()


def test_an_unknown_repository_is_an_error_not_an_empty_store(github, tmp_path):
    store = GitHubReleaseStore("org", "none", cache=tmp_path)
    for use in (store.get_state_keys, lambda: store.get_state_keys(LINEAR)):
        with pytest.raises(AccessError, match="no such repository"):
            use()
    with pytest.raises(AccessError):
        store.save(net(1), "a")


def test_a_renamed_repository_goes_on_working(store, fresh, github):
    key = store.save(net(1), "a")
    github.rename("org/models", "org/other")
    other = store.save(net(2), "b")
    assert store.get_state_keys() == [key, other]
    fresh().load(net(), key)
    store.delete(key)
    assert store.get_state_keys() == [other]


# Who is told what.


def test_a_token_goes_to_the_api_and_the_uploads_alone(store, github):
    store.save(net(1), "a", files={"f": b"1"})
    store.save(net(2), "a", overwrite=True)
    github.digests = False  # so that what is uploaded is read back
    store.save(net(3), "b")
    store.load(net(), KEY)
    store.delete(KEY)
    assert {record.authorization for record in github.calls} == {f"Bearer {github.token}"}
    assert github.uploads.requests
    assert github.leaked == []


@pytest.mark.parametrize(
    ("variable", "header"),
    [
        ("GITHUB_TOKEN", "Bearer ghp_writer"),
        ("GH_API_BASIC_AUTH", "Basic b2N0b2NhdDpnaHBfYmFzaWM="),
    ],
)
def test_other_variables_do_as_well(store, github, monkeypatch, variable, header):
    monkeypatch.delenv("GH_TOKEN")
    monkeypatch.setenv(variable, github.login if "BASIC" in variable else github.token)
    store.save(net(1), "a")
    assert {record.authorization for record in github.calls} == {header}


def test_a_login_in_netrc_is_not_for_the_api(store, github, monkeypatch):
    Path(os.environ["NETRC"]).write_text("machine 127.0.0.1 login u password p\n")
    monkeypatch.delenv("GH_TOKEN")
    store.get_state_keys()
    assert {record.authorization for record in github.calls} == {None}


def test_a_reply_of_the_api_that_is_cut_is_asked_for_again(recording_server, monkeypatch):
    monkeypatch.setenv("GITHUB_API_URL", recording_server.url)
    replies = iter([Reply(200, {"Content-Length": "9"}, iter([b"[1, "])), Reply(body=b"[1, 2, 3]")])
    recording_server.before = lambda record: next(replies)
    retries = Retries(2, first=0.01)
    with GitHubApi(Place.from_environment(), offline=False, retries=retries) as api:
        assert api.get("/x") == [1, 2, 3]


def test_a_redirect_of_the_api_to_another_server_gets_no_token(store, github):
    github.before = lambda record: Reply.redirect(f"{github.storage.url}/x")
    with pytest.raises(TransportError, match="another server"):
        store.get_state_keys()
    github.before = None
    store.save(net(1), "a")
    pages = f'<{github.storage.url}/x>; rel="next"'
    github.before = lambda record: Reply(
        200, {"Link": pages, "Content-Type": "application/json"}, b"[]"
    )
    with pytest.raises(TransportError, match="makes no sense"):
        store.get_state_keys()
    assert [r for r in github.storage.requests if r.path == "/x"] == []


@pytest.mark.parametrize(
    "body", [b"[", b"{}", b'[{"id": 1}]', b'[{"id": "1", "tag_name": 5}]', b"\xff"]
)
def test_replies_that_make_no_sense_are_typed_errors(store, github, body):
    github.before = lambda record: Reply(200, {"Content-Type": "application/json"}, body)
    with pytest.raises(TransportError, match="makes no sense"):
        store.get_state_keys()


def test_neither_errors_nor_logs_show_a_token(store, github, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("GH_TOKEN", "ghp_mysecret")
    with pytest.raises(AccessError) as caught:
        store.save(net(1), "a")
    assert "GH_TOKEN" in caught.value.message
    for text in (str(caught.value), repr(store), repr(vars(store)), caplog.text):
        assert "mysecret" not in text
    monkeypatch.setenv("GH_TOKEN", "ghp mysecret")
    with pytest.raises(FormatError) as refused:
        store.get_state_keys()
    assert "mysecret" not in str(refused.value)
    monkeypatch.delenv("GH_TOKEN")
    monkeypatch.setenv("GH_API_BASIC_AUTH", "mysecret")
    with pytest.raises(FormatError, match="user:token") as refused:
        store.get_state_keys()
    assert "mysecret" not in str(refused.value)


def test_signed_addresses_are_in_no_log_and_no_error(store, github, caplog):
    caplog.set_level(logging.DEBUG)
    key = store.save(net(1), "a")
    store.load(net(), key)
    deliver = github.storage.before
    github.storage.before = lambda record: Reply(500)
    with pytest.raises((TransportError, FetchError)) as caught:
        store.load(net(), key)
    github.storage.before = deliver
    assert "sig=" not in str(caught.value)
    assert "sig=" not in caplog.text


@pytest.mark.parametrize("hidden", [False, True])
def test_a_missing_permission_is_an_error_that_says_which(store, github, monkeypatch, hidden):
    key = store.save(net(1), "a")
    github.hides_scope = hidden
    monkeypatch.setenv("GH_TOKEN", github.reader)
    for use in (
        lambda: store.save(net(2), "b"),
        lambda: store.save(net(2), "a", overwrite=True),
        lambda: store.delete(key),
    ):
        with pytest.raises(AccessError, match="Contents, read and write") as caught:
            use()
        assert isinstance(caught.value, PermissionError)
    monkeypatch.setenv("GH_TOKEN", github.token)
    model = net(5)
    store.load(model, key)
    assert same(values(model), values(net(1)))


def test_saving_and_deleting_need_a_token(store, github, monkeypatch):
    key = store.save(net(1), "a")
    monkeypatch.delenv("GH_TOKEN")
    for use in (
        lambda: store.save(net(2), "b"),
        lambda: store.save_state_dict({"a": torch.ones(1)}, StateKey.parse("jax.x.y")),
        lambda: store.delete(key),
    ):
        with pytest.raises(AccessError, match="there is none"):
            use()


# Enterprise.


@pytest.mark.parametrize(
    ("api", "server", "expected"),
    [
        ("", "", ("https://api.github.com", "https://github.com")),
        ("https://ghe.org/api/v3", "", ("https://ghe.org/api/v3", "https://ghe.org")),
        ("https://ghe.org/api/v3/", "", ("https://ghe.org/api/v3", "https://ghe.org")),
        ("", "https://ghe.org/", ("https://ghe.org/api/v3", "https://ghe.org")),
        ("", "https://github.com", ("https://api.github.com", "https://github.com")),
        ("https://api.github.com", "", ("https://api.github.com", "https://github.com")),
        ("https://api.x.ghe.com", "", ("https://api.x.ghe.com", "https://x.ghe.com")),
        ("", "https://x.ghe.com", ("https://api.x.ghe.com", "https://x.ghe.com")),
        ("http://a:1/v", "http://b:2", ("http://a:1/v", "http://b:2")),
    ],
)
def test_where_github_is(monkeypatch, api, server, expected):
    monkeypatch.setenv("GITHUB_API_URL", api)
    monkeypatch.setenv("GITHUB_SERVER_URL", server)
    place = Place.from_environment()
    assert (place.api, place.server) == expected


def test_an_address_with_a_password_is_refused(monkeypatch):
    monkeypatch.setenv("GITHUB_API_URL", "https://user:mysecret@ghe.org/api/v3")
    with pytest.raises(TransportError) as caught:
        GitHubReleaseStore("org", "models")
    assert "mysecret" not in str(caught.value)


def test_no_token_is_sent_over_http(monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_API_URL", "http://ghe.example.org/api/v3")
    monkeypatch.setenv("GH_TOKEN", "ghp_x")
    with pytest.raises(AccessError, match="over http"):
        github_store(tmp_path / "cache").save(net(1), "a")


def test_an_enterprise_server_has_its_api_below_a_path(tmp_path, monkeypatch, github):
    with type(github)(prefix="/api/v3") as enterprise:
        enterprise.add()
        monkeypatch.setenv("GITHUB_API_URL", enterprise.api_url)
        monkeypatch.setenv("GITHUB_SERVER_URL", enterprise.web.url)
        store = github_store(tmp_path / "cache")
        key = store.save(net(1), "a")
        assert store.get_state_keys() == [key]
        store.load(net(), key)
        store.save(net(2), "a", overwrite=True)
        store.delete(key)
        assert all(record.path.startswith("/api/v3/") for record in enterprise.api.requests)
    assert github.calls == []


# States of the predecessor.


def gzipped(value) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return gzip.compress(file.getvalue())


@pytest.fixture
def legacy(github):
    name = "a.state.gzip"
    return github.put(github.repos["org/models"], TAG, name, gzipped(net(1).state_dict()))


def test_old_states_list_and_load(legacy, store, github, monkeypatch):
    assert store.get_state_keys(LINEAR) == store.get_state_keys() == [KEY]
    assert store.exists(KEY)
    monkeypatch.delenv("GH_TOKEN")
    github.reset()
    model = net(2)
    result = store.load(model, KEY)
    assert same(values(model), values(net(1)))
    assert result.digest == store.digest(KEY) == state_digest(net(1).state_dict())
    assert same(store.load_state_dict(KEY), values(net(1)))
    assert github.calls == []
    assert sum(record.bytes_sent > 1 for record in github.storage.requests) == 1


def test_an_old_state_of_an_older_model_is_given_to_it_unpacked(store, github):
    repo = github.repos["org/models"]
    for name, data in (("a", gzip.compress(b"opaque")), ("b", b"\x1f\x8b damaged")):
        github.put(repo, "state.sklearn.forest", f"{name}.state.gzip", data)
    model = BytesModel()
    store.load(model, StateKey(BytesModel.state_type, "a"))
    assert model.state == b"opaque"
    with pytest.raises(FormatError, match="damaged"):
        store.load(model, StateKey(BytesModel.state_type, "b"))


def test_an_old_state_that_runs_code_is_refused(store, github, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    github.put(github.repos["org/models"], TAG, "a.state.gzip", gzipped({"x": Evil()}))
    with pytest.raises(FetchError, match="not a checkpoint of plain tensors"):
        store.load(net(), KEY)
    assert not (tmp_path / "ran").exists()


def test_an_old_state_is_compared_never_written(legacy, store, github):
    github.reset()
    store.save(net(1), "a")
    with pytest.raises(StateExistsError, match="other weights"):
        store.save(net(2), "a")
    with pytest.raises(ReadOnlyStoreError, match="older layout"):
        store.delete(KEY)
    assert github.names(TAG) == ["a.state.gzip"]
    store.save(net(2), "a", overwrite=True)
    assert "a.state.gzip" in github.names(TAG)
    assert store.digest(KEY) == state_digest(net(2).state_dict())
    assert store.get_state_keys() == [KEY]


# Memory.

CHILD = """
import resource, sys, threading, torch
from mlstate import GitHubReleaseStore, StateKey
store = GitHubReleaseStore("org", "models", cache=sys.argv[1])
tensors = {f"t{n}": torch.full((8 << 20,), n / 7) for n in range(3)}
tensors["odd"] = torch.full((2048, 1024), 2.0).t()
key = StateKey.parse("pytorch.net.a")
store.save_state_dict({"x": torch.ones(9)}, StateKey.parse("pytorch.net.b"))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
store.save_state_dict(tensors, key)
print(peak() - before)
"""


def test_saving_holds_no_copy_in_memory_and_writes_no_file(github, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(CHILD), tmp_path / "cache"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24  # MB; the state has 104, the one that is copied 8
    assert sum(len(asset_of(github, name).data) for name in data_names(github)) > 100_000_000
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def pointing(github, store, *addresses):
    """Let the pointer of the only state name these mirrors alone."""
    pointer = asset_of(github, "a.toml")
    head = pointer.data.decode().partition("mirrors")[0]
    pointer.data = f"{head}mirrors = [{', '.join(map(repr, addresses))}]\n".encode()


def test_a_pointer_names_no_server_of_a_private_network(store, fresh, github, start_recording):
    key = store.save(net(1), "a")
    plain = asset_of(github, f"a.{store.digest(key)}.safetensors").data
    inside = start_recording({"x.safetensors": plain})
    pointing(github, store, f"{inside.url}/x.safetensors", "s3://victim/x.safetensors")
    with pytest.raises(FetchError) as caught:
        fresh().load(net(), key)
    reasons = [reason for _, reason in caught.value.attempts]
    assert "without TLS" in reasons[0]
    assert "another bucket" in reasons[1]
    assert all("MLSTATE_ALLOWED_HOSTS" in reason for reason in reasons)
    assert inside.requests == []


def test_a_server_that_the_user_allows_may_be_named(
    store, fresh, github, start_recording, monkeypatch
):
    key = store.save(net(1), "a")
    plain = asset_of(github, f"a.{store.digest(key)}.safetensors").data
    inside = start_recording({"x.safetensors": plain})
    pointing(github, store, f"{inside.url}/x.safetensors")
    monkeypatch.setenv("MLSTATE_ALLOWED_HOSTS", inside.url)
    assert fresh().load(net(), key).digest == store.digest(key)


def test_what_a_pointer_may_not_name_gets_into_no_manifest_of_the_users(
    store, fresh, github, tmp_path
):
    key = store.save(net(1), "a")
    pointing(github, store, "/etc/hostname", "s3://victim/x", "https://weights.example/x")
    path = tmp_path / "mine.toml"
    manifest_of(fresh(), [key]).write(path)
    text = path.read_text()
    assert "weights.example" in text
    assert "victim" not in text
    assert "hostname" not in text


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"id": ' * 70,
        b"[" + b"[]," * 200_000 + b"[]]",
        b'[{"id": ' + b"9" * 5000 + b"}]",
        b"\xff\xfe",
    ],
)
def test_a_reply_that_a_parser_chokes_on_is_an_error(store, github, body):
    for status in (200, 400):
        github.before = lambda record, status=status: Reply(
            status, {"Content-Type": "application/json"}, body
        )
        with pytest.raises(TransportError) as caught:
            store.get_state_keys()
        assert len(str(caught.value)) < 2000


def test_a_page_of_a_portal_is_no_reply_of_github(store, github):
    page = Reply(200, {"Content-Type": "text/html"}, b"<html>Please log in")
    github.before = lambda record: page
    with pytest.raises(TransportError, match="a web page came") as caught:
        store.get_state_keys()
    assert "captive portal" in caught.value.remedy


def test_a_list_without_end_ends(store, github, monkeypatch):
    monkeypatch.setattr("mlstate.stores.github.api.MAX_PAGES", 5)
    asked = []

    def endless(record):
        asked.append(record)
        link = f'<{github.api_url}{record.path}>; rel="next"'
        return Reply(200, {"Content-Type": "application/json", "Link": link}, b"[]")

    github.before = endless
    with pytest.raises(TransportError, match="no end"):
        store.get_state_keys()
    assert len(asked) == 5
