"""Opening a bucket by its address: with which credentials, endpoint and client.

S3 is asked with what boto3 finds (keys, profiles, single sign-on, roles), where it is installed;
GCS and Azure with what the environment says. Nothing slow is imported, and nothing is connected
to, before a bucket is first asked for something.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mlstate.buckets.client import BucketClient
from mlstate.buckets.errors import translated_errors
from mlstate.buckets.proxies import (
    check_no_plain_proxy,
    hides_metadata,
    is_this_machine,
    without_proxy,
)
from mlstate.buckets.values import Connection
from mlstate.errors import BucketAccessError, FormatError, TransportError
from mlstate.limits import Limits
from mlstate.phrases import Phrase
from mlstate.settings import check_variables

if TYPE_CHECKING:
    from obstore.store import S3Config

__all__ = ["BucketOptions", "endpoint_variable", "open_bucket", "parse_bucket_address"]

_ADDRESS = re.compile(r"(s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._-]{1,254})(?:/(.*))?", re.DOTALL)
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_READ_BY_LIBRARIES = ("AWS_", "GOOGLE_", "AZURE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_UPLOAD_SECONDS = 600
"""For one request of an upload; at most 64 MiB are under way at once, so 1 Mbit/s will do."""


@dataclass(frozen=True)
class BucketOptions:
    """How to reach a bucket.

    `session` is what ``boto3.session.Session`` takes: ``profile_name``, ``region_name``, keys.
    """

    session: Mapping[str, Any] = field(default_factory=dict, repr=False)
    endpoint: str | None = None  # the URL of another service that speaks S3
    anonymous: bool = False  # whether nobody's credentials are looked for
    offline: bool = False  # whether sockets are forbidden
    attempts: int = 5  # how often a request is tried
    first_delay: float = 0.2  # the most seconds after the first attempt; doubles each time
    limits: Limits = field(default_factory=Limits)


def parse_bucket_address(address: str) -> tuple[str, str, str]:
    """Scheme, bucket and path of an address such as ``s3://bucket/path``, else a `FormatError`."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise FormatError(
            "not the address of a bucket",
            expected="s3://bucket/path, with letters, digits, dots and hyphens in the bucket",
            found=address[:200],
        )
    return match[1], match[2], (match[3] or "").strip("/")


def open_bucket(address: str, options: BucketOptions | None = None) -> BucketClient:
    """A client for a bucket. Whether it is there shows when it is asked.

    The address is ``s3://bucket``, ``gs://bucket`` or ``az://container``; a path is ignored. By
    default the bucket is reached as the environment says. Raises a `FormatError` if the address is
    malformed, and a `TransportError` if a package is missing.
    """
    scheme, bucket, _ = parse_bucket_address(address)
    options = BucketOptions() if options is None else options
    check_variables(*_READ_BY_LIBRARIES)  # a line break in one is a panic in obstore
    if options.endpoint is not None:
        options = replace(options, endpoint=_checked_endpoint(options.endpoint))
    _require("obstore")
    connect = _connect_s3 if scheme == "s3" else partial(_connect_other, scheme)
    return BucketClient(
        f"{scheme}://{bucket}",
        partial(connect, bucket, options),
        offline=options.offline,
        limits=options.limits,
    )


def endpoint_variable() -> str | None:
    """The address of a service other than AWS, where the environment names one."""
    return next(filter(None, map(os.environ.get, _ENDPOINTS)), None)


def _checked_endpoint(endpoint: str) -> str:
    endpoint = endpoint.strip()
    if not endpoint.isprintable() or " " in endpoint:
        raise FormatError(
            "the address of a service has white space or a line break in it",
            expected="an address such as https://host",
        )
    if not re.fullmatch(r"https?://[^/?#\s]+(/[^?#]*)?", endpoint, re.IGNORECASE):
        raise FormatError(  # not repeated: it may have a password in it
            "the endpoint of a service is no http or https address",
            expected="an address such as https://host",
            remedy="correct "
            + Phrase("s3_endpoint_url, AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL")
            + " or endpoint_url in ~/.aws/config",
        )
    return endpoint


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise TransportError(
            f"buckets need the package {package}, which is not installed",
            remedy="pip install 'mlstate[s3]'",
        )


