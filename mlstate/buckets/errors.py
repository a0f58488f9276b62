"""The errors of obstore and boto3 as errors of mlstate, which name the bucket and what to do.

Of the clients' own words only the code and the status are kept: the rest may hold signed texts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlstate.errors import BucketAccessError, BucketError, NoRangesError
from mlstate.phrases import Phrase
from mlstate.retries import TRANSIENT_STATUSES

__all__ = [
    "ALREADY",
    "DAMAGED",
    "NOT_FOUND",
    "NO_CREDENTIALS",
    "PRECONDITION",
    "bucket_error",
    "is_missing",
    "status_of",
    "translated_errors",
]

ALREADY = frozenset({"AlreadyExistsError"})
PRECONDITION = frozenset({"PreconditionError"})
NOT_FOUND = frozenset({"NotFoundError", "FileNotFoundError"})

DAMAGED = frozenset({"XAmzContentSHA256Mismatch", "BadDigest", "InvalidDigest"})
"""What servers call it when bytes are not those that were signed."""

_CODE = re.compile(r"<Code>\s*(\w{1,80})\s*</Code>")
_STATUS = re.compile(r"status code: (\d{3})\b")
_TRANSIENT = TRANSIENT_STATUSES | {409}
_MISSING = {
    404: "there is nothing of this name in the bucket",
    416: "the thing in the bucket is shorter than what is asked of it",
}
_NOT_REACHED = "the server cannot be reached, or is silent"
_UNREACHABLE = ("error sending request", "error trying to connect", "timed out", "HTTP error")
_CUT = ("response body", "Error after")

_PERMISSIONS = {
    "read": "s3:GetObject (and s3:ListBucket, to tell what is absent from what is forbidden)",
    "list": "s3:ListBucket",
    "write": "s3:PutObject",
    "delete": "s3:DeleteObject",
    "copy": "s3:GetObject and s3:PutObject",
    "list unfinished uploads": "s3:ListBucketMultipartUploads",
    "abort an unfinished upload": "s3:AbortMultipartUpload",
}


_ENDPOINT = Phrase("s3_endpoint_url or AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL")


@dataclass(frozen=True)
class _Kind:
    """A kind of problem, with the codes, separated by spaces, by which servers call it."""

    message: str
    remedy: str | None = None
    codes: str = ""
    access: bool = False
    transient: bool = False


NO_CREDENTIALS = (
    Phrase("give a profile or keys in session_kwargs, or set", "set")
    + " AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; a profile of single sign-on "
    "may want aws sso login"
)
"""What to do about credentials that are not there."""

_NO_CREDENTIALS = _Kind("no credentials for this bucket could be had", NO_CREDENTIALS, access=True)
_PROXY = _Kind(
    "the proxy wants to know who is asking",
    "put name and password into the proxy's address: HTTPS_PROXY=http://name:password@host:port",
)
_REGION = _Kind(
    "the bucket is in another region",
    "give the region that it is in: "
    + Phrase('session_kwargs={"region_name": ...}, or AWS_DEFAULT_REGION', "AWS_DEFAULT_REGION"),
    "PermanentRedirect AuthorizationHeaderMalformed IllegalLocationConstraintException",
)
_KINDS = (
    _REGION,
    _Kind(
        "there is no such bucket",
        "check its name, the endpoint (" + _ENDPOINT + ") and the region, or create it",
        "NoSuchBucket InvalidBucketName",
    ),
    _Kind(
        "the server does not accept these credentials",
        "check the key and the secret: those of "
        + Phrase("session_kwargs, of the profile", "the profile")
        + ", or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "InvalidAccessKeyId SignatureDoesNotMatch InvalidToken InvalidClientTokenId AuthFailure",
        access=True,
    ),
    _Kind(
        "the credentials for this bucket have expired",
        "renew them (aws sso login, a new session token), and try again",
        "ExpiredToken ExpiredTokenException TokenRefreshRequired RequestExpired",
        access=True,
    ),
    _Kind(
        "the clock of this machine differs from the server's, which refuses to talk",
        "set the clock",
        "RequestTimeTooSkewed",
    ),
    _Kind(
        "the bytes were damaged on their way to the server", None, " ".join(DAMAGED), transient=True
    ),
    _Kind(
        "the server asks for fewer requests",
        None,
        "SlowDown TooManyRequests ServiceUnavailable Throttling",
        transient=True,
    ),
)
_KIND_OF = {code: kind for kind in _KINDS for code in kind.codes.split()}


def bucket_error(
    bucket: str, operation: str, path: str, text: str, *, code: str | None, status: int | None
) -> BucketError:
    """The error of an operation (a word) on a path in a bucket; empty for the bucket itself.

    ``text`` is what the client says, of which nothing is repeated; code and status are the
    server's, where it gave them.
    """
    kind = _kind(operation, text, code, status)
    type_ = BucketAccessError if kind.access else BucketError
    said = [f"HTTP {status}" if status else None, code]
    return type_(
        kind.message,
        bucket=bucket,
        operation=operation,
        code=code,
        path=f"{bucket}/{path}" if path else bucket,
        found=", ".join(filter(None, said)) or None,
        remedy=kind.remedy,
        transient=kind.transient,
        unreachable=kind.message == _NOT_REACHED,
        status=status,
    )


def _kind(operation: str, text: str, code: str | None, status: int | None) -> _Kind:
    if code in _KIND_OF:
        return _KIND_OF[code]
    if status == 407 or (status is None and "proxy authorization required" in text.lower()):
        return _PROXY
    if "credential" in text[:300].lower() and status is None:
        return _NO_CREDENTIALS
    if operation == "read" and status in _MISSING:
        return _Kind(_MISSING[status])
    if status in (401, 403):
        needed = _PERMISSIONS.get(operation, "the right to do this")
        return _Kind(
            "these credentials do not allow this",
            f"check the credentials, and that they give {needed}",
            access=True,
        )
    if status in (301, 307) or "redirect without LOCATION" in text:
        return _REGION
    if status in _TRANSIENT:
        return _Kind("the server has a problem", transient=True)
    if status is None and any(words in text for words in _CUT):
        return _Kind("the connection broke", transient=True)
    if status is None and any(words in text for words in _UNREACHABLE):
        return _Kind(
            _NOT_REACHED,
            "check the network and the endpoint (" + _ENDPOINT + ")",
            transient=True,
        )
    return _Kind("the server refuses the request")


def status_of(error: BaseException) -> tuple[str | None, int | None]:
    """The code and the HTTP status that an error of a client has."""
    response = getattr(error, "response", None)  # boto3
    if isinstance(response, dict):
        code = response.get("Error", {}).get("Code")
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return (code if isinstance(code, str) and code.isalnum() else None), status
    text = str(error)
    code_found, status_found = _CODE.search(text), _STATUS.search(text)
    return (code_found[1] if code_found else None, int(status_found[1]) if status_found else None)


@contextmanager
def translated_errors(bucket: str, operation: str, path: str = "", *passing: str) -> Iterator[None]:
    """Raise a `BucketError` in place of what a bucket's client raises; see `bucket_error`.

    Raises a `NoRangesError` where the server gives only the whole of what is read. Errors of the
    client with the names in ``passing`` are left to the caller.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, (FileNotFoundError, *_client_errors())):
            raise
        if "non-partial response" in str(error):
            raise NoRangesError(
                "the server gives the whole thing only, no range of it",
                path=f"{bucket}/{path}",
                status=200,
            ) from None
        code, status = status_of(error)
        name = type(error).__name__
        if name in passing and code != "NoSuchBucket":
            raise
        if name in NOT_FOUND:
            status = 404
        raise bucket_error(bucket, operation, path, str(error), code=code, status=status) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust, which is no Exception
            raise
        raise BucketError(
            "the client of buckets gave up: a setting is nothing that it expects",
            bucket=bucket,
            operation=operation,
            path=f"{bucket}/{path}" if path else bucket,
            remedy="look at the endpoint (" + _ENDPOINT + "), and at the variables of AWS_, "
            "GOOGLE_ and AZURE_ and of proxies",
        ) from None


def is_missing(error: BucketError) -> bool:
    """Whether there is a bucket, but not the thing in it."""
    return error.status == 404 and error.code != "NoSuchBucket"


def _client_errors() -> tuple[type[Exception], ...]:
    """The errors of the clients that are in use, without importing any."""
    names = {
        "obstore.exceptions": ("BaseError",),
        "boto3.exceptions": ("Boto3Error",),
        "botocore.exceptions": ("BotoCoreError", "ClientError"),
    }
    used = [module for module in names if module in sys.modules]
    return tuple(getattr(sys.modules[module], name) for module in used for name in names[module])
