"""Whose buckets are told this user's credentials, and by which way."""

from __future__ import annotations

import pytest

from mlstate.buckets.open import BucketOptions, open_bucket
from mlstate.errors import BucketAccessError, BucketError, TransportError
from mlstate.limits import Limits
from mlstate.transport import Transports
from mlstate.transport.reach import Reach
from tests.servers.recording import Reply

DATA = b"some bytes"
OPTIONS = BucketOptions(attempts=1, limits=Limits(connect_timeout=5, read_timeout=5))


def give(request):
    headers = {"ETag": '"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    return Reply(200, {**headers, "Content-Type": "binary/octet-stream"}, DATA)


def refuse(request):
    body = b"<Error><Code>AccessDenied</Code></Error>"
    return Reply(403, {"Content-Type": "application/xml"}, body)


@pytest.fixture
def service(recording_server, monkeypatch):
    """A service that speaks S3 enough to be read from; the environment has keys for it."""
    recording_server.before = give
    monkeypatch.setenv("AWS_ENDPOINT_URL", recording_server.url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SKTEST")
    return recording_server


@pytest.fixture
def nobody(service, monkeypatch):
    """The same, where nobody has keys."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    return service


def read(address, **options):
    with Transports() as web, web.open(address, **options).read() as stream:
        return b"".join(iter(lambda: stream.read(1 << 16), b""))


def test_a_bucket_that_the_user_names_is_asked_with_the_keys_of_the_environment(service):
    assert read("s3://mine/x") == DATA
    assert all("AKTEST" in request.authorization for request in service.requests)


def test_a_bucket_that_only_a_manifest_from_elsewhere_names_is_not_asked(service):
    with pytest.raises(TransportError, match="another bucket"):
        read("s3://victim/x", reach=Reach("s3://mine/base"))
    assert service.requests == []
    assert read("s3://mine/x", reach=Reach("s3://mine/base")) == DATA
    assert "AKTEST" in service.requests[-1].authorization


def test_where_all_buckets_are_allowed_strangers_are_asked_without_keys(service, monkeypatch):
    monkeypatch.setenv("MLSTATE_ALLOWED_HOSTS", "s3:")
    assert read("s3://stranger/x", reach=Reach("bundle x.tar")) == DATA
    assert service.requests
    assert all(request.authorization is None for request in service.requests)


def test_one_that_is_allowed_by_name_is_asked_with_them(service, monkeypatch):
    monkeypatch.setenv("MLSTATE_ALLOWED_HOSTS", "s3:,s3://friend")
    assert read("s3://friend/x", reach=Reach("bundle x.tar")) == DATA
    assert "AKTEST" in service.requests[-1].authorization


def test_without_any_credentials_a_public_bucket_is_read(nobody):
    assert read("s3://public/x") == DATA
    assert all(request.authorization is None for request in nobody.requests)


def test_without_any_credentials_a_refusal_says_that_there_are_none(nobody):
    nobody.before = refuse
    with pytest.raises(BucketAccessError, match="does not let everybody") as caught:
        read("s3://private/x")
    assert "no credentials were sent" in caught.value.found
    assert "AWS_ACCESS_KEY_ID" in caught.value.remedy


def test_a_service_on_this_machine_is_asked_without_a_proxy(service, start_recording, monkeypatch):
    proxy = start_recording(before=give)
    for variable in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, proxy.url)
    assert read("s3://mine/x") == DATA
    client = open_bucket("s3://mine", OPTIONS)
    service.before = lambda request: Reply(200, {}, b"<ListMultipartUploadsResult/>")
    assert client.control.unfinished("") == []
    assert proxy.requests == []
    assert service.requests


def test_no_key_passes_a_proxy_in_clear(service, start_recording, monkeypatch):
    proxy = start_recording(before=give)
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://ceph.invalid:7480")
    with pytest.raises(BucketError, match="in clear") as caught:
        read("s3://mine/x")
    assert "NO_PROXY" in caught.value.remedy
    assert proxy.requests == []


def test_a_proxy_is_not_asked_for_this_machines_credentials(nobody, start_recording, monkeypatch):
    """A metadata service is beside the machine; what a proxy answers in its place is a stranger."""
    proxy = start_recording(before=give)
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "2")
    assert read("s3://public/x") == DATA
    assert proxy.requests == []
