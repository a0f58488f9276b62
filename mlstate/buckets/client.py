"""A bucket and what can be asked of it; `bucketreading` has the half that only reads.

Nothing here makes sure that what was written is what was sent: see `bucketuploads`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from mlstate.buckets.errors import ALREADY, DAMAGED, NOT_FOUND, PRECONDITION, explained, status_of
from mlstate.buckets.reader import BucketReader
from mlstate.buckets.values import Written
from mlstate.digests import Bytes
from mlstate.errors import BucketError

__all__ = ["ATTEMPTS", "PART", "PARTS_AT_ONCE", "BucketClient", "pause"]

PART = 8 << 20
"""The bytes of one part of a large upload. With 4 at once larger ones are no faster (measured)."""
PARTS_AT_ONCE = 4
ATTEMPTS = 4
"""How often something is written before it is given up, where another attempt may help."""


class BucketClient(BucketReader):
    """A bucket, to be read and written; see `BucketReader` for how it is opened."""

    _bare_etags = False

    def put(self, path: str, data: Bytes) -> Written:
        """Write a thing in one request, whatever is there.

        The request is signed over the SHA-256 of the data: servers that look at it refuse what was
        damaged on the way, and then it is sent again.
        """
        return self._written(path, lambda: data, use_multipart=False)

    def put_large(self, path: str, chunks: Callable[[], Iterator[Bytes]]) -> Written:
        """Write a large thing in parts, several at once. It is there when all are, or not at all.

        Args:
            path: Where to.
            chunks: Gives the bytes, from the start; if it raises, nothing is written. Called again
                for another attempt.
        """
        parts = {"chunk_size": PART, "max_concurrency": PARTS_AT_ONCE}
        return self._written(path, chunks, use_multipart=True, **parts)

    def create(self, path: str, data: bytes) -> Written | None:
        """Write a small thing that is not there yet, if the server honours the condition.

        Returns:
            None if something was there; it stays.
        """
        return self._conditional(path, data, "create", ALREADY)

    def replace(self, path: str, data: bytes, etag: str) -> Written | None:
        """Write a small thing in place of exactly one version of it.

        Returns:
            None if another version is there, or none; it stays.
        """
        for bare in (self._bare_etags, not self._bare_etags):
            form = etag.strip('"') if bare else etag
            written = self._conditional(path, data, {"e_tag": form}, PRECONDITION | NOT_FOUND)
            if written is not None:
                return written
            # Some servers compare it without its quotation marks, and never find it with them.
            now = self.head(path)
            if now is None or now.etag != etag:
                return None
            self._bare_etags = not bare
        return None

    def delete(self, path: str) -> None:
        """Remove a thing; one that is not there is no error."""
        import obstore

        store = self._open().writing
        with explained(self.address, "delete", path, *NOT_FOUND):
            try:
                obstore.delete(store, path)
            except Exception as error:
                if type(error).__name__ not in NOT_FOUND or status_of(error)[0] == "NoSuchBucket":
                    raise

    def _written(self, path: str, data: Callable[[], Any], **options: Any) -> Written:
        """Write, again if the server says that it was damaged on the way."""
        import obstore

        store = self._open().writing
        for attempt in range(ATTEMPTS):
            try:
                with explained(self.address, "write", path):
                    return Written.of(obstore.put(store, path, data(), **options))
            except BucketError as error:
                # A gateway may refuse a body without a word why: with a bare 400.
                bare = error.code is None and error.status == 400
                self._wait(error, attempt, again=bare or error.code in DAMAGED)
        raise AssertionError  # the last attempt returns or raises

    def _conditional(
        self, path: str, data: bytes, mode: Any, refused: frozenset[str]
    ) -> Written | None:
        """Write under a condition; None if the server says that it is not met."""
        import obstore

        store = self._open().writing
        for attempt in range(ATTEMPTS):
            try:
                with explained(self.address, "write", path, *refused):
                    result = obstore.put(store, path, data, mode=mode, use_multipart=False)
                return Written.of(result)
            except BucketError as error:
                # Unlike other uploads, obstore does not try it again when a connection breaks.
                self._wait(error, attempt, again=error.transient)
            except Exception as error:
                if type(error).__name__ not in refused:
                    raise
                if status_of(error)[1] != 409:
                    return None
                # Another request was under way, and nothing is decided: ask again.
                pause(attempt)
        return None

    def _wait(self, error: BucketError, attempt: int, *, again: bool) -> None:
        """Wait before the next attempt; raises the error if there is to be none."""
        if not again or attempt + 1 == ATTEMPTS:
            raise error
        pause(attempt)


def pause(attempt: int) -> None:
    """Wait a moment before another attempt; longer, the more there were."""
    time.sleep(random.uniform(0, 0.2 * 2.0**attempt))
