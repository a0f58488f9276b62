"""The GitHub of the tests: what it answers is what the real one does, as far as one can tell."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from base64 import b64encode
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mlstate import GitHubReleaseStore, StateKey
from tests.support.models import LINEAR, net

# Read here, for each test is given an environment without such settings.
DESCRIPTION = os.environ.get("MLSTATE_GITHUB_OPENAPI")
TAG = "state.pytorch.net"
GENERAL = {301, 307, 401, 403, 404, 422, 429, 502}  # any request can meet these


class Client:
    """Says plainly what it wants, and follows nothing."""

    def __init__(self, http, github, token=None):
        self.http, self.github = http, github
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def __call__(self, method, path, body=None, **headers):
        url = path if "://" in path else self.github.api_url + "/repos/org/models" + path
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        headers = {**self.headers, **{n.replace("_", "-"): v for n, v in headers.items()}}
        reply = self.http.request(method, url, body=data, headers=headers, redirect=False)
        reply.value = json.loads(reply.data) if reply.data[:1] in (b"{", b"[") else None
        return reply

    def release(self, tag=TAG):
        return self("POST", "/releases", {"tag_name": tag, "target_commitish": "model-store"}).value

    def upload(self, release, name, data=b"x"):
        address = release["upload_url"].partition("{")[0]
        return self("POST", f"{address}?name={name}", data)


@pytest.fixture
def writer(http, github):
    return Client(http, github, github.token)


@pytest.fixture
def anonymous(http, github):
    return Client(http, github)


def code(reply):
    return [(error["field"], error["code"]) for error in reply.value.get("errors", [])]


def test_a_release_is_made_once_with_its_tag_on_a_branch(writer, github):
    made = writer("POST", "/releases", {"tag_name": TAG, "target_commitish": "model-store"})
    assert made.status == 201
    assert github.repos["org/models"].tags == {TAG: "model-store"}
    assert writer("GET", f"/releases/tags/{TAG}").value == made.value
    again = writer("POST", "/releases", {"tag_name": TAG})
    assert (again.status, code(again)) == (422, [("tag_name", "already_exists")])
    nowhere = writer("POST", "/releases", {"tag_name": "x", "target_commitish": "none"})
    assert (nowhere.status, code(nowhere)) == (422, [("target_commitish", "invalid")])
    assert writer("GET", "/releases/tags/other").status == 404


def test_uploads_go_to_another_host_and_downloads_lead_to_a_third(writer, anonymous, github):
    release = writer.release()
    hosts = {urlsplit(url).netloc for url in (github.api_url, release["upload_url"])}
    asset = writer.upload(release, "a.bin", b"12345").value
    assert (asset["name"], asset["size"], asset["state"]) == ("a.bin", 5, "uploaded")
    assert re.fullmatch("sha256:[0-9a-f]{64}", asset["digest"])
    for place in (
        anonymous("GET", asset["browser_download_url"]),
        writer("GET", f"/releases/assets/{asset['id']}", Accept="application/octet-stream"),
    ):
        assert place.status == 302
        location = place.headers["Location"]
        assert urlsplit(location).netloc not in hosts
        assert anonymous("GET", location).data == b"12345"
        part = anonymous("GET", location, Range="bytes=1-2")
        assert (part.status, part.data) == (206, b"23")
        assert writer("GET", location).status == 400  # two ways to identify oneself
        assert anonymous("GET", location.replace("sig=", "sig=0")).status == 403
    known = writer("GET", f"/releases/assets/{asset['id']}").value
    assert known == {**asset, "download_count": 1}
    github.digests = False
    assert writer("GET", f"/releases/assets/{asset['id']}").value["digest"] is None


def test_a_name_exists_once(writer, anonymous):
    release = writer.release()
    first, second = (writer.upload(release, name).value for name in "ab")
    again = writer.upload(release, "a")
    assert (again.status, code(again)) == (422, [("name", "already_exists")])
    path = f"/releases/assets/{second['id']}"
    taken = writer("PATCH", path, {"name": "a"})
    assert (taken.status, code(taken)) == (422, [("name", "already_exists")])
    assert writer("PATCH", path, {"name": "c"}).value["name"] == "c"
    assert writer("DELETE", f"/releases/assets/{first['id']}").status == 204
    assert writer("DELETE", f"/releases/assets/{first['id']}").status == 404
    assert writer("PATCH", path, {"name": "a"}).value["id"] == second["id"]
    assert anonymous("GET", second["browser_download_url"]).status == 404
    assert anonymous("GET", second["browser_download_url"][:-1] + "a").status == 302


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("v1-(15-5)-60.apk", "v1-.15-5.-60.apk"),
        ("a%20b", "a.b"),
        (".hidden", "default.hidden"),
        ("a_b.c", "a_b.c"),
    ],
)
def test_special_characters_in_names_become_periods(writer, name, kept):
    assert writer.upload(writer.release(), name).value["name"] == kept


def test_assets_have_limits(writer, github):
    release = writer.release()
    github.asset_limit, github.most_assets = 4, 2
    assert writer.upload(release, "a", b"1234").status == 201
    for size, words in ((5, "less than or equal to 4"), (0, "greater than or equal to 1")):
        reply = writer.upload(release, "b", b"1" * size)
        assert (reply.status, code(reply)) == (422, [("size", "custom")])
        assert words in reply.value["errors"][0]["message"]
    assert writer.upload(release, "b").status == 201
    full = writer.upload(release, "c")
    assert (full.status, code(full)) == (422, [("file_count", "custom")])


def test_what_is_immutable_stays(writer, github):
    github.repos["org/models"].immutable = True
    release = writer.release()
    assert release["immutable"] is True
    reply = writer.upload(release, "a")
    assert (reply.status, reply.value["message"]) == (
        422,
        "Cannot upload assets to an immutable release.",
    )
    asset = github.put(github.repos["org/models"], TAG, "b", b"1")
    assert writer("DELETE", f"/releases/assets/{asset.id}").status == 422
    assert writer("PATCH", f"/releases/assets/{asset.id}", {"name": "c"}).status == 422


def test_lists_come_in_pages(writer, github):
    repo = github.repos["org/models"]
    for number in range(65):
        github.put(repo, TAG, f"{number}", b"1")
        github.put(repo, f"tag{number}", "a", b"1")
    release = repo.tagged(TAG)
    for path, count in ((f"/releases/{release.id}/assets", 65), ("/releases", 66)):
        seen, url = [], f"{path}?per_page=20"
        while url:
            reply = writer("GET", url)
            seen += [item["id"] for item in reply.value]
            assert len(reply.value) <= 20
            found = re.search(r'<([^>]*)>; rel="next"', reply.headers.get("Link", ""))
            url = found and found[1]
        assert len(set(seen)) == len(seen) == count
        assert len(writer("GET", path).value) == 30
        assert len(writer("GET", f"{path}?per_page=1000").value) == min(count, 100)


def test_an_upload_that_is_cut_leaves_a_starter(writer, anonymous, github):
    release = writer.release()
    parts = urlsplit(release["upload_url"].partition("{")[0])
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        head = f"POST {parts.path}?name=a HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
        connection.sendall(f"{head}Authorization: Bearer {github.token}\r\n\r\nonly".encode())
    end = time.monotonic() + 5
    while not github.names(TAG) and time.monotonic() < end:
        time.sleep(0.01)
    github.break_off = {"b": 1}
    assert writer.upload(release, "b").status == 502
    assets = writer("GET", f"/releases/{release['id']}/assets").value
    states = [(asset["name"], asset["state"], asset["size"]) for asset in assets]
    assert states == [("a", "starter", 0), ("b", "starter", 0)]
    assert anonymous("GET", assets[0]["browser_download_url"]).status == 404
    assert code(writer.upload(release, "b")) == [("name", "already_exists")]


def test_who_may_do_what(writer, anonymous, github, http):
    reader, stranger = Client(http, github, github.reader), Client(http, github, "wrong")
    basic = Client(http, github)
    basic.headers = {"Authorization": f"Basic {b64encode(github.login.encode()).decode()}"}
    wish = {"tag_name": TAG}
    assert stranger("GET", "/releases").status == 401
    assert anonymous("GET", "/releases").status == reader("GET", "/releases").status == 200
    assert anonymous("POST", "/releases", wish).status == 401
    assert reader("POST", "/releases", wish).status == 403
    github.hides_scope = True
    assert reader("POST", "/releases", wish).status == 404
    assert basic("POST", "/releases", wish).status == 201
    github.repos["org/models"].private = True
    assert anonymous("GET", "/releases").status == 404
    assert writer("GET", "/releases").status == 200


@pytest.mark.parametrize("status", [403, 429])
def test_the_anonymous_have_60_requests_an_hour(anonymous, writer, github, status):
    github.limit_status = status
    for left in reversed(range(60)):
        reply = anonymous("GET", "/releases")
        assert (reply.status, reply.headers["X-RateLimit-Remaining"]) == (200, str(left))
    reply = anonymous("GET", "/releases")
    assert reply.status == status
    assert reply.headers["X-RateLimit-Limit"] == "60"
    assert 3500 < int(reply.headers["X-RateLimit-Reset"]) - time.time() <= 3600
    assert writer("GET", "/releases").headers["X-RateLimit-Limit"] == "5000"
    github.secondary = [7]
    reply = writer("GET", "/releases")
    assert (reply.status, reply.headers["Retry-After"]) == (status, "7")
    assert writer("GET", "/releases").status == 200


def test_a_renamed_repository_is_found_under_both_names(writer, anonymous, github):
    asset = writer.upload(writer.release(), "a").value
    github.rename("org/models", "org/other")
    moved = writer("GET", f"/releases/tags/{TAG}")
    assert moved.status == 301
    assert writer("GET", moved.headers["Location"]).value["tag_name"] == TAG
    assert writer("DELETE", f"/releases/assets/{asset['id']}").status == 307
    assert anonymous("GET", asset["browser_download_url"]).status == 301


# Against GitHub's own description.


class Description:
    """GitHub's description of its API, as far as it is about releases."""

    def __init__(self, path):
        self.document = json.loads(Path(path).read_text())
        # It forgets this state, of which the text of the upload speaks.
        self.document["components"]["schemas"]["release-asset"]["properties"]["state"][
            "enum"
        ].append("starter")

    def complaints(self, answer, prefix):
        """What of an answer is not as described."""
        from openapi_schema_validator import OAS30Validator, oas30_format_checker

        responses = self._responses(answer, prefix)
        if responses is None:
            return ["no such request is described"]
        if str(answer.status) not in responses and answer.status not in GENERAL:
            return ["no such status is described"]
        said = self._resolved(responses.get(str(answer.status), {}))
        content = said.get("content", {}).get("application/json")
        if content is None and answer.value is None:
            return []
        if content is None:
            kind = "validation-error" if answer.value.get("errors") else "basic-error"
            content = {"schema": {"$ref": f"#/components/schemas/{kind}"}}
        schema = {**content["schema"], "components": self.document["components"]}
        if "$ref" in content["schema"]:
            schema = {"allOf": [content["schema"]], "components": self.document["components"]}
        checker = OAS30Validator(schema, format_checker=oas30_format_checker)
        return [error.message for error in checker.iter_errors(answer.value)]

    def _responses(self, answer, prefix):
        path = answer.path.removeprefix(prefix)
        for template, operations in self.document["paths"].items():
            pattern = re.sub(r"\\{(\w+)\\}", "[^/]+", re.escape(template))
            if re.fullmatch(pattern, path) and answer.method.lower() in operations:
                return operations[answer.method.lower()]["responses"]
        return None

    def _resolved(self, value):
        if "$ref" not in value:
            return value
        found = self.document
        for part in value["$ref"].lstrip("#/").split("/"):
            found = found[part]
        return found


