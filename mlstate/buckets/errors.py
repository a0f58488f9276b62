"""What a bucket's client says went wrong, as an error that names the bucket and what to do.

Of the client's own words only the code and the status are kept: the rest may hold signed texts.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlstate.errors import BucketAccessError, BucketError
from mlstate.phrases import Phrase

__all__ = [
    "ALREADY",
    "DAMAGED",
    "NOT_FOUND",
    "PRECONDITION",
    "bucket_error",
    "explained",
    "status_of",
]

ALREADY = frozenset({"AlreadyExistsError"})
PRECONDITION = frozenset({"PreconditionError"})
NOT_FOUND = frozenset({"NotFoundError", "FileNotFoundError"})

DAMAGED = frozenset({"XAmzContentSHA256Mismatch", "BadDigest", "InvalidDigest"})
"""What servers call it when bytes are not those that were signed."""

_CODE = re.compile(r"<Code>\s*(\w{1,80})\s*</Code>")
_STATUS = re.compile(r"status code: (\d{3})\b")
_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
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
    message: str
    remedy: str | None
    access: bool = False
    transient: bool = False


_NO_BUCKET = _Kind(
    "there is no such bucket",
    "check its name, the endpoint (" + _ENDPOINT + ") and the region, or create it",
)
_CREDENTIALS = _Kind(
    "the server does not accept these credentials",
    "check the key and the secret: those of session_kwargs, of the profile, or AWS_ACCESS_KEY_ID "
    "and AWS_SECRET_ACCESS_KEY",
    access=True,
)
_EXPIRED = _Kind(
    "the credentials for this bucket have expired",
    "renew them (aws sso login, a new session token), and try again",
    access=True,
)
_NO_CREDENTIALS = _Kind(
    "no credentials for this bucket could be had",
    "give a profile or keys in session_kwargs, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY; a profile of single sign-on may want aws sso login",
    access=True,
)
_REGION = _Kind(
    "the bucket is in another region",
    'give the region that it is in: session_kwargs={"region_name": ...}, or AWS_DEFAULT_REGION',
)
_CLOCK = _Kind(
    "the clock of this machine differs from the server's, which refuses to talk", "set the clock"
)
_DAMAGED = _Kind("the bytes were damaged on their way to the server", None, transient=True)
_BUSY = _Kind("the server asks for fewer requests", None, transient=True)

_KINDS = {
    "NoSuchBucket": _NO_BUCKET,
    "InvalidBucketName": _NO_BUCKET,
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "InvalidClientTokenId": _CREDENTIALS,
    "AuthFailure": _CREDENTIALS,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "RequestTimeTooSkewed": _CLOCK,
    **dict.fromkeys(DAMAGED, _DAMAGED),
    "SlowDown": _BUSY,
    "TooManyRequests": _BUSY,
    "ServiceUnavailable": _BUSY,
    "Throttling": _BUSY,
}


def bucket_error(
    bucket: str, operation: str, path: str, text: str, *, code: str | None, status: int | None
) -> BucketError:
    """What went wrong, in words.

    Args:
        bucket: The bucket's address.
        operation: What was to be done.
        path: With which thing in the bucket.
        text: What the client says; nothing of it is repeated.
        code: What the server calls it, if it said so.
        status: The HTTP status, if there is one.
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
        status=status,
    )


def _kind(operation: str, text: str, code: str | None, status: int | None) -> _Kind:
    if code in _KINDS:
        return _KINDS[code]
    if "credential" in text[:300].lower() and status is None:
        return _NO_CREDENTIALS
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
        return _Kind("the server has a problem", None, transient=True)
    if status is None and any(words in text for words in _CUT):
        return _Kind("the connection broke", None, transient=True)
    if status is None and any(words in text for words in _UNREACHABLE):
        return _Kind(
            "the server cannot be reached, or is silent",
            "check the network and the endpoint (" + _ENDPOINT + ")",
            transient=True,
        )
    return _Kind("the server refuses the request", None)


def status_of(error: BaseException) -> tuple[str | None, int | None]:
    """The code and the HTTP status in what the client says."""
    response = getattr(error, "response", None)  # boto3
    if isinstance(response, dict):
        code = response.get("Error", {}).get("Code")
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return (code if isinstance(code, str) and code.isalnum() else None), status
    text = str(error)
    code_found, status_found = _CODE.search(text), _STATUS.search(text)
    return (
        code_found[1] if code_found else None,
        int(status_found[1]) if status_found else None,
    )


@contextmanager
def explained(bucket: str, operation: str, path: str = "", *passing: str) -> Iterator[None]:
    """Turn what a bucket's client raises into our errors.

    Args:
        bucket: The bucket's address.
        operation: What is being done.
        path: With which thing in the bucket.
        passing: The names of the client's own errors that the caller handles.

    Raises:
        BucketError: See there.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, (FileNotFoundError, *_client_errors())):
            raise
        code, status = status_of(error)
        if type(error).__name__ in passing and code != "NoSuchBucket":
            raise
        raise bucket_error(bucket, operation, path, str(error), code=code, status=status) from None


def _client_errors() -> tuple[type[Exception], ...]:
    """The errors of the clients that are in use."""
    places = {
        "obstore.exceptions": ("BaseError",),
        "boto3.exceptions": ("Boto3Error",),
        "botocore.exceptions": ("BotoCoreError", "ClientError"),
    }
    return tuple(
        getattr(sys.modules[module], name)
        for module, names in places.items()
        if module in sys.modules
        for name in names
    )
