"""Requests to GitHub's REST API, with the token of the environment."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from urllib3 import BaseHTTPResponse

from mlstate.digests import Bytes
from mlstate.errors import AccessError, FormatError, OfflineError, TransportError
from mlstate.limits import Limits, read_limited
from mlstate.settings import value_of
from mlstate.stores.github.api_errors import TOKEN_REMEDY, error_of
from mlstate.texts import parse_json
from mlstate.transport import Retries, retried
from mlstate.transport.client import Session, Target, follow, release
from mlstate.transport.credentials import Credential
from mlstate.transport.replies import check_form, content_length
from mlstate.transport.urls import Url

__all__ = ["GitHub", "GitHubApi", "find_credential"]

_PUBLIC = "https://github.com"


@dataclass(frozen=True)
class GitHub:
    """Where GitHub is.

    Attributes:
        api: The address of the API, without a slash at the end.
        server: That of the web pages and downloads.
    """

    api: str
    server: str

    @classmethod
    def from_environment(cls) -> GitHub:
        """Where GITHUB_API_URL and GITHUB_SERVER_URL say, one of which is enough.

        Raises:
            TransportError: One is no http(s) address.
        """
        api = value_of("GITHUB_API_URL").rstrip("/")
        server = value_of("GITHUB_SERVER_URL").rstrip("/")
        for address in filter(None, (api, server)):
            Url.parse(address)
        return cls(api or _api_of(server or _PUBLIC), server or _server_of(api))


def _api_of(server: str) -> str:
    if server == _PUBLIC or server.endswith(".ghe.com"):
        return server.replace("://", "://api.", 1)
    return f"{server}/api/v3"


def _server_of(api: str) -> str:
    return api.removesuffix("/api/v3").replace("://api.", "://", 1) or _PUBLIC


def find_credential() -> Credential | None:
    """The credential that the environment has, or None.

    Raises:
        FormatError: It is malformed.
    """
    for variable in ("GH_TOKEN", "GITHUB_TOKEN"):
        if token := os.environ.get(variable):
            return Credential.bearer(token, variable)
    variable = "GH_API_BASIC_AUTH"
    if login := os.environ.get(variable):
        if ":" not in login:
            raise FormatError("a login has no colon", path=variable, expected="user:token")
        return Credential.basic(login.strip(), variable)
    return None


JSON = "application/vnd.github+json"
MAX_JSON = 64 << 20
MAX_PAGES = 1000
"""The most pages of a list that are asked for: GitHub itself gives 100 of releases."""
CHUNK = 1 << 18
UPLOAD_SECONDS = 900.0
"""How long GitHub may take to answer after the last byte of an upload."""
_NEXT = re.compile(r'<([^<>]*)>\s*;\s*rel="next"')


class GitHubApi:
    """Sends requests, and repeats what may pass. Use it for one job; close it afterwards.

    All requests raise the same errors:

    - TransportError: there is no reply; of what is not there `status` is 404.
    - RateLimitError: no more requests are allowed for now.
    - AccessError: the credential is wrong, or does not allow this.
    - OfflineError: sockets are not allowed.

    Args:
        place: Where GitHub is.
        offline: Every request raises an `OfflineError`.
        retries: How often and how patiently to try again what may pass.
    """

    def __init__(self, place: GitHub, *, offline: bool, retries: Retries) -> None:
        self._root = Url.parse(place.api)
        self._base = place.api
        self._offline = offline
        self.retries = retries
        self._credential = find_credential()
        self._trusted = {self._root.origin}
        self._session = Session(Limits(connections=4, connect_timeout=30, read_timeout=60))

    def __enter__(self) -> GitHubApi:
        return self

    def __exit__(self, *error: object) -> None:
        self._session.close()

    def need_credential(self, what: str) -> None:
        """Require a credential for something that nobody may do without one.

        Raises:
            AccessError: There is no credential, or the API must not be told it.
        """
        if self._credential is None:
            raise AccessError(
                f"{what} needs a token of GitHub, and there is none",
                path=self._root.shown,
                remedy=TOKEN_REMEDY,
            )
        if not self._may_know(self._root):
            raise AccessError(
                f"{what} needs a token, and none is sent over http",
                path=self._root.shown,
                remedy="give an https address in GITHUB_API_URL",
            )

    def get(self, path: str) -> Any:
        """The JSON that the API has at a path."""
        return retried(lambda: self._json("GET", self._url(path))[0], self.retries)

    def pages(self, path: str) -> Iterator[Any]:
        """The items of a list, page by page."""
        joint = "&" if "?" in path else "?"
        url: Url | None = self._url(f"{path}{joint}per_page=100")
        for _ in range(MAX_PAGES):
            if url is None:
                return
            items, link = retried(partial(self._json, "GET", url), self.retries)
            if not isinstance(items, list):
                raise _malformed(url)
            yield from items
            following = _NEXT.search(link)
            here, url = url, None if following is None else url.join(following[1])
            if url is not None and url.origin != self._root.origin:
                raise _malformed(here)
        raise TransportError(
            "a list of GitHub has no end", path=self._url(path).shown, found=f"{MAX_PAGES} pages"
        )

    def send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Change something; it may be done twice, if the first reply is lost."""
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        url = self._url(path)
        return retried(lambda: self._json(method, url, data, headers)[0], self.retries)

    def upload(self, address: str, size: int, content_type: str, parts: Iterable[Bytes]) -> Any:
        """Send a file to where GitHub says that uploads go; once, as `parts` can be read once."""
        url = Url.parse(address)
        if self._root.scheme == "https" and url.scheme != "https":
            raise TransportError("uploads are to go over http", path=url.shown)
        self._trusted.add(url.origin)
        headers = {"Content-Type": content_type, "Content-Length": str(size)}
        return self._json("POST", url, parts, headers, reply_timeout=UPLOAD_SECONDS)[0]

    def download(self, path: str) -> Iterator[Bytes]:
        """The bytes of a file that the API keeps elsewhere, once; no credential goes there.

        Each piece is good until the next one is asked for.
        """
        url = self._url(path)
        headers = {"Accept": "application/octet-stream"}
        reply = self._follow("GET", url, None, headers, other_servers=True)
        try:
            yield from self._chunks(reply, url)
        finally:
            release(reply)

    def _url(self, path: str) -> Url:
        return Url.parse(self._base + path)

    def _json(
        self,
        method: str,
        url: Url,
        body: bytes | Iterable[Bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        reply_timeout: float | None = None,
    ) -> tuple[Any, str]:
        """Send a request; the JSON of the reply, and its Link header."""
        reply = self._follow(method, url, body, {"Accept": JSON, **(headers or {})}, reply_timeout)
        try:
            link = reply.headers.get("Link", "")
            if reply.status == 204:
                return None, link
            check_form(reply.headers, url.shown, url)
            data = read_limited(self._chunks(reply, url), MAX_JSON)
            return parse_json(data, "a reply of GitHub", most=MAX_JSON), link
        except FormatError as error:
            raise _malformed(url, error) from None
        finally:
            release(reply)

    def _chunks(self, reply: BaseHTTPResponse, url: Url) -> Iterator[Bytes]:
        length = content_length(reply.headers, url.shown)
        body, buffer = self._session.body(reply, url.shown, length), memoryview(bytearray(CHUNK))
        while count := body.readinto(buffer):
            yield buffer[:count]

    def _follow(
        self,
        method: str,
        url: Url,
        body: bytes | Iterable[Bytes] | None,
        headers: Mapping[str, str],
        reply_timeout: float | None = None,
        *,
        other_servers: bool = False,
    ) -> BaseHTTPResponse:
        """Send a request, and again where the API moved to; an error if it is refused."""
        if self._offline:
            raise OfflineError(
                "the network is needed, and may not be used",
                path=url.shown,
                remedy="allow the network (unset MLSTATE_OFFLINE)",
            )

        def send(target: Target) -> BaseHTTPResponse:
            sent = {"X-GitHub-Api-Version": "2022-11-28", **headers}
            if self._credential is not None and self._may_know(target.url):
                sent["Authorization"] = self._credential.header
            shown = target.url.shown
            return self._session.send(
                method,
                target.url,
                sent,
                shown,
                body=body,
                reply_timeout=reply_timeout,
                confined=target.confined,
            )

        session, start = self._session, Target(url)
        reply, target = follow(session, send, start, url.shown, other_servers=other_servers)
        if reply.status >= 400:
            source = None if self._credential is None else self._credential.source
            raise error_of(reply, method, target.url, source)
        return reply

    def _may_know(self, url: Url) -> bool:
        """Whether a server is one that the credential is for."""
        return url.origin in self._trusted and (url.scheme == "https" or url.is_loopback)


def _malformed(url: Url, error: FormatError | None = None) -> TransportError:
    return TransportError(
        "a reply of GitHub makes no sense",
        path=url.shown,
        expected=error.expected if error else None,
        found=error.found or error.message if error else None,
    )
