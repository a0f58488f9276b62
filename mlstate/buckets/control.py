"""What only boto3 can ask of a bucket: copies within it, uploads that nobody finished, a probe."""

from __future__ import annotations

from typing import Any

from mlstate.buckets.errors import DAMAGED, explained
from mlstate.buckets.values import Item, Upload
from mlstate.errors import BucketError

__all__ = ["BucketControl"]

COPY_LIMIT = 5 << 30
"""What one request can copy, in bytes; beyond, it takes several."""

_NONE = frozenset({"NoSuchUpload", "NotImplemented"})
"""What servers say that list no unfinished uploads."""


class BucketControl:
    """Copies at the server, and the rest of uploads that were killed.

    Args:
        address: ``s3://bucket``.
        client: A client of boto3.
    """

    def __init__(self, address: str, client: Any) -> None:
        self.address = address
        self.copy_limit = COPY_LIMIT
        self._bucket = address.partition("://")[2]
        self._client = client

    def copy(self, item: Item, target: str) -> bool:
        """Copy a thing within the bucket, at the server.

        Returns:
            False if it is not there any more.

        Raises:
            BucketError: The bucket cannot be asked.
        """
        return self._copy(item, target, {})

    def freshen(self, item: Item) -> bool:
        """Make a thing young again: a copy of it onto itself.

        Returns:
            False if it is not there any more.

        Raises:
            BucketError: The bucket cannot be asked.
        """
        return self._copy(item, item.path, {"MetadataDirective": "REPLACE"})

    def refuses_damage(self, path: str, data: bytes) -> bool:
        """Whether the server refuses an upload whose bytes are not those that were signed.

        The request is signed over other bytes of the same length, and then carries these: a server
        that does not care writes what it is given.

        Args:
            path: Where to write, if it comes to that.
            data: What; not empty.
        """
        decoy = bytes([data[0] ^ 1]) + data[1:]
        event, events = "before-send.s3.PutObject", self._client.meta.events

        def swap(request: Any, **_: Any) -> None:
            request.body = data

        events.register(event, swap, unique_id=path)
        try:
            with explained(self.address, "write", path):
                self._client.put_object(Bucket=self._bucket, Key=path, Body=decoy)
        except BucketError as error:
            return error.code in DAMAGED
        finally:
            events.unregister(event, unique_id=path)
        return False

    def unfinished(self, folder: str) -> list[Upload]:
        """The uploads below a folder that were begun and not finished."""
        found: list[Upload] = []
        try:
            self._add_unfinished(folder, found)
        except BucketError as error:
            if error.code not in _NONE:
                raise
        return found

    def abort(self, upload: Upload) -> None:
        """Give the room of an unfinished upload back."""
        with explained(self.address, "abort an unfinished upload", upload.path):
            self._client.abort_multipart_upload(
                Bucket=self._bucket, Key=upload.path, UploadId=upload.id
            )

    def _add_unfinished(self, folder: str, found: list[Upload]) -> None:
        with explained(self.address, "list unfinished uploads", folder):
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{folder}/" if folder else ""):
                for upload in page.get("Uploads", ()):
                    begun = upload["Initiated"].timestamp()
                    found.append(Upload(upload["Key"], upload["UploadId"], begun))

    def _copy(self, item: Item, target: str, extra: dict[str, Any]) -> bool:
        source = {"Bucket": self._bucket, "Key": item.path}
        try:
            with explained(self.address, "copy", item.path):
                if item.size <= self.copy_limit:
                    self._client.copy_object(
                        Bucket=self._bucket, Key=target, CopySource=source, **extra
                    )
                else:
                    self._copy_in_parts(source, target, extra)
        except BucketError as error:
            if error.status == 404 and error.code != "NoSuchBucket":
                return False
            raise
        return True

    def _copy_in_parts(self, source: dict[str, str], target: str, extra: dict[str, Any]) -> None:
        from boto3.s3.transfer import TransferConfig

        parts = TransferConfig(
            multipart_threshold=self.copy_limit, multipart_chunksize=self.copy_limit // 5
        )
        self._client.copy(source, self._bucket, target, ExtraArgs=extra, Config=parts)
