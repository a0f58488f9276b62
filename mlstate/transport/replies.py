"""Checks of a reply's status and headers, each of which is a claim of somebody who may lie."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from urllib3 import BaseHTTPResponse

from mlstate.errors import TransportError
from mlstate.retries import TRANSIENT_STATUSES
from mlstate.transport.credentials import token_variable
from mlstate.transport.errors import PROXY_LOGIN, PROXY_REMEDY
from mlstate.transport.urls import Url

__all__ = [
    "Extent",
    "check_form",
    "content_length",
    "extent",
    "number",
    "retry_after",
    "status_error",
    "unsatisfied_total",
]

REASONS = {
    401: "the server wants to know who is asking",
    403: "the server refuses access",
    404: "there is no such file on the server",
    407: PROXY_LOGIN,
    410: "the file is gone from the server for good",
    416: "the file is shorter than what is asked of it",
    429: "the server asks for fewer requests",
    511: "this network wants a login before it lets anything through",
}
_PORTAL = (
    "open any page in a browser: if a login appears, that is this network's own (a captive portal)"
)
_REMEDIES = {407: PROXY_REMEDY, 511: _PORTAL}
_DOWN = frozenset({502, 503, 504})
"""What a server answers that is down, unless it says when to come back."""
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.IGNORECASE)
_NO_RANGE = re.compile(r"bytes \*/(\d{1,19})", re.IGNORECASE)
_LENGTH = re.compile(r"\d{1,19}")
_RESET = re.compile(r";\s*t=(\d{1,6})\b")


@dataclass(frozen=True)
class Extent:
    """How many bytes a reply gives, and how many the whole has; None if nobody says."""

    length: int | None
    total: int | None


def status_error(
    status: int, headers: Mapping[str, str], address: str, place: Url, credential: str | None = None
) -> TransportError:
    """The error for a status that is neither 200 nor 206.

    It calls the resource by ``address``; ``place`` is the address that answered, and ``credential``
    says where the credential is from that was sent along, if one was.
    """
    message = REASONS.get(status)
    if message is None and status >= 500:
        message = "the server has a problem"
    elif message is None:
        message = "the server refuses the request" if status >= 400 else "the reply makes no sense"
    try:
        found = f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        found = f"HTTP {status}"
    if place.shown != address:
        found += f" from {place.shown}"
    refused, wait = status in (401, 403), retry_after(headers)
    if refused:
        sent = f"the credential of {credential} was" if credential else "no credential was"
        found += f"; {sent} sent along"
    return TransportError(
        message,
        transient=status in TRANSIENT_STATUSES,
        unreachable=status in _DOWN and wait is None,
        retry_after=wait,
        status=status,
        path=address,
        found=found,
        remedy=_remedy(place, credential) if refused else _REMEDIES.get(status),
    )


def _remedy(place: Url, credential: str | None) -> str:
    if credential is not None:
        return f"check the credential of {credential}: whether it is right, and may see this file"
    if place.scheme != "https" and not place.is_loopback:
        return "use an https address, if a token or login is needed: none is sent over http"
    return f"if a token or login is needed, put it into {token_variable(place.host)} or ~/.netrc"


def number(text: str) -> float | None:
    """The number that a header has, or None if it has another value, or none."""
    return float(text) if _LENGTH.fullmatch(text.strip()) else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait, or None."""
    value = headers.get("Retry-After", "").strip()
    if (seconds := number(value)) is not None:
        return seconds
    if value:
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except (ValueError, OverflowError, OSError):
            return None
    # The hub says when its limit begins anew in this header alone.
    reset = _RESET.search(headers.get("RateLimit", ""))
    return float(reset[1]) if reset else None


def check_form(
    headers: Mapping[str, str], address: str, place: Url | None = None, *, page: bool = False
) -> None:
    """Refuse a reply that is compressed, or a web page where none was asked for.

    ``address`` is what was asked for, ``place`` the address that answered, and ``page`` says
    whether the name of a page may be one.
    """
    encoding = headers.get("Content-Encoding", "").strip().lower()
    transfer = headers.get("Transfer-Encoding", "").strip().lower()
    if encoding not in ("", "identity") or transfer not in ("", "identity", "chunked"):
        raise TransportError(
            "the server compresses what it was asked to give as it is",
            path=address,
            found=f"{encoding or transfer:.40}",
        )
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    named = page and address.lower().endswith((".html", ".htm", ".xhtml"))
    if kind in ("text/html", "application/xhtml+xml") and not named:
        elsewhere = place is not None and place.shown != address
        raise TransportError(
            "a web page came instead of the file",
            path=address,
            found=f"{kind} from {place.shown}" if elsewhere and place is not None else kind,
            remedy=f"check the address: a page that asks for a login or a click is no file; or "
            f"{_PORTAL}",
        )


def content_length(headers: Mapping[str, str], address: str) -> int | None:
    """The Content-Length, None if none counts; a `TransportError` if it is not one number."""
    if headers.get("Transfer-Encoding", "").strip().lower() == "chunked":
        return None
    value = headers.get("Content-Length")
    if value is None:
        return None
    if not _LENGTH.fullmatch(value.strip()):
        raise TransportError(
            "the server gives a length that is no number", path=address, found=f"{value:.40}"
        )
    return int(value)


def extent(reply: BaseHTTPResponse, start: int, stop: int | None, address: str) -> Extent:
    """The extent of a reply with status 206, which must be the range that was asked for.

    Another range, or one that says different things about its length, is a `TransportError`.
    """
    value = reply.headers.get("Content-Range", "")
    match = _RANGE.fullmatch(value.strip())
    asked = f"bytes {start}-{'' if stop is None else stop - 1}/..."
    if match is not None:
        total = None if match[3] == "*" else int(match[3])
        last = int(match[2])
        # To the end of a file of unknown size: any range could be passed off as that.
        end = total if stop is None else stop
        if int(match[1]) == start and last + 1 == end and (total is None or last < total):
            length = last + 1 - start
            said = content_length(reply.headers, address)
            if said is not None and said != length:
                raise TransportError(
                    "the reply is longer or shorter than the range that it claims to be",
                    path=address,
                    expected=f"{length} bytes",
                    found=f"{said} bytes",
                )
            return Extent(length, total)
    raise TransportError(
        "the server gives another range than it was asked for",
        path=address,
        expected=asked,
        found=f"{value:.80}" or "no Content-Range",
    )


def unsatisfied_total(headers: Mapping[str, str]) -> int | None:
    """The size that a reply with status 416 tells, or None."""
    match = _NO_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    return int(match[1]) if match else None
