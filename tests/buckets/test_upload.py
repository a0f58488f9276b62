"""Uploads on a line that flips bits: refused, or found out before anything relies on them.

Ceph refuses what is not as it was signed. moto and rclone take anything.
"""

from __future__ import annotations

import hashlib
import random
import re
import socket
import time
from dataclasses import replace
from itertools import pairwise
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate import StateKey
from mlstate.buckets import upload
from mlstate.buckets.client import RETRIES
from mlstate.digests import Digest
from mlstate.errors import BucketError
from mlstate.objects.bucket import BucketObjectStore
from mlstate.retries import Retries
from mlstate.stores.s3 import S3StateStore
from tests.servers.forwarding import Forwarding
from tests.servers.replies import Reply
from tests.support.buckets import bucket_place, bucket_store, check_objects, contents, unfinished
from tests.support.models import LINEAR, net, same, values

pytestmark = pytest.mark.filterwarnings("ignore:the server of .* ignores conditional writes")
BIG = random.Random(0).randbytes(20_000_001)
OBJECTS = {"small": b"a small object", "middle": BIG[:1_500_000], "large": BIG}


@pytest.fixture
def line(server):
    """A proxy that flips a bit in the middle of bodies; of which, the test says."""
    with Forwarding(server.url) as proxy:
        yield proxy


def flip(record):
    body = bytearray(record.body)
    body[len(body) // 2] ^= 1
    return bytes(body)


def flipping(times, begin="", method="PUT"):
    """Flip the first so many bodies of paths that have this in them."""
    left = [times]

    def change(record):
        if not left[0] or record.method != method or not record.body or begin not in record.path:
            return record.body
        left[0] -= 1
        return flip(record)

    return change


def object_store(server, bucket, line=None):
    return BucketObjectStore(
        bucket_place(server, bucket, endpoint=line.url if line else server.url)
    )


# Objects.


@pytest.mark.parametrize("data", OBJECTS.values(), ids=OBJECTS)
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_flipped_upload_is_sent_again(server, bucket, line, data, times):
    digest = Digest.of(data)
    line.change = flipping(times, "/objects/")
    object_store(server, bucket, line).writer().put(digest, [data])
    assert contents(server, bucket)[f"objects/{digest[:2]}/{digest[2:]}"] == data
    assert unfinished(server, bucket) == []


@pytest.mark.parametrize("data", OBJECTS.values(), ids=OBJECTS)
def test_an_upload_that_is_refused_without_a_word_is_sent_again(server, bucket, line, data):
    digest = Digest.of(data)
    left = [1]

    def refuse(record):
        if record.method == "PUT" and "/objects/" in record.path and left[0]:
            left[0] -= 1
            return Reply(400, {}, b"")
        return None

    line.answer = refuse
    object_store(server, bucket, line).writer().put(digest, [data])
    assert left == [0]
    assert contents(server, bucket)[f"objects/{digest[:2]}/{digest[2:]}"] == data


@pytest.mark.parametrize("data", OBJECTS.values(), ids=OBJECTS)
def test_of_uploads_that_flip_again_and_again_nothing_stays(server, bucket, line, data):
    digest = Digest.of(data)
    line.change = flipping(-1, "/objects/")
    store = object_store(server, bucket, line)
    with pytest.raises(BucketError, match="damaged on their way") as caught:
        store.writer().put(digest, [data])
    assert caught.value.transient
    assert caught.value.bucket == f"s3://{bucket}"
    assert str(digest[2:]) in caught.value.path
    assert list(contents(server, bucket)) == ["mlstate.toml"]
    assert not object_store(server, bucket).writer().reuse(digest, len(data))
    assert unfinished(server, bucket) == []


@pytest.mark.parametrize("name", ["moto", "rclone"])
@pytest.mark.parametrize("data", OBJECTS.values(), ids=OBJECTS)
def test_what_cannot_be_looked_at_is_removed(request, name, data):
    """The upload is wrong by its ETag, and then the server gives nothing back."""
    server = request.getfixturevalue(name)
    bucket, digest = server.new_bucket(), Digest.of(data)
    with Forwarding(server.url) as line:
        line.change = flipping(1, "/objects/")
        busy = Reply(503, {}, b"<Error><Code>SlowDown</Code></Error>")
        read = ("GET", "/objects/")
        line.answer = lambda r: busy if r.method == read[0] and read[1] in r.path else None
        with pytest.raises(BucketError, match="fewer requests"):
            object_store(server, bucket, line).writer().put(digest, [data])
    assert list(contents(server, bucket)) == ["mlstate.toml"]


@pytest.mark.parametrize("sent", [0, 300_000])
def test_an_upload_that_is_cut_off_is_never_seen(server, bucket, sent):
    """As by kill -9, or a network that goes away: what every store here relies on."""
    place = {"Bucket": bucket, "Key": "objects/ab/c"}
    url = urlsplit(server.boto.generate_presigned_url("put_object", Params=place))
    head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\n"
    with socket.create_connection((url.hostname, url.port)) as line:
        line.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode() + b"x" * sent)
    for _ in range(10):
        time.sleep(0.05)
        assert contents(server, bucket) == {}


