"""What tests of buckets share: stores, places and kits on a server that speaks S3."""

from __future__ import annotations

from typing import Any

from mlstate import S3StateStore
from mlstate.buckets.client import BucketClient
from mlstate.buckets.open import BucketOptions, open_bucket
from mlstate.digests import Digest
from mlstate.format import layout
from mlstate.limits import Limits
from mlstate.objects.bucket import BucketObjectStore
from mlstate.objects.prefix import BucketPlace
from tests.conformance.object_stores import Kit
from tests.servers.s3 import S3Server

__all__ = [
    "bucket_kit",
    "bucket_place",
    "bucket_store",
    "check_objects",
    "contents",
    "options_for",
    "put",
    "unfinished",
]

QUICK = {
    "attempts": 3,
    "first_delay": 0.05,
    "limits": Limits(connect_timeout=5.0, read_timeout=20.0),
}


def options_for(server: S3Server, **changes: Any) -> BucketOptions:
    """How to reach a server, without much patience."""
    return BucketOptions(
        **{"session": server.session_kwargs, "endpoint": server.url, **QUICK, **changes}
    )


def bucket_place(server: S3Server, bucket: str, base: str = "", **options: Any) -> BucketPlace:
    """A prefix of a bucket."""
    return BucketPlace(open_bucket(f"s3://{bucket}", options_for(server, **options)), base)


def bucket_store(
    server: S3Server, bucket: str, base: str = "models", url: str | None = None, **options: Any
) -> S3StateStore:
    """A store in a bucket; its cache is the test's own unless one is given."""
    return S3StateStore(bucket, server.session_kwargs, url or server.url, base, **options)


def put(server: S3Server, bucket: str, key: str, data: bytes) -> None:
    """Put anything into a bucket, without mlstate."""
    server.boto.put_object(Bucket=bucket, Key=key, Body=data)


def contents(server: S3Server, bucket: str) -> dict[str, bytes]:
    """Everything in a bucket, read without mlstate."""
    client = server.boto
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    names = [item["Key"] for page in pages for item in page.get("Contents", ())]
    return {name: client.get_object(Bucket=bucket, Key=name)["Body"].read() for name in names}


def bucket_kit(server: S3Server, bucket: str) -> Kit:
    """What the suite of object stores needs."""
    store = BucketObjectStore(bucket_place(server, bucket, "a/prefix"))
    client: BucketClient = store.place.client

    def plant(digest: Digest, data: bytes) -> None:
        store.place.prepare()
        client.put(store.path(digest), data)

    def leftovers() -> list[str]:
        unfinished = [upload.path for upload in client.control.unfinished("")]
        names = [store.place.name(item.path) for item in client.items("")]
        return unfinished + [
            name
            for name in names
            if not name.startswith(f"{layout.OBJECTS}/") and name != layout.SETTINGS
        ]

    elsewhere = (
        "from tests.support.buckets import *; from tests.servers.s3 import S3Server; "
        f"server = S3Server(); server.url = {server.url!r}; "
        f"target = BucketObjectStore(bucket_place(server, {bucket!r}, 'a/prefix'))"
    ).replace("import *", "import bucket_place, BucketObjectStore")
    return Kit(store, store, plant, leftovers, elsewhere)


def check_objects(server: S3Server, bucket: str) -> int:
    """Every object of every store in a bucket has the digest that its name says; how many."""
    count = 0
    for name, data in contents(server, bucket).items():
        *_, folder, first, rest = ["", "", *name.split("/")]
        if folder == layout.OBJECTS:
            assert Digest.of(data) == first + rest
            count += 1
    return count


def unfinished(server: S3Server, bucket: str) -> list[str]:
    """The uploads that were begun and not finished."""
    control = open_bucket(f"s3://{bucket}", options_for(server)).control
    return [upload.path for upload in control.unfinished("")]
