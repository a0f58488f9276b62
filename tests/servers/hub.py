"""A Hugging Face hub for the tests: repositories at one port, their large files at another.

What it answers is what the real one does: the headers are those that huggingface_hub reads, and
tests/servers/test_hub.py downloads with huggingface_hub from it.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from tests.servers.hub_parts import Blob, Repo, as_json, blob_of, details, failed, leaf
from tests.servers.ports import HOST
from tests.servers.recording import RecordingServer
from tests.servers.replies import Record, Reply, Source, serve

__all__ = ["Hub"]

DENIED = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code></Error>'


class Hub:
    """A hub with the repositories that `add` gives it; models only.

    Attributes:
        token: Sees everything.
        outsider: A valid token too, but one that sees no private and no gated repository.
        limit: Resolves that are allowed in a window of ``window`` seconds; then it is 429.
        lifetime: Seconds that a signed URL is good for; `expire` ends those given out.
        resolve_cache: Whether small files are behind a relative redirect, as they are since 2025.
    """

    def __init__(
        self,
        *,
        token: str = "hf_insider",
        outsider: str = "hf_outsider",
        limit: int = 3000,
        window: float = 300,
        lifetime: float = 3600,
        resolve_cache: bool = True,
        cdn_host: str = HOST,
    ) -> None:
        self.token, self.outsider = token, outsider
        self.limit, self.window, self.lifetime = limit, window, lifetime
        self.resolve_cache = resolve_cache
        self._repos: dict[str, Repo] = {}
        self._renamed: dict[str, str] = {}
        self._blobs: dict[str, Blob] = {}
        self._lock = Lock()
        self._window, self._resolves = 0.0, 0
        self._secret = b"0"
        self.cdn = RecordingServer(before=self._deliver)
        self.api = RecordingServer(before=self._answer)
        self.url = self.api.url
        self._cdn_url = f"http://{cdn_host}:{self.cdn.port}"

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.api.close()
        self.cdn.close()

    def add(
        self,
        name: str,
        files: Mapping[str, Source] | Path,
        *,
        revision: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Commit files to a branch (or tag) of a repository; gives the commit's id."""
        if isinstance(files, Path):
            below = [path for path in sorted(files.rglob("*")) if path.is_file()]
            files = {path.relative_to(files).as_posix(): path for path in below}
        blobs = {file: blob_of(file, source) for file, source in sorted(files.items())}
        repo = self._repos.setdefault(name, Repo(private, gated))
        repo.private, repo.gated = private, gated
        listing = [name, len(repo.commits), *((file, blob.sha256) for file, blob in blobs.items())]
        commit = hashlib.sha1(repr(listing).encode()).hexdigest()
        repo.commits[commit] = blobs
        repo.names[revision] = commit
        self._blobs.update((blob.sha256, blob) for blob in blobs.values())
        return commit

    def rename(self, old: str, new: str) -> None:
        """Let the old name lead to the new one, as for ``gpt2``."""
        self._renamed[old] = new
        if old in self._repos:
            self._repos[new] = self._repos.pop(old)

    def expire(self) -> None:
        """End all signed URLs that were given out so far."""
        self._secret += b"0"

    @property
    def resolves(self) -> list[Record]:
        """The requests to resolve a file."""
        return [record for record in self.api.requests if "/resolve/" in record.path]

    @property
    def leaked(self) -> list[Record]:
        """The requests that brought a credential to the other port: there should be none."""
        return [record for record in self.cdn.requests if record.authorization is not None]

    def reset(self) -> None:
        """Forget the requests so far, and begin a new window."""
        self.api.reset()
        self.cdn.reset()
        self._resolves = 0

    def _answer(self, record: Record) -> Reply:
        parts = [unquote(part) for part in urlsplit(record.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            return self._answer_api(record, parts[2:])
        if parts[:3] == ["api", "resolve-cache", "models"]:
            at = next((i for i, part in enumerate(parts[3:6], 3) if len(part) == 40), 5)
            repo, commit, file = "/".join(parts[3:at]), parts[at], "/".join(parts[at + 1 :])
            return self._resolve(record, repo, commit, file, cached=True)
        if "resolve" in parts[1:3] and len(parts) > parts.index("resolve") + 2:
            at = parts.index("resolve")
            repo, revision, file = "/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :])
            return self._limited() or self._resolve(record, repo, revision, file)
        return failed(404, None, "Sorry, we can't find the page you are looking for.")

    def _answer_api(self, record: Record, parts: list[str]) -> Reply:
        ends = [at for at, part in enumerate(parts) if part in ("revision", "tree") and at]
        at = ends[0] if ends else len(parts)
        name, what, revision = "/".join(parts[:at]), *[*parts[at : at + 2], "", "main"][:2]
        revision = revision if ends else "main"
        found = self._find(record, name, revision)
        if isinstance(found, Reply):
            return found
        repo, commit = found
        query = parse_qs(urlsplit(record.path).query)
        if what == "tree":
            return as_json([leaf(file, blob) for file, blob in repo.commits[commit].items()])
        blobs = query.get("blobs", [""])[0].lower() in ("true", "1")
        siblings = [
            {"rfilename": file, **(details(blob) if blobs else {})}
            for file, blob in repo.commits[commit].items()
        ]
        about = {"_id": hashlib.sha1(name.encode()).hexdigest()[:24], "id": name, "modelId": name}
        gated = "manual" if repo.gated else False
        state = {"sha": commit, "private": repo.private, "gated": gated, "disabled": False}
        return as_json({**about, **state, "tags": [], "downloads": 0, "siblings": siblings})

    def _find(
        self, record: Record, name: str, revision: str, content: bool = False
    ) -> tuple[Repo, str] | Reply:
        """The repository and the commit, or why there is none for this caller."""
        token = (record.authorization or "").removeprefix("Bearer ")
        if token not in ("", self.token, self.outsider):
            return failed(401, None, "Invalid credentials in Authorization header")
        if name in self._renamed:
            old, new = f"/{quote(name)}", f"/{quote(self._renamed[name])}"
            return Reply.redirect(record.path.replace(old, new, 1), 307)
        repo = self._repos.get(name)
        if repo is None or (repo.private and token != self.token):
            return failed(404 if token else 401, "RepoNotFound", "Repository not found")
        if content and repo.gated and token != self.token:
            reason = f"Access to model {name} is restricted."
            return failed(403 if token else 401, "GatedRepo", reason)
        commit = repo.names.get(revision, revision)
        if commit not in repo.commits:
            return failed(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, commit

    def _limited(self) -> Reply | None:
        with self._lock:
            now = time.monotonic()
            if now - self._window >= self.window:
                self._window, self._resolves = now, 0
            self._resolves += 1
            if self._resolves <= self.limit:
                return None
            left = max(1, round(self.window - (now - self._window)))
        policy = f'"fixed window";"resolvers";q={self.limit};w={round(self.window)}'
        limits = {"RateLimit": f'"resolvers";r=0;t={left}', "RateLimit-Policy": policy}
        reason = "We had to rate limit your IP."
        return failed(429, None, reason, {"Retry-After": str(left), **limits})

    def _resolve(
        self, record: Record, name: str, revision: str, file: str, cached: bool = False
    ) -> Reply:
        found = self._find(record, name, revision, content=True)
        if isinstance(found, Reply):
            return found
        repo, commit = found
        blob = repo.commits[commit].get(file)
        common = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if blob is None:
            return failed(404, "EntryNotFound", "Entry not found", common)
        if blob.large:
            linked = {"X-Linked-Size": str(blob.size), "X-Linked-ETag": f'"{blob.sha256}"'}
            signed = {"Location": self._sign(file, blob), "ETag": f'"{blob.git}"'}
            return Reply(302, {**common, **linked, **signed}, b"Found. Redirecting")
        if self.resolve_cache and not cached:
            query = f"?{urlencode({record.path: '', 'etag': chr(34) + blob.git + chr(34)})}"
            place = f"/api/resolve-cache/models/{quote(name)}/{commit}/{quote(file)}{query}"
            return Reply(307, {**common, "Location": place}, b"Temporary Redirect")
        return serve(record, blob.source, f'"{blob.git}"', headers=common)

    def _sign(self, file: str, blob: Blob) -> str:
        path = f"/xet-bridge/{blob.sha256}"
        expires = f"{time.time() + self.lifetime:.3f}"
        query = {
            "response-content-disposition": f'inline; filename="{Path(file).name}";',
            "Expires": expires,
            "Signature": self._signature(path, expires),
            "Key-Pair-Id": "TESTS",
        }
        return f"{self._cdn_url}{path}?{urlencode(query)}"

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self._secret, f"{path}?{expires}".encode(), "sha256").hexdigest()

    def _deliver(self, record: Record) -> Reply:
        """What the other port answers."""
        parts = urlsplit(record.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        expires = query.get("Expires", "0")
        right = self._signature(parts.path, expires) == query.get("Signature")
        blob = self._blobs.get(parts.path.rpartition("/")[2])
        if not right or float(expires) < time.time() or blob is None:
            return Reply(403, {"Content-Type": "application/xml"}, DENIED)
        disposition = {"Content-Disposition": query.get("response-content-disposition", "inline")}
        return serve(record, blob.source, f'"{blob.sha256}"', headers=disposition)
