"""What all servers that speak S3 have in common here: an address, keys, and empty buckets."""

from __future__ import annotations

import itertools
import os
from functools import cached_property
from typing import Any

__all__ = ["S3Server"]

_COUNT = itertools.count()


class S3Server:
    """A server that speaks S3, ready to be used; see the classes that derive from it.

    Attributes:
        url: Its address.
        access_key: An access key that it knows.
        secret: The secret of that.
        conditions: Whether it honours If-None-Match and If-Match.
        signatures: Whether it refuses what was not signed as it should be.
        verifies: Whether it refuses bytes other than those that were signed.
    """

    url: str
    access_key = "AKTEST"
    secret = "SKTESTSECRET"
    conditions = True
    signatures = True
    verifies = True

    @property
    def session_kwargs(self) -> dict[str, str]:
        """What `S3StateStore` takes."""
        return {
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret,
            "region_name": "us-east-1",
        }

    @cached_property
    def boto(self) -> Any:
        """A client of boto3."""
        import boto3

        session = boto3.session.Session(**self.session_kwargs)
        return session.client("s3", endpoint_url=self.url)

    def new_bucket(self) -> str:
        """An empty bucket."""
        name = f"bucket-{os.getpid()}-{next(_COUNT)}"
        self.boto.create_bucket(Bucket=name)
        return name

    def close(self) -> None:
        """Stop it."""
        if "boto" in self.__dict__:
            self.boto.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
