"""The errors of GitHub's refusals, and what to do about them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from urllib3 import BaseHTTPResponse

from mlstate.errors import (
    AccessError,
    FormatError,
    MlstateError,
    RateLimitError,
    TransportError,
)
from mlstate.texts import load_json
from mlstate.transport.client import release
from mlstate.transport.errors import translated_errors
from mlstate.transport.replies import number, retry_after, status_error
from mlstate.transport.urls import Url

__all__ = ["TOKEN_REMEDY", "GitHubError", "error_of"]

TOKEN_REMEDY = (
    "put a token into GH_TOKEN or GITHUB_TOKEN that may write the contents of the repository "
    "(fine-grained: Contents, read and write; classic: the scope repo, or public_repo)"
)
PATIENCE = 60.0  # the longest wait, in seconds, that is not worth an error
_MAX_BODY = 64 << 10
_NEVER = 4e9  # seconds since the epoch, or to wait: nobody lives to see more


class GitHubError(TransportError):
    """A request that GitHub refused.

    Attributes:
        codes: The codes of the errors in its reply, such as ``already_exists``.
        said: The messages of its reply, in one line.
    """

    codes: frozenset[str] = frozenset()
    said: str = ""


def error_of(
    reply: BaseHTTPResponse, method: str, url: Url, credential: str | None
) -> MlstateError:
    """The error of a refused request, of which the reply is read.

    ``credential`` is the variable with the credential that went along, or None.
    """
    status, headers = reply.status, reply.headers
    body = _body(reply, url)
    said = " ".join(_messages(body)) or "no reason given"
    found = f"HTTP {status}: {said}"
    if limit := _rate_limit(status, headers, said, url, credential):
        return limit
    if status == 401:
        return AccessError(
            f"GitHub does not accept the credential in {credential}"
            if credential
            else "GitHub wants to know who is asking",
            path=url.shown,
            found=found,
            remedy="it may be mistyped, expired or revoked; " + TOKEN_REMEDY,
        )
    if status == 403 or (status == 404 and method == "POST"):
        accepted = headers.get("X-Accepted-GitHub-Permissions") or headers.get(
            "X-Accepted-OAuth-Scopes"
        )
        return AccessError(
            "GitHub knows no such place, or does not let this token write there"
            if status == 404
            else "GitHub does not allow this",
            path=url.shown,
            expected=accepted or None,
            found=found,
            remedy="check owner and repository; " + TOKEN_REMEDY,
        )
    usual = status_error(status, headers, url.shown, url)
    return GitHubError(
        usual.message if status >= 500 or status in (404, 407) else "GitHub refuses this",
        transient=usual.transient,
        retry_after=usual.retry_after,
        status=status,
        path=url.shown,
        found=found,
        remedy=usual.remedy,
        codes=frozenset(_codes(body)),
        said=said,
    )


def _rate_limit(
    status: int, headers: Mapping[str, str], said: str, url: Url, credential: str | None
) -> RateLimitError | None:
    if status not in (403, 429):
        return None
    after = retry_after(headers)
    used_up = headers.get("X-RateLimit-Remaining") == "0"
    if used_up and after is None:
        reset = number(headers.get("X-RateLimit-Reset", ""))
        wait = None if reset is None else max(0.0, reset - time.time())
    elif after is not None or status == 429 or "secondary rate limit" in said:
        wait = 60.0 if after is None else after
        reset = time.time() + wait
    else:
        return None
    reset = None if reset is None else min(reset, _NEVER)
    found = None
    if used_up:
        found = f"0 of {headers.get('X-RateLimit-Limit', '?'):.10} requests left"
    when = "" if reset is None else f"{datetime.fromtimestamp(reset, UTC):%Y-%m-%d %H:%M:%S} UTC"
    remedy = f"wait until {when}" if when else "wait for an hour"
    if credential is None:
        remedy += "; with a token in GH_TOKEN far more requests are allowed"
    return RateLimitError(
        "GitHub allows no more requests for now",
        reset=reset,
        transient=wait is not None and wait <= PATIENCE,
        retry_after=wait,
        status=status,
        path=url.shown,
        found=found or f"HTTP {status}: {said}",
        remedy=remedy,
    )


def _body(reply: BaseHTTPResponse, url: Url) -> Mapping[str, Any]:
    try:
        with translated_errors(url.shown):
            return load_json(reply.read(_MAX_BODY), "a refusal of GitHub", most=_MAX_BODY)
    except (FormatError, TransportError):
        return {}
    finally:
        release(reply)


def _errors(body: Mapping[str, Any]) -> list[Any]:
    errors = body.get("errors")
    return errors if isinstance(errors, list) else []


def _codes(body: Mapping[str, Any]) -> list[str]:
    return [
        error["code"]
        for error in _errors(body)
        if isinstance(error, dict) and isinstance(error.get("code"), str)
    ]


def _messages(body: Mapping[str, Any]) -> list[str]:
    """The message of a reply, then each error's message or field and code."""
    words = [body.get("message")]
    for error in _errors(body):
        if isinstance(error, dict):
            words.append(error.get("message") or f"{error.get('field')}: {error.get('code')}")
        else:
            words.append(error)
    return [" ".join(word.split())[:200] for word in words if isinstance(word, str)]