def _connect_s3(bucket: str, options: BucketOptions) -> Connection:
    from obstore.store import S3Store

    config: S3Config = {"unsigned_payload": False, "conditional_put": "etag"}
    named: dict[str, Any] = {}
    session = None
    endpoint = options.endpoint or endpoint_variable()
    if options.anonymous:
        config["skip_signature"] = True
    elif find_spec("boto3") is not None:
        from obstore.auth.boto3 import Boto3CredentialProvider

        session, configured = _session(f"s3://{bucket}", options)
        endpoint = endpoint or configured
        if session.region_name is not None:
            config["region"] = session.region_name
        if session.get_credentials() is None:
            config["skip_signature"] = True  # a public bucket needs no more
        else:
            # What can expire is asked for again after a while; boto3 knows when to renew it.
            lasting = timedelta(minutes=5)
            named["credential_provider"] = Boto3CredentialProvider(session, ttl=lasting)
    elif options.session:
        _require("boto3")
    if endpoint:
        endpoint = _checked_endpoint(endpoint)
        config["endpoint"] = endpoint
        if "AWS_ENDPOINT_URL_S3" in os.environ:  # which would come before the other
            config["aws_endpoint_url_s3"] = endpoint
    plain = str(endpoint or "").lower().startswith("http://")
    direct = plain and is_this_machine(str(endpoint))
    if plain and not config.get("skip_signature"):
        check_no_plain_proxy(f"s3://{bucket}", str(endpoint))
    proxy = without_proxy(str(endpoint)) if direct else {}
    read, write = _settings(options, allow_http=plain, **proxy)
    with translated_errors(f"s3://{bucket}", "open"):
        reading = S3Store(bucket, config=config, **read, **named)
        writing = S3Store(bucket, config=config, **write, **named)
    control = None if session is None else partial(_control, session, endpoint, options, direct)
    return Connection(reading, writing, control, anonymous=bool(config.get("skip_signature")))


def _connect_other(scheme: str, bucket: str, options: BucketOptions) -> Connection:
    from obstore.store import AzureStore, GCSStore

    kind: Any = GCSStore if scheme == "gs" else AzureStore
    variable = "GOOGLE_ALLOW_HTTP" if scheme == "gs" else "AZURE_ALLOW_HTTP"
    allow_http = os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")
    read, write = _settings(options, allow_http=allow_http)
    named: dict[str, Any] = {"skip_signature": True} if options.anonymous else {}
    with translated_errors(f"{scheme}://{bucket}", "open"):
        return Connection(
            kind(bucket, **read, **named),
            kind(bucket, **write, **named),
            anonymous=options.anonymous,
        )


def _settings(options: BucketOptions, **client: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings for reading, where silence is an error, and for writing, where it is not."""
    client["connect_timeout"] = timedelta(seconds=options.limits.connect_timeout)
    retries = {
        "max_retries": options.attempts - 1,
        "backoff": {
            "init_backoff": timedelta(seconds=options.first_delay),
            "max_backoff": timedelta(seconds=20),
        },
        "retry_timeout": timedelta(seconds=180),
    }
    reading = {
        "timeout": timedelta(days=7),
        "read_timeout": timedelta(seconds=options.limits.read_timeout),
    }
    writing = {"timeout": timedelta(seconds=_UPLOAD_SECONDS)}
    return (
        {"client_options": {**client, **reading}, "retry_config": retries},
        {"client_options": {**client, **writing}, "retry_config": retries},
    )


def _session(bucket: str, options: BucketOptions) -> tuple[Any, str | None]:
    """A session of boto3, and the endpoint that its profile gives."""
    import botocore.session
    from boto3.session import Session
    from botocore.exceptions import BotoCoreError

    given = dict(options.session)
    core = given.pop("botocore_session", None)
    try:
        if core is None:
            core = botocore.session.Session(profile=given.get("profile_name"))
            if hides_metadata():  # what a proxy would answer is not this machine's
                core.get_component("credential_provider").remove("iam-role")
        session = Session(botocore_session=core, **given)
        scoped = core.get_scoped_config()
    except BotoCoreError as error:
        raise BucketAccessError(
            "the credentials for this bucket are not set up as they should be",
            bucket=bucket,
            operation="open",
            path=bucket,
            found=str(error)[:200],
            remedy="correct " + Phrase("session_kwargs, AWS_PROFILE", "AWS_PROFILE") + " or ~/.aws",
        ) from None
    except TypeError as error:
        raise FormatError(
            "session_kwargs are those of boto3.session.Session",
            expected='for instance {"profile_name": ..., "region_name": ...}',
            found=", ".join(map(str, given)),
        ) from error
    return session, scoped.get("endpoint_url")


def _control(session: Any, endpoint: str | None, options: BucketOptions, direct: bool) -> Any:
    """A client of boto3, for what obstore cannot do; ``direct``: by no proxy."""
    from botocore.config import Config

    settings = Config(
        connect_timeout=options.limits.connect_timeout,
        read_timeout=_UPLOAD_SECONDS,  # a copy within a bucket answers when it is done
        retries={"total_max_attempts": options.attempts, "mode": "standard"},
        max_pool_connections=32,
        proxies={} if direct else None,
        # Only what obstore does as well: it is asked what a server makes of a wrong payload.
        request_checksum_calculation="when_required",
        s3={"payload_signing_enabled": True, **({"addressing_style": "path"} if endpoint else {})},
    )
    region = session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=endpoint, config=settings, region_name=region)