@pytest.fixture
def description():
    if not DESCRIPTION:
        pytest.skip("MLSTATE_GITHUB_OPENAPI names no description of GitHub's API")
    pytest.importorskip("openapi_schema_validator", reason="the validator is not installed")
    return Description(DESCRIPTION)


def test_every_answer_is_as_github_describes_it(description, writer, anonymous, github, http):
    test_assets_have_limits(writer, github)
    github.asset_limit, github.most_assets = 1 << 30, 1000
    writer("POST", "/releases", {"tag_name": TAG})
    writer("POST", "/releases", {"tag_name": "x", "target_commitish": "none"})
    github.break_off = {"broken": 1}
    release = writer("GET", f"/releases/tags/{TAG}").value
    writer.upload(release, "broken")
    asset = writer.upload(release, "d").value
    writer.upload(release, "d")
    writer("GET", "/releases/tags/none")
    writer("GET", "/releases?per_page=1")
    writer("GET", f"/releases/{release['id']}/assets?per_page=1")
    writer("GET", f"/releases/assets/{asset['id']}")
    writer("GET", f"/releases/assets/{asset['id']}", Accept="application/octet-stream")
    writer("PATCH", f"/releases/assets/{asset['id']}", {"name": "a"})
    writer("PATCH", f"/releases/assets/{asset['id']}", {"name": "e"})
    writer("DELETE", f"/releases/assets/{asset['id']}")
    writer("DELETE", f"/releases/assets/{asset['id']}")
    anonymous("POST", "/releases", {"tag_name": TAG})
    Client(http, github, github.reader)("POST", "/releases", {"tag_name": TAG})
    Client(http, github, "wrong")("GET", "/releases")
    github.digests = False
    writer("GET", "/releases")
    github.repos["org/models"].tagged(TAG).immutable = True
    writer.upload(release, "f")
    github.rename("org/models", "org/other")
    writer("GET", "/releases")
    github.secondary = [5]
    writer("GET", "/releases")
    statuses = {answer.status for answer in github.answers}
    assert statuses == {200, 201, 204, 301, 302, 401, 403, 404, 422, 502}
    wrong = [(a, c) for a in github.answers if (c := description.complaints(a, ""))]
    assert wrong == []


def test_what_a_store_meets_is_as_github_describes_it(description, github, tmp_path):
    store = GitHubReleaseStore("org", "models", cache=tmp_path)
    store.save(net(1), "a", files={"f": b"1"})
    store.save(net(2), "a", overwrite=True)
    store.get_state_keys()
    store.load(net(), StateKey(LINEAR, "a"))
    store.delete(StateKey(LINEAR, "a"))
    assert len(github.answers) > 20
    assert [c for a in github.answers if (c := description.complaints(a, ""))] == []


def test_the_description_notices_what_is_wrong(description, writer, github):
    writer.upload(writer.release(), "a")
    answer = github.answers[-1]
    assert description.complaints(answer, "") == []
    del answer.value["digest"]
    answer.value["size"] = "1"
    assert len(description.complaints(answer, "")) == 2
