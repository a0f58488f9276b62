"""What GitHub has and how it says it: releases and assets as JSON, refusals, pages."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.servers.replies import Record, Reply

__all__ = ["Asset", "Release", "Repo", "answer", "invalid", "page", "refused", "sanitised"]

DOCS = "https://docs.github.com/rest"


@dataclass
class Asset:
    """A file of a release; ``state`` is "starter" until all of it is there."""

    id: int
    name: str
    content_type: str
    data: bytes
    state: str = "uploaded"
    label: str | None = None
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    downloads: int = 0

    @property
    def digest(self) -> str:
        return "sha256:" + hashlib.sha256(self.data).hexdigest()


@dataclass
class Release:
    id: int
    tag: str
    target: str
    name: str | None
    body: str | None
    draft: bool = False
    prerelease: bool = False
    immutable: bool = False
    created: float = field(default_factory=time.time)
    assets: dict[int, Asset] = field(default_factory=dict)

    def named(self, name: str) -> Asset | None:
        return next((asset for asset in self.assets.values() if asset.name == name), None)


@dataclass
class Repo:
    """A repository: who may see it, its branches and tags, its releases."""

    id: int
    name: str
    private: bool = False
    immutable: bool = False  # whether releases that are published from now on can be changed
    branches: set[str] = field(default_factory=lambda: {"main", "model-store"})
    tags: dict[str, str] = field(default_factory=dict)
    releases: dict[int, Release] = field(default_factory=dict)

    def tagged(self, tag: str) -> Release | None:
        return next((r for r in self.releases.values() if r.tag == tag and not r.draft), None)

    def holding(self, asset_id: int) -> Release | None:
        return next((r for r in self.releases.values() if asset_id in r.assets), None)


def sanitised(name: str) -> str:
    """The name that GitHub gives to an asset: special characters become periods."""
    name = re.sub(r"[^A-Za-z0-9._@+~-]+", ".", name).rstrip(".")
    return f"default{name}" if name.startswith(".") else name


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _user(api: str) -> dict[str, Any]:
    url = f"{api}/users/octocat"
    below = {
        "followers_url": "followers",
        "following_url": "following{/other_user}",
        "gists_url": "gists{/gist_id}",
        "starred_url": "starred{/owner}{/repo}",
        "subscriptions_url": "subscriptions",
        "organizations_url": "orgs",
        "repos_url": "repos",
        "events_url": "events{/privacy}",
        "received_events_url": "received_events",
    }
    return {
        "login": "octocat",
        "id": 1,
        "node_id": "MDQ6VXNlcjE=",
        "avatar_url": "https://github.com/images/error/octocat_happy.gif",
        "gravatar_id": "",
        "url": url,
        "html_url": "https://github.com/octocat",
        "type": "User",
        "site_admin": False,
        **{name: f"{url}/{path}" for name, path in below.items()},
    }


@dataclass(frozen=True)
class Addresses:
    """The addresses that JSON is full of."""

    api: str
    uploads: str
    web: str
    digests: bool

    def asset(self, repo: Repo, release: Release, asset: Asset) -> dict[str, Any]:
        return {
            "url": f"{self.api}/repos/{repo.name}/releases/assets/{asset.id}",
            "browser_download_url": (
                f"{self.web}/{repo.name}/releases/download/{release.tag}/{asset.name}"
            ),
            "id": asset.id,
            "node_id": f"RA_{asset.id}",
            "name": asset.name,
            "label": asset.label or "",
            "state": asset.state,
            "content_type": asset.content_type,
            "size": len(asset.data),
            "digest": asset.digest if self.digests and asset.state == "uploaded" else None,
            "download_count": asset.downloads,
            "created_at": _stamp(asset.created),
            "updated_at": _stamp(asset.updated),
            "uploader": _user(self.api),
        }

    def release(self, repo: Repo, release: Release) -> dict[str, Any]:
        url = f"{self.api}/repos/{repo.name}/releases/{release.id}"
        path = f"/repos/{repo.name}/releases/{release.id}/assets"
        return {
            "url": url,
            "html_url": f"{self.web}/{repo.name}/releases/tag/{release.tag}",
            "assets_url": f"{url}/assets",
            "upload_url": f"{self.uploads}{path}{{?name,label}}",
            "tarball_url": f"{self.api}/repos/{repo.name}/tarball/{release.tag}",
            "zipball_url": f"{self.api}/repos/{repo.name}/zipball/{release.tag}",
            "id": release.id,
            "node_id": f"RE_{release.id}",
            "tag_name": release.tag,
            "target_commitish": release.target,
            "name": release.name,
            "body": release.body,
            "draft": release.draft,
            "prerelease": release.prerelease,
            "immutable": release.immutable,
            "created_at": _stamp(release.created),
            "published_at": None if release.draft else _stamp(release.created),
            "updated_at": _stamp(release.created),
            "author": _user(self.api),
            "assets": [self.asset(repo, release, asset) for asset in release.assets.values()],
        }


def answer(status: int, value: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
    every = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return Reply(status, every, b"" if value is None else json.dumps(value).encode())


def refused(status: int, message: str, headers: Mapping[str, str] | None = None) -> Reply:
    said = {"message": message, "documentation_url": DOCS, "status": str(status)}
    return answer(status, said, headers)


def invalid(resource: str, code: str, where: str, message: str | None = None) -> Reply:
    """422, as validations fail."""
    error = {"resource": resource, "code": code, "field": where}
    if message is not None:
        error["message"] = message
    said = {"message": "Validation Failed", "errors": [error], "documentation_url": DOCS}
    return answer(422, {**said, "status": "422"})


def page(record: Record, base: str, items: Sequence[Any]) -> Reply:
    """One page of a list, with the addresses of the others."""
    split = urlsplit(record.path)
    query = {name: values[0] for name, values in parse_qs(split.query).items()}
    size = min(max(int(query.get("per_page", 30)), 1), 100)
    number = max(int(query.get("page", 1)), 1)
    last = max(-(-len(items) // size), 1)

    def at(other: int, rel: str) -> str:
        numbered = urlencode({**query, "page": other})
        return f'<{base}{split.path}?{numbered}>; rel="{rel}"'

    links = []
    if number > 1:
        links += [at(number - 1, "prev"), at(1, "first")]
    if number < last:
        links += [at(number + 1, "next"), at(last, "last")]
    headers = {"Link": ", ".join(links)} if links else {}
    return answer(200, list(items[(number - 1) * size : number * size]), headers)
