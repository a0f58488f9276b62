"""GitHub for the tests: its REST API for releases, its uploads, its download pages, its storage.

Four servers, each at a port of its own, as the real ones are four hosts. What it answers is held
against GitHub's own description of its API in tests/servers/test_github.py.
"""

from __future__ import annotations

import base64
import hmac
import itertools
import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import RLock
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from tests.servers.github_parts import (
    Addresses,
    Asset,
    Release,
    Repo,
    answer,
    invalid,
    page,
    refused,
    sanitised,
)
from tests.servers.recording import RecordingServer
from tests.servers.replies import Record, Reply, serve

__all__ = ["Answer", "GitHub"]

PUSH = "Resource not accessible by personal access token"
IMMUTABLE = "Cannot {} an immutable release."
ROUTE = re.compile(r"/repos/([^/]+/[^/]+)/releases(?:/(.*))?")
BY_ID = re.compile(r"/repositories/(\d+)(/.*)")


@dataclass(frozen=True)
class Answer:
    """What the API said, to be held against its description."""

    method: str
    path: str
    status: int
    value: Any


class GitHub:
    """A GitHub with the repositories that `add` gives it. Its options may be set at any time.

    Attributes:
        token: May write everywhere.
        reader: A valid token without any permission to write.
        login: A user's name and token, for basic authentication; may write everywhere.
        limit: Requests that a window allows to the anonymous; with a token it is ``token_limit``.
        secondary: The seconds to wait that the next requests are told, one after the other.
        limit_status: 403, or 429.
        asset_limit: The most bytes of an asset.
        most_assets: The most assets of a release.
        digests: Whether assets have a digest.
        hides_scope: Whether a missing permission is 404, as for classic tokens, or 403.
        before: Sees each request to the API and to the uploads before it has an effect.
        after: Sees each such request when it had its effect, before it is answered.
        corrupt: Asset names of which other bytes are stored than were sent, so many times.
        break_off: Asset names whose upload ends in a 502, so many times, and leaves a starter.
    """

    def __init__(self, *, prefix: str = "") -> None:
        self.token, self.reader, self.login = "ghp_writer", "ghp_reader", "octocat:ghp_basic"
        self.limit, self.token_limit, self.limit_status = 60, 5000, 403
        self.secondary: list[int] = []
        self.asset_limit, self.most_assets = 2 << 30, 1000
        self.digests, self.hides_scope = True, False
        self.before: Callable[[Record], Reply | None] | None = None
        self.after: Callable[[Record], Reply | None] | None = None
        self.corrupt: dict[str, int] = {}
        self.break_off: dict[str, int] = {}
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.answers: list[Answer] = []
        self._used: dict[str, int] = {}
        self._reset = int(time.time()) + 3600
        self._blobs: dict[str, Asset] = {}
        self._ids = itertools.count(1)
        self._lock = RLock()
        self._secret = b"0"
        self.storage = RecordingServer(before=self._deliver)
        self.web = RecordingServer(before=self._download)
        self.uploads = RecordingServer(before=self._answer)
        self.api = RecordingServer(before=self._answer)
        self.prefix = prefix
        self.api_url = self.api.url + prefix

    def __enter__(self) -> GitHub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for server in (self.api, self.uploads, self.web, self.storage):
            server.close()

    def add(self, name: str = "org/models", **options: Any) -> Repo:
        """Make a repository."""
        repo = self.repos[name] = Repo(next(self._ids), name, **options)
        return repo

    def rename(self, old: str, new: str) -> None:
        """Let the old name of a repository lead to the new one."""
        repo = self.repos[new] = self.repos.pop(old)
        repo.name, self.renamed[old] = new, new

    def put(self, repo: Repo, tag: str, name: str, data: bytes, **fields: Any) -> Asset:
        """Put an asset into a release, which is made if it is not there."""
        with self._lock:
            release = repo.tagged(tag) or self._publish(repo, tag, "main")
            asset = Asset(next(self._ids), name, "application/octet-stream", data, **fields)
            release.assets[asset.id] = asset
            return asset

    def exhaust(self, wait: float = 3600) -> None:
        """Use up everybody's requests, for some seconds."""
        self._reset = int(time.time() + wait) + 1
        self._used = dict.fromkeys(["", self.token, self.reader], 10**6)

    def expire(self) -> None:
        """End all signed addresses that were given out so far."""
        self._secret += b"0"

    def names(self, tag: str, repo: str = "org/models") -> list[str]:
        """The names of all assets of a release, sorted."""
        release = self.repos[repo].tagged(tag)
        return sorted(asset.name for asset in release.assets.values()) if release else []

    @property
    def calls(self) -> list[Record]:
        """The requests to the API and to the uploads."""
        return [*self.api.requests, *self.uploads.requests]

    @property
    def leaked(self) -> list[Record]:
        """Requests that brought a credential to where none belongs: there should be none."""
        records = [*self.web.requests, *self.storage.requests]
        return [record for record in records if record.authorization is not None]

    def reset(self) -> None:
        """Forget the requests so far."""
        for server in (self.api, self.uploads, self.web, self.storage):
            server.reset()

    # The API, and the uploads.

    def _answer(self, record: Record) -> Reply:
        if self.before is not None and (reply := self.before(record)) is not None:
            return reply
        with self._lock:
            reply = self._limited(record) or self._authorised(record)
            if self.after is not None and (other := self.after(record)) is not None:
                return other
            body = reply.body if isinstance(reply.body, bytes) else b""
            with suppress(ValueError):
                value = json.loads(body) if body else None
                self.answers.append(
                    Answer(record.method, urlsplit(record.path).path, reply.status, value)
                )
            return Reply(reply.status, {**self._limits(record), **reply.headers}, body)

    def _caller(self, record: Record) -> str | None:
        """The token that a request came with; "" without one, None if it is not valid."""
        kind, _, value = (record.authorization or "").partition(" ")
        if not kind:
            return ""
        if kind.lower() == "basic":
            return self.token if base64.b64decode(value).decode() == self.login else None
        return value if value in (self.token, self.reader) else None

    def _limits(self, record: Record) -> dict[str, str]:
        caller = self._caller(record) or ""
        limit = self.token_limit if caller else self.limit
        left = max(0, limit - self._used.get(caller, 0))
        return {
            "X-RateLimit-Limit": str(limit),
            "X-RateLimit-Remaining": str(left),
            "X-RateLimit-Used": str(limit - left),
            "X-RateLimit-Reset": str(self._reset),
            "X-RateLimit-Resource": "core",
            "X-GitHub-Media-Type": "github.v3; format=json",
        }

    def _limited(self, record: Record) -> Reply | None:
        if self.secondary:
            after = {"Retry-After": str(self.secondary.pop(0))}
            message = "You have exceeded a secondary rate limit. Please wait a few minutes."
            return refused(self.limit_status, message, after)
        if time.time() >= self._reset:
            self._used, self._reset = {}, int(time.time()) + 3600
        caller = self._caller(record) or ""
        limit = self.token_limit if caller else self.limit
        self._used[caller] = self._used.get(caller, 0) + 1
        if self._used[caller] > limit:
            return refused(self.limit_status, "API rate limit exceeded for 127.0.0.1.")
        return None

    def _authorised(self, record: Record) -> Reply:
        caller = self._caller(record)
        if caller is None:
            return refused(401, "Bad credentials")
        path = unquote(urlsplit(record.path).path).removeprefix(self.prefix)
        if by_id := BY_ID.fullmatch(path):
            known = [repo.name for repo in self.repos.values() if repo.id == int(by_id[1])]
            path = f"/repos/{known[0] if known else '-/-'}{by_id[2]}"
        route = ROUTE.fullmatch(path)
        if route is None:
            return refused(404, "Not Found")
        name, below = route[1], route[2] or ""
        if name in self.renamed:
            repo = self.repos[self.renamed[name]]
            query = urlsplit(record.path).query
            place = f"{self.api_url}/repositories/{repo.id}/releases"
            place += (f"/{quote(below)}" if below else "") + (f"?{query}" if query else "")
            headers = {"Location": place}
            return answer(301 if record.method == "GET" else 307, {"url": place}, headers)
        repo = self.repos.get(name)
        if repo is None or (repo.private and caller == ""):
            return refused(404, "Not Found")
        if record.method != "GET" and caller != self.token:
            if caller == "":
                return refused(401, "Requires authentication")
            if self.hides_scope:
                return refused(404, "Not Found", {"X-Accepted-OAuth-Scopes": "public_repo, repo"})
            return refused(403, PUSH, {"X-Accepted-GitHub-Permissions": "contents=write"})
        return self._route(record, repo, below)

    def _route(self, record: Record, repo: Repo, below: str) -> Reply:
        said = Addresses(self.api_url, self.uploads.url, self.web.url, self.digests)
        match record.method, below.split("/"):
            case "GET", [""]:
                releases = [said.release(repo, one) for one in repo.releases.values()]
                return page(record, self.api.url, releases[::-1])
            case "POST", [""]:
                return self._create(record, repo, said)
            case "GET", ["tags", *tag]:
                release = repo.tagged("/".join(tag))
                return answer(200, said.release(repo, release)) if release else _missing()
            case method, ["assets", number] if number.isdigit():
                return self._asset(record, method, repo, int(number), said)
            case method, [number, "assets"] if number.isdigit() and int(number) in repo.releases:
                release = repo.releases[int(number)]
                if method == "POST":
                    return self._upload(record, repo, release, said)
                assets = [said.asset(repo, release, one) for one in release.assets.values()]
                return page(record, self.api.url, assets)
        return _missing()

    def _publish(self, repo: Repo, tag: str, target: str, **fields: Any) -> Release:
        release = Release(next(self._ids), tag, target, fields.get("name"), fields.get("body"))
        release.immutable = repo.immutable
        repo.tags.setdefault(tag, target)
        repo.releases[release.id] = release
        return release

    def _create(self, record: Record, repo: Repo, said: Addresses) -> Reply:
        wish = json.loads(record.body)
        tag, target = wish.get("tag_name"), wish.get("target_commitish", "main")
        if not isinstance(tag, str) or not tag or tag.endswith(".lock") or ".." in tag:
            return invalid("Release", "custom", "tag_name", "tag_name is not well-formed")
        if repo.tagged(tag) is not None:
            return invalid("Release", "already_exists", "tag_name")
        if tag not in repo.tags and target not in repo.branches:
            return invalid("Release", "invalid", "target_commitish")
        release = self._publish(repo, tag, target, name=wish.get("name"), body=wish.get("body"))
        return answer(201, said.release(repo, release))

    def _upload(self, record: Record, repo: Repo, release: Release, said: Addresses) -> Reply:
        query = parse_qs(urlsplit(record.path).query)
        name = sanitised(query.get("name", [""])[0])
        size = int(record.headers.get("content-length", 0))
        if release.immutable:
            return refused(422, IMMUTABLE.format("upload assets to"))
        if not name:
            return invalid("ReleaseAsset", "missing_field", "name")
        if not 1 <= size <= self.asset_limit:
            bound = (
                "greater than or equal to 1"
                if size < 1
                else (f"less than or equal to {self.asset_limit}")
            )
            return invalid("ReleaseAsset", "custom", "size", f"size must be {bound}")
        if release.named(name) is not None:
            return invalid("ReleaseAsset", "already_exists", "name")
        if len(release.assets) >= self.most_assets:
            message = f"file_count limited to {self.most_assets} assets per release"
            return invalid("ReleaseAsset", "custom", "file_count", message)
        kind = record.headers.get("content-type", "application/octet-stream")
        asset = Asset(next(self._ids), name, kind, record.body)
        release.assets[asset.id] = asset
        if len(record.body) < size or _once(self.break_off, name):
            asset.state, asset.data = "starter", b""
            return refused(502, "Server Error")
        if _once(self.corrupt, name):
            asset.data = bytes([asset.data[0] ^ 1]) + asset.data[1:]
        return answer(201, said.asset(repo, release, asset))

    def _asset(
        self, record: Record, method: str, repo: Repo, number: int, said: Addresses
    ) -> Reply:
        release = repo.holding(number)
        if release is None:
            return _missing()
        asset = release.assets[number]
        if method == "GET":
            if "application/octet-stream" not in record.headers.get("accept", ""):
                return answer(200, said.asset(repo, release, asset))
            if asset.state != "uploaded":
                return _missing()
            return Reply.redirect(self._sign(asset))
        if release.immutable:
            what = "delete assets from" if method == "DELETE" else "update assets of"
            return refused(422, IMMUTABLE.format(what))
        if method == "DELETE":
            del release.assets[number]
            return Reply(204)
        if method != "PATCH":
            return _missing()
        name = sanitised(json.loads(record.body).get("name", asset.name))
        if (other := release.named(name)) is not None and other is not asset:
            return invalid("ReleaseAsset", "already_exists", "name")
        asset.name, asset.updated = name, time.time()
        return answer(200, said.asset(repo, release, asset))

    # The download pages, and the storage behind them.

    def _download(self, record: Record) -> Reply:
        owner, name, *rest = [*record.name.split("/"), "", ""]
        known = f"{owner}/{name}"
        if known in self.renamed:
            return Reply.redirect(record.path.replace(known, self.renamed[known], 1), 301)
        match rest:
            case ["releases", "download", tag, file, *_]:
                with self._lock:
                    repo = self.repos.get(known)
                    release = None if repo is None or repo.private else repo.tagged(tag)
                    asset = None if release is None else release.named(file)
                    if asset is not None and asset.state == "uploaded":
                        asset.downloads += 1
                        return Reply.redirect(self._sign(asset))
        return Reply(404, {"Content-Type": "text/plain; charset=utf-8"}, b"Not Found")

    def _sign(self, asset: Asset) -> str:
        path = f"/github-production-release-asset/{asset.id}"
        self._blobs[path] = asset
        query = {
            "sp": "r",
            "se": f"{time.time() + 3600:.0f}",
            "sig": self._signature(path),
            "response-content-disposition": f"attachment; filename={asset.name}",
            "response-content-type": "application/octet-stream",
        }
        return f"{self.storage.url}{path}?{urlencode(query)}"

    def _signature(self, path: str) -> str:
        return hmac.new(self._secret, path.encode(), "sha256").hexdigest()

    def _deliver(self, record: Record) -> Reply:
        parts = urlsplit(record.path)
        xml = {"Content-Type": "application/xml"}
        if record.authorization is not None:  # one way to identify oneself is enough
            return Reply(400, xml, b"<Error><Code>InvalidAuthenticationInfo</Code></Error>")
        signature = parse_qs(parts.query).get("sig", [""])[0]
        asset = self._blobs.get(parts.path)
        if asset is None or signature != self._signature(parts.path):
            return Reply(403, xml, b"<Error><Code>AuthenticationFailed</Code></Error>")
        return serve(record, asset.data, f'"0x{asset.digest[7:23]}"')


def _missing() -> Reply:
    return refused(404, "Not Found")


def _once(left: dict[str, int], name: str) -> bool:
    """Whether this is to happen to an asset now; "*" is any."""
    key = name if name in left else "*"
    if not left.get(key):
        return False
    left[key] -= 1
    return True
