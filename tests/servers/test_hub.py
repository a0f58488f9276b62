"""The hub of the tests answers as the real one: huggingface_hub works with it."""

from __future__ import annotations

import hashlib
import time
from urllib.parse import urlsplit

import pytest

from tests.servers.client import DATA, get

SMALL = b'{"model_type": "bert"}'


@pytest.fixture
def commit(hub) -> str:
    """The commit of a public repository, with a private and a gated one beside it."""
    files = {"config.json": SMALL, "sub dir/model.safetensors": DATA}
    hub.add("org/private", files, private=True)
    hub.add("org/gated", files, gated=True)
    return hub.add("org/model", files)


def download(hub, folder, name: str, file: str, **options) -> bytes:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    options = {"token": False, "endpoint": hub.url, "cache_dir": folder, **options}
    with open(huggingface_hub.hf_hub_download(name, file, **options), "rb") as got:
        return got.read()


@pytest.mark.parametrize("resolve_cache", [False, True])
@pytest.mark.parametrize("revision", ["main", "refs/pr/1", None])
def test_huggingface_hub_downloads_from_the_hub(hub, commit, tmp_path, resolve_cache, revision):
    hub.resolve_cache = resolve_cache
    hub.add("org/model", {"config.json": SMALL, "sub dir/model.safetensors": DATA})
    hub.add("org/model", {"config.json": b"{}"}, revision="refs/pr/1")
    options = {"revision": revision or commit, "token": hub.token}
    small = download(hub, tmp_path, "org/model", "config.json", **options)
    assert small == (b"{}" if revision == "refs/pr/1" else SMALL)
    if revision != "refs/pr/1":
        assert download(hub, tmp_path, "org/model", "sub dir/model.safetensors", **options) == DATA
        assert hub.cdn.bytes_sent == len(DATA)
    assert all(record.authorization == f"Bearer {hub.token}" for record in hub.api.requests)
    assert hub.leaked == []


def test_huggingface_hub_downloads_a_snapshot(hub, commit, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    options = {"endpoint": hub.url, "token": False, "cache_dir": tmp_path}
    folder = huggingface_hub.snapshot_download("org/model", **options)
    assert folder.endswith(commit)
    with open(f"{folder}/sub dir/model.safetensors", "rb") as file:
        assert file.read() == DATA


def test_huggingface_hub_understands_what_the_hub_says_of_a_model(hub, commit):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    api = huggingface_hub.HfApi(endpoint=hub.url, token=False)
    info = api.model_info("org/model", revision="main", files_metadata=True)
    assert (info.id, info.sha, info.private, info.gated) == ("org/model", commit, False, False)
    config, model = info.siblings
    assert (config.rfilename, config.size, config.lfs) == ("config.json", len(SMALL), None)
    assert config.blob_id == hashlib.sha1(b"blob %d\0" % len(SMALL) + SMALL).hexdigest()
    assert (model.rfilename, model.size) == ("sub dir/model.safetensors", len(DATA))
    assert model.lfs.sha256 == hashlib.sha256(DATA).hexdigest()
    assert api.model_info("org/gated").gated == "manual"
    hub.rename("org/model", "new/model")
    assert api.model_info("org/model").id == "new/model"


@pytest.mark.parametrize(
    "case",
    [
        ("org/none", "config.json", "main", None, 401, "RepositoryNotFoundError"),
        ("org/none", "config.json", "main", "token", 404, "RepositoryNotFoundError"),
        ("org/private", "config.json", "main", None, 401, "RepositoryNotFoundError"),
        ("org/private", "config.json", "main", "outsider", 404, "RepositoryNotFoundError"),
        ("org/private", "config.json", "main", "token", 200, None),
        ("org/gated", "config.json", "main", None, 401, "GatedRepoError"),
        ("org/gated", "config.json", "main", "outsider", 403, "GatedRepoError"),
        ("org/gated", "config.json", "main", "token", 200, None),
        ("org/model", "config.json", "v9", None, 404, "RevisionNotFoundError"),
        ("org/model", "none.json", "main", None, 404, "EntryNotFoundError"),
    ],
)
def test_huggingface_hub_understands_what_the_hub_refuses(hub, commit, tmp_path, case):
    name, file, revision, who, status, error = case
    errors = pytest.importorskip("huggingface_hub.errors")
    options = {"revision": revision, "token": getattr(hub, who) if who else False}
    if error is None:
        assert download(hub, tmp_path, name, file, **options) == SMALL
    else:
        with pytest.raises((getattr(errors, error), errors.LocalEntryNotFoundError)) as caught:
            download(hub, tmp_path, name, file, **options)
        whole = [caught.value, caught.value.__cause__]
        assert any(isinstance(one, getattr(errors, error)) for one in whole)
    assert hub.api.requests[-1].status == status


def test_an_invalid_token_is_refused_even_where_none_is_needed(hub, commit, http):
    reply = get(http, hub.url + "/api/models/org/model", Authorization="Bearer hf_wrong")
    assert (reply.status, reply.headers["X-Error-Message"]) == (
        401,
        "Invalid credentials in Authorization header",
    )


def test_a_large_file_is_behind_a_signed_url_that_expires(hub, commit, http):
    url = hub.url + "/org/model/resolve/main/sub%20dir/model.safetensors"
    reply = get(http, url)
    sha256 = hashlib.sha256(DATA).hexdigest()
    assert reply.status == 302
    assert reply.headers["X-Repo-Commit"] == commit
    assert reply.headers["X-Linked-Size"] == str(len(DATA))
    assert reply.headers["X-Linked-ETag"] == f'"{sha256}"'
    signed = reply.headers["Location"]
    assert urlsplit(signed).port == hub.cdn.port
    assert get(http, signed, "10-19").data == DATA[10:20]
    assert get(http, signed.replace("Signature=", "Signature=0")).status == 403
    hub.expire()
    assert get(http, signed).status == 403
    hub.lifetime = 0.1
    signed = get(http, url).headers["Location"]
    assert get(http, signed, "0-9").status == 206
    time.sleep(0.15)
    assert get(http, signed, "0-9").status == 403


def test_the_hub_sees_a_token_that_reaches_the_other_port(hub, commit, http):
    signed = get(http, hub.url + "/org/model/resolve/main/sub%20dir/model.safetensors")
    get(http, signed.headers["Location"], "0-9", Authorization=f"Bearer {hub.token}")
    assert len(hub.leaked) == 1


def test_too_many_resolves_are_put_off(hub, commit, http):
    hub.limit, hub.window = 2, 1
    url = hub.url + "/org/model/resolve/main/config.json"
    assert [get(http, url).status for _ in range(2)] == [307, 307]
    reply = get(http, url)
    assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
    assert '"resolvers";r=0' in reply.headers["RateLimit"]
    assert len(hub.resolves) == 3
    time.sleep(1)
    assert get(http, url).status == 307
