"""Requests to a bucket that need boto3: copies within it, unfinished uploads, a probe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlstate.buckets.errors import DAMAGED, is_missing, translated_errors
from mlstate.buckets.values import Item, UnfinishedUpload
from mlstate.errors import BucketError

__all__ = ["BucketControl"]

COPY_LIMIT = 5 << 30
"""What one request can copy, in bytes; beyond, it takes several."""

_NONE = frozenset({"NoSuchUpload", "NotImplemented"})
"""What servers say that list no unfinished uploads."""


class BucketControl:
    """Copies at the server, and finds and aborts what killed uploads left; ``client`` is boto3's.

    All methods raise a `BucketError` if the bucket cannot be asked.
    """

    def __init__(self, address: str, client: Any) -> None:
        self.address = address
        self.copy_limit = COPY_LIMIT
        self._bucket = address.partition("://")[2]
        self._client = client

    @classmethod
    def open(cls, address: str, connect: Callable[[], Any] | None) -> BucketControl:
        """The control of a bucket of S3; a `BucketError` for any other, or without boto3."""
        if connect is None:
            raise BucketError(
                "this needs boto3, and a bucket of S3",
                bucket=address,
                operation="open",
                path=address,
                remedy="pip install 'mlstate[s3]'",
            )
        return cls(address, connect())

    def copy(self, item: Item, target: str) -> bool:
        """Copy an item within the bucket, at the server.

        Returns:
            False if it is not there any more.
        """
        return self._copy(item, target, {})

    def freshen(self, item: Item) -> bool:
        """Renew the time of an item by a copy onto itself; False if it is not there any more."""
        return self._copy(item, item.path, {"MetadataDirective": "REPLACE"})

    def refuses_damage(self, path: str, data: bytes) -> bool:
        """Whether the server refuses an upload whose bytes are not those that were signed.

        The request is signed over other bytes of the same length, and then carries these: a server
        that does not care writes what it is given, at least one byte.
        """
        decoy = bytes([data[0] ^ 1]) + data[1:]
        event, events = "before-send.s3.PutObject", self._client.meta.events

        def swap(request: Any, **_: Any) -> None:
            request.body = data

        events.register(event, swap, unique_id=path)
        try:
            with translated_errors(self.address, "write", path):
                self._client.put_object(Bucket=self._bucket, Key=path, Body=decoy)
        except BucketError as error:
            return error.code in DAMAGED
        finally:
            events.unregister(event, unique_id=path)
        return False

    def unfinished(self, folder: str) -> list[UnfinishedUpload]:
        """The uploads below a folder that were begun and not finished."""
        found: list[UnfinishedUpload] = []
        try:
            with translated_errors(self.address, "list unfinished uploads", folder):
                pages = self._client.get_paginator("list_multipart_uploads")
                prefix = f"{folder}/" if folder else ""
                for page in pages.paginate(Bucket=self._bucket, Prefix=prefix):
                    for upload in page.get("Uploads", ()):
                        begun = upload["Initiated"].timestamp()
                        found.append(UnfinishedUpload(upload["Key"], upload["UploadId"], begun))
        except BucketError as error:
            if error.code not in _NONE:
                raise
        return found

    def abort(self, upload: UnfinishedUpload) -> None:
        """Remove what came of an unfinished upload."""
        with translated_errors(self.address, "abort an unfinished upload", upload.path):
            self._client.abort_multipart_upload(
                Bucket=self._bucket, Key=upload.path, UploadId=upload.id
            )

    def _copy(self, item: Item, target: str, extra: dict[str, Any]) -> bool:
        source = {"Bucket": self._bucket, "Key": item.path}
        try:
            with translated_errors(self.address, "copy", item.path):
                if item.size <= self.copy_limit:
                    self._client.copy_object(
                        Bucket=self._bucket, Key=target, CopySource=source, **extra
                    )
                else:
                    self._copy_in_parts(source, target, extra)
        except BucketError as error:
            if not is_missing(error):
                raise
            return False
        return True

    def _copy_in_parts(self, source: dict[str, str], target: str, extra: dict[str, Any]) -> None:
        from boto3.s3.transfer import TransferConfig

        parts = TransferConfig(
            multipart_threshold=self.copy_limit, multipart_chunksize=self.copy_limit // 5
        )
        self._client.copy(source, self._bucket, target, ExtraArgs=extra, Config=parts)