# States.


def test_whichever_upload_of_a_save_flips_the_state_is_right(server, bucket, line):
    bucket_store(server, bucket).save(net(0), "earlier")
    for at in range(30):
        line.reset()
        line.change = flipping_at(at)
        store = bucket_store(server, bucket, url=line.url)
        key = store.save(net(2 * at), "a", files={"f": b"%d" % at}, overwrite=True)
        line.change = lambda record: record.body
        model = net(1)
        bucket_store(server, bucket).load(model, key)
        assert same(values(model), values(net(2 * at)))
        assert bucket_store(server, bucket).files(key)["f"] == b"%d" % at
        assert contents(server, bucket)["models/mlstate.toml"] == b"version = 1\nrequires = []\n"
        check_objects(server, bucket)
        if at >= len(line.asked("PUT")):
            break
    assert 6 <= at < 30  # three tensors, the file, the state object, the old state file, the new
    bucket_store(server, bucket).load(net(1), StateKey(LINEAR, "earlier"))


def flipping_at(at):
    seen = [0]

    def change(record):
        seen[0] += record.method == "PUT"
        return flip(record) if record.method == "PUT" and seen[0] - 1 == at else record.body

    return change


def test_the_first_save_of_all_on_such_a_line(server, line):
    for at in range(12):
        bucket = server.new_bucket()
        line.change = flipping_at(at)
        key = bucket_store(server, bucket, url=line.url).save(net(at), "a")
        model = net(99)
        bucket_store(server, bucket).load(model, key)
        assert same(values(model), values(net(at)))
        assert contents(server, bucket)["models/mlstate.toml"] == b"version = 1\nrequires = []\n"


@pytest.mark.parametrize("what", ["/objects/", "/states/"])
def test_a_save_that_always_flips_is_an_error_and_shows_nothing(server, bucket, line, what):
    earlier = bucket_store(server, bucket).save(net(0), "earlier")
    line.change = flipping(-1, what)
    store = bucket_store(server, bucket, url=line.url)
    with pytest.raises(BucketError, match="damaged on their way"):
        store.save(net(1), "a")
    fresh = bucket_store(server, bucket)
    assert fresh.get_state_keys() == [earlier]
    check_objects(server, bucket)
    model = net(2)
    fresh.load(model, earlier)
    assert same(values(model), values(net(0)))
    line.change = lambda record: record.body
    fresh.load(model, store.save(net(1), "a"))
    assert same(values(model), values(net(1)))


# What it costs.


def test_the_server_is_found_out_once_and_without_harm(server, bucket, line):
    text = b'version = 1\nours = "x"\n'
    server.boto.put_object(Bucket=bucket, Key="models/mlstate.toml", Body=text)
    place = bucket_place(server, bucket, "models", endpoint=line.url)
    for _ in range(2):
        assert place.verifies_uploads() == server.verifies
    assert len(line.asked("PUT")) == 1
    assert contents(server, bucket) == {"models/mlstate.toml": text}
    line.change = flipping(1)
    again = bucket_place(server, bucket, "models", endpoint=line.url)
    assert again.verifies_uploads() == server.verifies
    assert contents(server, bucket) == {"models/mlstate.toml": text}


