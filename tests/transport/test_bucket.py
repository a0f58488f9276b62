"""Things in buckets as resources: on S3, and on what speaks like GCS and Azure."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial

import pytest

from mlstate.buckets import open as opening
from mlstate.buckets.open import open_bucket, parse_bucket_address
from mlstate.errors import BucketError, FormatError, NoRangesError, OfflineError, TransportError
from mlstate.limits import Limits
from mlstate.transport import Resource, Stream, Transports
from tests.servers.forwarding import Forwarding
from tests.servers.replies import Reply, serve
from tests.support.buckets import options_for, put

DATA = bytes(range(256)) * 4000


@pytest.fixture
def bucket(server, bucket):
    put(server, bucket, "models/a file+%20ü.bin", DATA)
    put(server, bucket, "models/empty", b"")
    return bucket


@pytest.fixture
def opened(server, bucket):
    client = open_bucket(f"s3://{bucket}", options_for(server, attempts=1))
    with Transports(buckets={f"s3://{bucket}": client}) as transports:
        yield lambda name: transports.open(f"s3://{bucket}/models/{name}")


def drained(resource, *span, chunk=100_000):
    with resource.read(*span) as stream:
        assert isinstance(stream, Stream)
        parts = []
        while part := stream.read(chunk):
            assert isinstance(part, bytes)
            assert len(part) <= chunk
            parts.append(part)
        data = b"".join(parts)
        assert stream.length in (None, len(data))
        return data, stream.total


def ranged(read, server):
    """Read a range, unless this server has none."""
    if server.conditions:
        return read()[0]
    with pytest.raises(NoRangesError):
        read()
    return None


def test_the_whole_and_its_ranges(opened, server):
    resource = opened("a file+%20ü.bin")
    assert isinstance(resource, Resource)
    assert resource.size() == len(DATA)
    assert drained(resource) == (DATA, len(DATA))
    assert drained(resource, 0, None) == (DATA, len(DATA))
    for start, stop in [(0, 1), (5, 600_000), (len(DATA) - 1, len(DATA)), (7, None)]:
        found = ranged(partial(drained, resource, start, stop), server)
        assert found in (None, DATA[start:stop])
    assert drained(resource, 9, 9)[0] == b""


def test_nothing_in_it(opened):
    assert opened("empty").size() == 0
    assert drained(opened("empty")) == (b"", 0)


def test_what_is_not_there(opened):
    for use in (lambda r: r.size(), drained, partial(drained, chunk=5)):
        with pytest.raises(TransportError, match=r"models/none") as caught:
            use(opened("none"))
        assert caught.value.status == 404
        assert not caught.value.transient


def test_more_than_there_is(opened, server):
    resource = opened("a file+%20ü.bin")
    for span in [(0, len(DATA) + 1), (len(DATA) + 5, None), (len(DATA) + 5, len(DATA) + 9)]:
        with pytest.raises(TransportError):
            drained(resource, *span)


def test_one_that_changes_while_it_is_read(opened, server, bucket):
    resource = opened("a file+%20ü.bin")
    drained(resource)
    put(server, bucket, "models/a file+%20ü.bin", DATA[::-1])
    with pytest.raises(TransportError, match="changed"):
        drained(resource)
    assert drained(opened("a file+%20ü.bin"))[0] == DATA[::-1]


def test_a_server_that_drips_is_given_up(moto):
    bucket = moto.new_bucket()
    put(moto, bucket, "x", DATA)

    def drip(record):
        def body():
            for n in range(100):
                time.sleep(0.05)
                yield DATA[n : n + 1]

        if record.method == "HEAD":
            return None
        headers = {"Content-Length": str(len(DATA)), "ETag": '"x"'}
        headers["Last-Modified"] = "Tue, 24 Nov 2026 12:00:00 GMT"
        return Reply(200, headers, body())

    with Forwarding(moto.url) as proxy:
        proxy.answer = drip
        options = options_for(
            moto,
            endpoint=proxy.url,
            attempts=1,
            limits=Limits(low_speed=1000.0, low_speed_seconds=0.5),
        )
        client = open_bucket(f"s3://{bucket}", options)
        with (
            Transports(buckets={f"s3://{bucket}": client}) as transports,
            pytest.raises(BucketError, match="too slow") as caught,
        ):
            drained(transports.open(f"s3://{bucket}/x"))
        assert caught.value.transient


def test_a_silent_server_is_given_up(moto, start_chaos):
    bucket = moto.new_bucket()
    put(moto, bucket, "x", DATA)
    chaos = start_chaos(moto.url, stall_after=50_000)
    options = options_for(moto, endpoint=chaos.url, attempts=1, limits=Limits(read_timeout=0.3))
    client = open_bucket(f"s3://{bucket}", options)
    with (
        Transports(buckets={f"s3://{bucket}": client}) as transports,
        pytest.raises(BucketError) as caught,
    ):
        drained(transports.open(f"s3://{bucket}/x"))
    assert caught.value.transient


def test_offline_names_it_and_opens_nothing():
    with Transports(offline=True) as transports:
        resource = transports.open("s3://bucket/x")
        assert resource.address == "s3://bucket/x"
        with pytest.raises(OfflineError, match="s3://bucket/x"):
            resource.size()
        with pytest.raises(OfflineError):
            drained(resource)


@pytest.mark.parametrize("address", ["s3://", "s3:///x", "s3://b/x", "s4://bucket/x", "s3://a b/c"])
def test_what_is_no_address_of_a_bucket(address):
    with pytest.raises(FormatError):
        parse_bucket_address(address)


def test_the_parts_of_an_address():
    assert parse_bucket_address("s3://bucket") == ("s3", "bucket", "")
    assert parse_bucket_address("gs://my.bucket_1/a/b/") == ("gs", "my.bucket_1", "a/b")


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    with Transports() as transports, pytest.raises(TransportError, match=r"mlstate\[s3\]"):
        transports.open("s3://bucket/x")


def test_without_boto3_the_environment_is_enough(ceph, monkeypatch):
    bucket = ceph.new_bucket()
    put(ceph, bucket, "x", DATA)
    monkeypatch.setattr(opening, "find_spec", lambda name: name != "boto3" or None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", ceph.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ceph.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ceph.secret)
    with Transports() as transports:
        assert drained(transports.open(f"s3://{bucket}/x"))[0] == DATA


def test_nothing_slow_is_imported_before_a_bucket_is_asked():
    code = (
        "import sys; from mlstate import S3StateStore; store = S3StateStore('bucket'); "
        "assert not {'obstore', 'boto3', 'botocore', 'torch'} & set(sys.modules); print(store)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("S3StateStore('s3://bucket')\n", "")


@pytest.fixture
def plain(start_recording):
    """A server that gives things as GCS and Azure do."""

    def answer(record):
        if record.name not in ("bucket/models/x", "bucket/models%2Fx"):
            return None
        when = {"Last-Modified": "Tue, 24 Nov 2026 12:00:00 GMT"}
        return serve(record, DATA, headers=when)

    return start_recording(before=answer)


def test_gs(plain, tmp_path, monkeypatch):
    account = {"gcs_base_url": plain.url, "disable_oauth": True}
    account |= {"client_email": "", "private_key": "", "private_key_id": ""}
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    check_plain("gs://bucket/models/x")


def test_az(plain, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", plain.url)
    monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    check_plain("az://bucket/models/x")


def check_plain(address):
    with Transports() as transports:
        resource = transports.open(address)
        assert resource.size() == len(DATA)
        assert drained(resource)[0] == DATA
        assert drained(resource, 10, 5000)[0] == DATA[10:5000]
        with pytest.raises(TransportError):
            transports.open(f"{address}y").size()


def test_az_without_an_account_is_said():
    with Transports() as transports, pytest.raises(BucketError, match="az://bucket"):
        transports.open("az://bucket/x").size()