@pytest.mark.parametrize("data", OBJECTS.values(), ids=OBJECTS)
def test_what_arrives_as_it_was_sent_is_not_read_back(server, bucket, line, data):
    """A server that does not verify says enough by its ETags, of parts as well."""
    store = object_store(server, bucket, line)
    store.writer().put(Digest.of(data), [data])
    # Beside objects, what a probe of the server wrote is deleted.
    parts = [path for path in line.asked("POST") if "/objects/" in path]
    assert [path for path in line.asked() if "/objects/" in path and path[:4] != "PUT "] == (
        parts if data is BIG else []
    )
    assert bool(parts) == (data is BIG)


def other_etags(record, reply):
    """As of a bucket whose objects are encrypted with a key of one's own."""
    if "partNumber" in record.path:
        return reply  # what is told again when all parts are there
    headers = {
        name: f'"{value[8:1:-1]}"' if name.lower() == "etag" else value
        for name, value in reply.headers.items()
    }
    return replace(reply, headers=headers, body=re.sub(rb"<ETag>[^<]+", b"<ETag>0", reply.body))


@pytest.mark.parametrize("times", [0, 1])
@pytest.mark.parametrize("data", OBJECTS.values(), ids=OBJECTS)
def test_where_etags_say_nothing_what_the_server_does_not_verify_is_read_back(
    server, bucket, line, data, times
):
    line.back = other_etags
    line.change = flipping(times, "/objects/")
    object_store(server, bucket, line).writer().put(Digest.of(data), [data])
    read = [path for path in line.asked("GET") if "/objects/" in path]
    assert len(read) == (0 if server.verifies else 1 + times)
    assert check_objects(server, bucket) == 1


def test_an_upload_is_tried_so_often(moto, monkeypatch):
    monkeypatch.setattr(upload, "RETRIES", Retries(RETRIES.attempts, first=0))
    bucket = moto.new_bucket()
    with Forwarding(moto.url) as line:
        line.change = flipping(-1, "/objects/")
        with pytest.raises(BucketError):
            object_store(moto, bucket, line).writer().put(Digest.of(b"x"), [b"x"])
        assert len([path for path in line.asked("PUT") if "/objects/" in path]) == RETRIES.attempts


def test_a_state_that_another_saver_replaced_meanwhile_stays(moto):
    """The state file is wrong, and before it is looked at, another save overwrites it."""
    bucket = moto.new_bucket()
    other: S3StateStore = bucket_store(moto, bucket)
    with Forwarding(moto.url) as line:
        line.change = flipping(1, "/states/")
        done: list[StateKey] = []

        def overwrite(record, reply):
            if record.method == "PUT" and "/states/" in record.path and not done:
                done.append(StateKey(LINEAR, "a"))
                other.save(net(2), "a", overwrite=True)
            return reply

        line.back = overwrite
        key = bucket_store(moto, bucket, url=line.url).save(net(1), "a")
    assert done == [key]
    model = net(3)
    bucket_store(moto, bucket).load(model, key)
    assert same(values(model), values(net(2)))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=6), st.integers(1, 20))
def test_the_etag_of_bytes_is_the_same_however_they_come(data, cuts, part):
    ends = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    whole, parts = upload._Etag(), upload._Etag(part)
    parts.update(b"of an earlier attempt")
    parts.begin()
    for start, stop in pairwise(ends):
        for sent in (whole, parts):
            sent.update(memoryview(data)[start:stop])
    assert whole.etag() == hashlib.md5(data).hexdigest()
    hashes = [hashlib.md5(data[at : at + part]).digest() for at in range(0, len(data), part)]
    assert parts.etag() == f"{hashlib.md5(b''.join(hashes)).hexdigest()}-{len(hashes)}"
